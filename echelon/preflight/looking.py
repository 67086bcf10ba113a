"""A first look at data that somebody has: of what kind it is, and which fields its rows have.

A few hundred rows are read. What a run then makes of all of them, `check` says.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.conversations import ALPACA_FIELDS, CONVERSATION_FIELDS
from echelon.training.data.files import SUFFIXES, matching_files, named, reading, unpacked_bytes
from echelon.training.data.sources import LeftOut, csv_rows

ROWS = 200
"""Rows that are looked at."""
LINE = 1 << 24
"""Most bytes of a line that are looked at."""
PAIRS = (
    ("prompt", "completion"), ("prompt", "response"), ("prompt", "answer"), ("prompt", "output"),
    ("question", "answer"), ("instruction", "response"), ("instruction", "answer"), ("query", "response"),
    ("input", "output"), ("source", "target"),
)  # fmt: skip
"""Names of a question and its answer, as such data often has them."""
TEXT_NAMES = ("text", "content", "body", "document", "article", "passage", "sentence", "message", "abstract")
LABEL_NAMES = ("label", "labels", "class", "category", "target", "kind", "topic", "sentiment")
MAX_CLASSES = 50
"""Most different values of a field that is taken for a class."""


@dataclass(frozen=True)
class DataLook:
    """What was seen of the data of one boundary.

    Attributes:
        source: as a run file names it.
        files: how many there are.
        size: bytes of them all.
        columns: names of the rows' fields; empty for texts.
        fields: settings of the data that name fields.
        form: what is trained on, in words.
        label: a field that may be a class, and its values; None where there is none.
        notes: what else is to be said of it.
    """

    source: str
    files: int
    size: int
    columns: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    form: str = "each file is a text"
    label: tuple[str, tuple[str, ...]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The kind of the source."""
        return self.source.partition(":")[0]


def look_at(place: str) -> DataLook:
    """Look at a file, a folder or a pattern.

    Args:
        place: its path; `KIND:PATH` says of what kind it is.

    Raises:
        ConfigError: there is nothing, it cannot be read, or nobody can tell what it is.
    """
    try:
        place.encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{named(Path(place))}: its name is not UTF-8, and a run file is: rename it, or name its folder"
        ) from None
    kind, _, rest = place.partition(":")
    notes: list[str] = []
    if kind in SUFFIXES and rest:
        place = rest
    else:
        kind = _kind_of(place, notes)
    data = DataSettings(source=f"{kind}:{place}")
    files = matching_files(data)
    size = sum(file.stat().st_size for file in files)
    if kind == "text":
        return DataLook(data.source, len(files), size, notes=tuple(notes))
    rows = _first_rows(kind, files)
    if not rows:
        raise ConfigError(f"{place} has no rows; name files that have some")
    return _with_fields(DataLook(data.source, len(files), size, notes=tuple(notes)), rows)


def _kind_of(place: str, notes: list[str]) -> str:
    path = Path(place).expanduser()
    if path.is_dir():
        found = _kinds_in(path)
        if not found:
            known = ", ".join(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
            raise ConfigError(f"{place} has no file that ends with {known}; name the files, or a pattern")
        (kind, _), *others = sorted(found.items(), key=lambda item: -item[1][1])
        for other, (left, _) in others:
            notes.append(
                f"not read: {left} of kind {other}. A source is of one kind, and {kind} has more bytes here"
            )
        return kind
    files = matching_files(DataSettings(source=f"text:{place}"))
    kinds = {_kind_of_file(file) for file in files}
    if len(kinds) > 1:
        raise ConfigError(
            f"{place} names files of several kinds ({', '.join(sorted(kinds))}): name those of one kind"
        )
    return kinds.pop()


def _kinds_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Of each kind, how many files a folder has, and their bytes."""
    numbers: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for file in folder.rglob("*"):
        kind = _by_suffix(file)
        if kind is not None and file.is_file():
            numbers[kind] += 1
            sizes[kind] += file.stat().st_size
    return {kind: (numbers[kind], sizes[kind]) for kind in numbers}


def _by_suffix(file: Path) -> str | None:
    name = file.name.lower()
    for kind, suffixes in SUFFIXES.items():
        if name.endswith(suffixes) or (
            kind != "parquet" and name.endswith(tuple(f"{s}.gz" for s in suffixes))
        ):
            return kind
    return None


def _kind_of_file(file: Path) -> str:
    """The kind by the file's name, or by how it begins."""
    by_name = _by_suffix(file)
    if by_name is not None:
        return by_name
    with reading(file), unpacked_bytes(file, LeftOut()) as stream:
        begin = stream.read(1 << 16)
    if begin.startswith(b"PAR1"):
        return "parquet"
    if b"\0" in begin:
        raise ConfigError(f"{named(file)} is no text, JSON, CSV or Parquet; convert it first")
    return "jsonl" if begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "text"


def _first_rows(kind: str, files: Sequence[Path]) -> list[Mapping[str, Any]]:
    """Some rows of the first files, without those that are none: a check names them."""
    rows: list[Mapping[str, Any]] = []
    for file in files:
        if len(rows) >= ROWS:
            break
        with reading(file):
            found = {"jsonl": _json_rows, "csv": _csv_rows, "parquet": _parquet_rows}[kind](file)
        rows += found[: ROWS - len(rows)]
    return rows


def _json_rows(file: Path) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    with unpacked_bytes(file, LeftOut()) as stream:
        for _ in range(ROWS):
            line = stream.readline(LINE)
            if not line:
                break
            try:
                row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict):
                found.append(row)
    return found


def _csv_rows(file: Path) -> list[Mapping[str, Any]]:
    with unpacked_bytes(file, LeftOut()) as stream:
        try:
            return list(islice(csv_rows(file, stream), ROWS))
        except csv.Error as error:
            raise ConfigError(f"{named(file)} is not CSV: {error}") from error


def _parquet_rows(file: Path) -> list[Mapping[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("parquet: sources need pyarrow; install the extra `echelon[data]`") from error
    try:
        table = ParquetFile(file)
        names = table.schema_arrow.names
        for batch in table.iter_batches(batch_size=ROWS):
            return [
                dict(zip(names, row, strict=True)) for row in zip(*map(_values, batch.columns), strict=True)
            ]
    except (ArrowException, OSError, ValueError) as error:
        raise ConfigError(f"{named(file)} cannot be read as Parquet: {error}") from error
    return []


def _values(column: Any) -> list[Any]:
    """A column's values, as far as Python has such values."""
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # a date in the year 20000, for one
        return [None] * len(column)


def _with_fields(look: DataLook, rows: Sequence[Mapping[str, Any]]) -> DataLook:
    columns = tuple(dict.fromkeys(str(name) for row in rows for name in row))
    found = _fields_of(columns, rows)
    if found is None:
        raise ConfigError(
            f"{look.source}: no field of its rows is text or a conversation; they have: {', '.join(columns[:10])}"
        )
    fields, form = found
    text = fields.get("text_field")
    label = None if text is None else _label_of(columns, rows, text)
    return replace(look, columns=columns, fields=fields, form=form, label=label)


def _fields_of(
    columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, str], str] | None:
    """Settings that name the fields to train on, and what these are in words; None where no field will do."""
    talks = [name for name in columns if _share(rows, name, _is_conversation) > 0.5]
    if talks:
        name = min(talks, key=lambda one: (one not in CONVERSATION_FIELDS, columns.index(one)))
        return {"messages_field": name}, f"conversations in {name}"
    texts = [name for name in columns if _share(rows, name, lambda value: isinstance(value, str)) > 0.5]
    if "text" not in texts:
        if {"instruction", "output"} <= set(texts):
            return (
                {},
                f"instructions and answers in {', '.join(name for name in ALPACA_FIELDS if name in columns)}",
            )
        for prompt, answer in PAIRS:
            if prompt in texts and answer in texts:
                return {
                    "prompt_field": prompt,
                    "answer_field": answer,
                }, f"questions in {prompt}, answers in {answer}"
    if not texts:
        return None
    by_name = [one for name in TEXT_NAMES for one in texts if one.lower() == name]
    name = by_name[0] if by_name else max(texts, key=lambda one: _characters(rows, one))
    return {"text_field": name}, f"texts in {name}"


def _characters(rows: Sequence[Mapping[str, Any]], name: str) -> int:
    return sum(len(row[name]) for row in rows if isinstance(row.get(name), str))


def _share(rows: Sequence[Mapping[str, Any]], name: str, fits: Any) -> float:
    return sum(bool(fits(row.get(name))) for row in rows) / len(rows)


def _is_conversation(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, Mapping) and ({"role", "from"} & one.keys()) for one in value)
    )


def _label_of(
    columns: Iterable[str], rows: Sequence[Mapping[str, Any]], text: str
) -> tuple[str, tuple[str, ...]] | None:
    """A field whose name and few values say that it is a class, and these values."""
    for name in columns:
        if name == text or name.lower() not in LABEL_NAMES:
            continue
        values = [row.get(name) for row in rows]
        if all(isinstance(value, str | int) and not isinstance(value, bool) for value in values):
            classes = sorted({str(value) for value in values})
            if 2 <= len(classes) <= min(MAX_CLASSES, len(rows) // 2):
                return name, tuple(classes)
    return None
