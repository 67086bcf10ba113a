"""Read documents: whole files or rows, each with an id that is the same on every machine, and a domain.

What cannot be trained on is left out and counted by reason, so that nothing vanishes without a word.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import sysconfig
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.training.data.conversations import (
    Completion,
    Conversation,
    NoConversation,
    Turn,
    conversation_of,
    named_fields,
)
from echelon.training.model_files import is_local

MAX_ROW_BYTES = 64 << 20
_BUFFER = 1 << 20
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__"})
_SUFFIXES = {
    "text": (".txt", ".md", ".text", ".rst"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
"""Files of a folder that are read when the folder alone is named; each also with .gz behind it, but for Parquet."""

EMPTY = "empty text"
NO_TEXT = "characters that are no text (lone surrogates), replaced by U+FFFD"


@dataclass
class LeftOut:
    """What a source had that is not among its documents.

    Attributes:
        rows: how many documents were left out, by reason.
        mended: how many documents are among those read, but not as they stood, by reason.
        read_bytes: how many bytes of files were read, as they lie on the disk.
    """

    rows: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    read_bytes: int = 0

    def refuse(self, error: ConfigError) -> None:
        """Take a row or file that cannot be used: raise the error. A check may collect it instead, and read on."""
        raise error

    @property
    def total(self) -> int:
        """Documents that were left out."""
        return sum(self.rows.values())

    def words(self) -> str:
        """The reasons with their counts, the most frequent first; empty if nothing was left out."""
        return ", ".join(f"{reason}: {count}" for reason, count in self.rows.most_common())


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text or a conversation.

    Attributes:
        id: unique in its source.
        domain: what partitions group by.
        content: the text, or the text with its prompt, or the conversation (its turns alone, if they say all of it).
        label: the class of a text, where there are such.
    """

    id: str
    domain: str
    content: str | Completion | Conversation | tuple[Turn, ...]
    label: str | None = None


def read_source(settings: DataSettings, left_out: LeftOut | None = None) -> list[RawDocument]:
    """The first `max_documents` documents of the source, in a fixed order.

    Args:
        settings: names the source and its fields.
        left_out: takes what is left out, and why.

    Raises:
        ConfigError: the source cannot be read, a row lacks a field, there is no document at all, or a larger share of
            the documents was left out than `max_left_out` allows.
    """
    left_out = LeftOut() if left_out is None else left_out
    documents = list(documents_of(settings, left_out))
    check_left_out(settings, left_out, len(documents))
    return documents


def documents_of(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    """The first `max_documents` documents of the source, in a fixed order, one at a time.

    Raises:
        ConfigError: the source cannot be read, or a row lacks a field.
    """
    readers = {
        "stdlib": _read_stdlib,
        "text": _read_text,
        "jsonl": _read_jsonl,
        "csv": _read_csv,
        "parquet": _read_parquet,
        "hf": _read_hf,
    }
    return islice(readers[settings.kind](settings, left_out), settings.max_documents)


def source_bytes(settings: DataSettings) -> int | None:
    """How many bytes the files of a source have on the disk; None where that is not known before.

    Raises:
        ConfigError: there are no such files.
    """
    if settings.kind in ("stdlib", "hf"):
        return None
    return sum(file.stat().st_size for file in _matching_files(settings))


def check_left_out(settings: DataSettings, left_out: LeftOut, documents: int) -> None:
    """Check that enough of a source is used.

    Args:
        settings: says which share may be left out.
        left_out: what was left out.
        documents: how many were not.

    Raises:
        ConfigError: there is no document, or too large a share was left out.
    """
    if not documents:
        reasons = f" (left out: {left_out.words()})" if left_out.total else ""
        raise ConfigError(
            f"data source {settings.source!r} has no document to train on{reasons}; name files or packages that have "
            "text"
        )
    total = left_out.total + documents
    if left_out.total > settings.max_left_out * total:
        raise ConfigError(
            f"data source {settings.source!r}: {left_out.total} of {total} documents would be left out "
            f"({left_out.words()}): correct them, or raise data.max_left_out ({settings.max_left_out:g})"
        )


def _read_stdlib(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in settings.location.split("+"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"data source {settings.source!r}: {name!r} is not a module name")
        folder = root.joinpath(*name.split("."))
        files = [folder.with_suffix(".py")] if not folder.is_dir() else sorted(folder.rglob("*.py"))
        files = [file for file in files if file.is_file()]
        if not files:
            raise ConfigError(
                f"data source {settings.source!r}: this Python has no sources of {name!r} below {root}; leave "
                "it out, or install the full standard library"
            )
        for file in files:
            relative = file.relative_to(root)
            if _TEST_FOLDERS.isdisjoint(relative.parts[:-1]):
                # A few encoding tables are not UTF-8; replacement characters do no harm to a corpus of code.
                text = file.read_text("utf-8", errors="replace")
                if text.strip():  # an empty __init__.py is no document, and nothing is missing without it
                    yield RawDocument(relative.as_posix(), name, text)


def _named(file: Path) -> str:
    """A file's name as text: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(file.as_posix()).decode("utf-8", "backslashreplace")


def _matching_files(settings: DataSettings) -> list[Path]:
    """The files that a source names: one file exactly, all suitable files of a folder, or those of a pattern."""
    path = Path(settings.location).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        suffixes = _SUFFIXES[settings.kind]
        wanted = (*suffixes, *(suffix + ".gz" for suffix in suffixes))
        files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(wanted))
        if not files:
            raise ConfigError(
                f"data source {settings.source!r}: the folder has no file that ends with {', '.join(wanted)}; name the "
                "files by a pattern"
            )
        return files
    files = sorted(Path(name) for name in glob.glob(str(path), recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        raise ConfigError(
            f"data source {settings.source!r} matches no file (looked from {Path.cwd()}); check the pattern"
        )
    return files


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """What reading a file may raise becomes one sentence that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{_named(file)} is not UTF-8 text ({error.reason} at byte {error.start}); convert it or leave it out"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(
            f"{_named(file)} is no whole gzip file ({error}); fetch or pack it again"
        ) from error
    except OSError as error:
        raise ConfigError(f"{_named(file)} cannot be read: {error.strerror or error}") from error


class _Counted(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, file: Path, left_out: LeftOut) -> None:
        super().__init__(file)
        self._left_out = left_out

    def readinto(self, buffer: Any) -> int:
        found = super().readinto(buffer) or 0
        self._left_out.read_bytes += found
        return found


@contextmanager
def _open(file: Path, left_out: LeftOut) -> Iterator[BinaryIO]:
    with io.BufferedReader(_Counted(file, left_out), _BUFFER) as raw:
        if file.name.endswith(".gz"):
            with gzip.open(raw, "rb") as unpacked:
                yield cast(BinaryIO, unpacked)
        else:
            yield cast(BinaryIO, raw)


def _text_of(file: Path, left_out: LeftOut) -> str:
    """A whole file as text; the byte order mark at its begin is no text."""
    with _reading(file), _open(file, left_out) as stream:
        return stream.read().decode("utf-8-sig")


def _read_text(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    files = _matching_files(settings)
    # Files of several folders: the folder is the domain. Files of one folder: each file is its own.
    by_folder = len({file.parent for file in files}) > 1
    for file in files:
        try:
            text = _text_of(file, left_out)
        except ConfigError as error:
            left_out.refuse(error)
            continue
        if text.strip():
            yield RawDocument(_named(file), _named(file.parent if by_folder else file), text)
        else:
            left_out.rows[EMPTY] += 1


def _read_jsonl(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    for file in _matching_files(settings):
        try:
            yield from _lines_of(settings, file, left_out)
        except ConfigError as error:
            left_out.refuse(error)


def _lines_of(settings: DataSettings, file: Path, left_out: LeftOut) -> Iterator[RawDocument]:
    with _reading(file), _open(file, left_out) as lines:
        for number in range(1, 1 << 62):
            line = lines.readline(MAX_ROW_BYTES + 1)
            if not line:
                break
            where = f"{_named(file)}:{number}"
            if len(line) > MAX_ROW_BYTES:
                raise ConfigError(f"{where}: the line is longer than {MAX_ROW_BYTES} bytes")
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if line.strip():
                try:
                    found = list(_row(settings, _json(line, where), where, _named(file), left_out))
                except ConfigError as error:
                    left_out.refuse(error)
                    continue
                yield from found


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text ({error.reason}); convert the file") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error


def _read_csv(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    """Rows under a line of field names; `.tsv` files are separated by tabs, all others by commas."""
    csv.field_size_limit(MAX_ROW_BYTES)
    for file in _matching_files(settings):
        try:
            yield from _records_of(settings, file, left_out)
        except ConfigError as error:
            left_out.refuse(error)


def _records_of(settings: DataSettings, file: Path, left_out: LeftOut) -> Iterator[RawDocument]:
    delimiter = "\t" if file.name.removesuffix(".gz").endswith(".tsv") else ","
    with _reading(file), _open(file, left_out) as stream:
        rows = csv.DictReader(
            io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=delimiter, strict=True
        )
        try:
            for row in rows:
                where = f"{_named(file)}:{rows.line_num}"
                try:
                    if None in row or None in row.values():
                        raise ConfigError(
                            f"{where} has another number of fields than the first line, which names them"
                        )
                    found = list(_row(settings, row, where, _named(file), left_out))
                except ConfigError as error:
                    left_out.refuse(error)
                    continue
                yield from found
        except csv.Error as error:
            raise ConfigError(f"{_named(file)}:{rows.line_num} is not CSV: {error}") from error


def _read_parquet(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("parquet: sources need pyarrow; install the extra `echelon[data]`") from error
    for file in _matching_files(settings):
        number = 0
        try:
            table = ParquetFile(file)
            # Only these: another column may hold what Python has no value for, such as a date in the year 20000.
            columns = [
                name
                for name in table.schema_arrow.names
                if name in named_fields(settings, table.schema_arrow.names)
            ]
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    try:
                        found = list(_row(settings, row, f"{_named(file)}:{number}", _named(file), left_out))
                    except ConfigError as error:
                        left_out.refuse(error)
                        continue
                    yield from found
            left_out.read_bytes += file.stat().st_size
        except (ArrowException, OSError, ValueError, OverflowError) as error:
            left_out.refuse(
                ConfigError(f"{_named(file)} cannot be read as Parquet (after row {number}): {error}")
            )


def _read_hf(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    name, _, rest = settings.location.partition(":")
    config, _, split = rest.partition(":")
    if is_local(name) and not Path(name).expanduser().exists():
        raise ConfigError(f"data source {settings.source!r}: there is no {name} here; check the path")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError("hf: sources need datasets; install the extra `echelon[data]`") from error
    try:
        rows: Iterable[Any] = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises many unrelated types for one cause: it is not there
        raise ConfigError(
            f"data source {settings.source!r} cannot be loaded: {type(error).__name__}: {error}. Check name, "
            "configuration and split; without a network, fill the datasets cache first or use jsonl: or parquet:"
        ) from error
    for number, row in enumerate(rows, 1):
        try:
            found = list(_row(settings, row, f"{name}:{number}", name, left_out))
        except ConfigError as error:
            left_out.refuse(error)
            continue
        yield from found


def _row(
    settings: DataSettings, row: Any, where: str, domain: str, left_out: LeftOut
) -> Iterator[RawDocument]:
    """The document of one row, or none if there is nothing to train on in it."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is not an object with fields")
    mended: list[bool] = []
    label = None
    if settings.label_field is not None:
        label = domain = _whole(_label(row, settings.label_field, where), mended)
    if settings.domain_field is not None:
        domain = _whole(str(_field(row, settings.domain_field, where)), mended)
    content: str | Completion | Conversation | tuple[Turn, ...]
    try:
        found = conversation_of(settings, row, where)
    except NoConversation as error:
        left_out.rows[error.reason] += 1
        return
    if found is None:
        content = _whole(_text(row, settings.text_field, where), mended)
        if not content.strip():
            left_out.rows[EMPTY] += 1
            return
    else:
        content = found.mended(lambda text: _whole(text, mended))
        if isinstance(content, Conversation) and content.is_plain:
            content = content.turns
    if mended:
        left_out.mended[NO_TEXT] += 1
    yield RawDocument(where, domain, content, label)


def _whole(text: str, mended: list[bool]) -> str:
    """The text without lone surrogates, which no tokenizer and no digest takes; says in `mended` if there were any."""
    try:
        text.encode()
    except UnicodeEncodeError:
        mended.append(True)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _field(row: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in row:
        there = ", ".join(sorted(map(str, row))[:10])
        raise ConfigError(
            f"{where} has no field {name!r}; it has: {there}. Set the data settings' field names"
        )
    return row[name]


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = _field(row, name, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {name!r} is {type(value).__name__}, expected text")
    return value


def _label(row: Mapping[str, Any], name: str, where: str) -> str:
    value = _field(row, name, where)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: label {name!r} is {type(value).__name__}, expected text or an integer")
