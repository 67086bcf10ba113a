"""Read documents: whole files or rows, each with an id that is the same on every machine, and a domain.

What cannot be trained on is left out and counted by reason, so that nothing vanishes without a word.
"""

from __future__ import annotations

import csv
import io
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
    field_of,
    kind_of,
    named_fields,
)
from echelon.training.data.files import base_folder, matching_files, named, reading, unpacked_bytes
from echelon.training.model_files import is_local

MAX_ROW_BYTES = 64 << 20
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__"})
NO_FILES = ("stdlib", "hf")
"""Kinds of sources whose documents are no files of the user's."""
BOM = b"\xef\xbb\xbf"
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
        id: unique in its source: where it stands, as errors say it.
        domain: what partitions group by.
        content: the text, or the text with its prompt, or the conversation (its turns alone, if they say all of it).
        label: the class of a text, where there are such.
        key: what splits and partitions go by, the same wherever the source's folder lies; "" for the id itself.
    """

    id: str
    domain: str
    content: str | Completion | Conversation | tuple[Turn, ...]
    label: str | None = None
    key: str = ""


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
    found = islice(readers[settings.kind](settings, left_out), settings.max_documents)
    return found if settings.kind in NO_FILES else _keyed(found, named(base_folder(settings)))


def _keyed(documents: Iterable[RawDocument], folder: str) -> Iterator[RawDocument]:
    """Documents whose keys and domains do not say where their folder lies."""
    inside = f"{folder.rstrip('/')}/"
    for document in documents:
        domain = "." if document.domain == folder else document.domain.removeprefix(inside)
        yield replace(document, domain=domain, key=document.id.removeprefix(inside))


def source_bytes(settings: DataSettings) -> int | None:
    """How many bytes the files of a source have on the disk; None where that is not known before.

    Raises:
        ConfigError: there are no such files.
    """
    if settings.kind in NO_FILES:
        return None
    return sum(file.stat().st_size for file in matching_files(settings))


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


def _text_of(file: Path, left_out: LeftOut) -> str:
    """A whole file as text; the byte order mark at its begin is no text."""
    with reading(file), unpacked_bytes(file, left_out) as stream:
        return stream.read().decode("utf-8-sig")


def _read_text(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    files = matching_files(settings)
    # Files of several folders: the folder is the domain. Files of one folder: each file is its own.
    by_folder = len({file.parent for file in files}) > 1
    for file in files:
        try:
            text = _text_of(file, left_out)
        except ConfigError as error:
            left_out.refuse(error)
            continue
        if text.strip():
            yield RawDocument(named(file), named(file.parent if by_folder else file), text)
        else:
            left_out.rows[EMPTY] += 1


def _read_jsonl(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    for file in matching_files(settings):
        try:
            yield from _lines_of(settings, file, left_out)
        except ConfigError as error:
            left_out.refuse(error)


def _lines_of(settings: DataSettings, file: Path, left_out: LeftOut) -> Iterator[RawDocument]:
    with reading(file), unpacked_bytes(file, left_out) as lines:
        if cast(io.BufferedReader, lines).peek(4)[:4].removeprefix(BOM)[:1] == b"[":
            yield from _array_of(settings, file, lines, left_out)
            return
        for number in range(1, 1 << 62):
            line = lines.readline(MAX_ROW_BYTES + 1)
            if not line:
                break
            where = f"{named(file)}:{number}"
            if len(line) > MAX_ROW_BYTES:
                raise ConfigError(f"{where}: the line is longer than {MAX_ROW_BYTES} bytes")
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                try:
                    row = _json(line, where)
                except ConfigError as error:
                    left_out.refuse(error)
                    continue
                yield from _taken(settings, row, where, named(file), left_out)


def _array_of(
    settings: DataSettings, file: Path, stream: BinaryIO, left_out: LeftOut
) -> Iterator[RawDocument]:
    """The rows of a file that is one JSON array; they are counted from 1."""
    # A single read of the most that is taken would reserve that much for the smallest file.
    data = bytearray()
    while piece := stream.read(1 << 20):
        data += piece
        if len(data) > MAX_ROW_BYTES:
            raise ConfigError(
                f"{named(file)} is one JSON array of more than {MAX_ROW_BYTES} bytes; write one object a line (JSONL)"
            )
    for number, row in enumerate(_json(bytes(data.removeprefix(BOM)), named(file)), 1):
        yield from _taken(settings, row, f"{named(file)}:{number}", named(file), left_out)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose fields have names of their own."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {twice[:64]!r} stands twice")
    return found


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        whole = "; one object a line is read, or an array" if error.doc.strip() in ("{", "[") else ""
        raise ConfigError(f"{where} is not JSON: {error}{whole}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where} is not UTF-8 text ({error.reason}); convert the file") from error
    except RecursionError as error:
        raise ConfigError(f"{where} is nested too deeply to be read") from error
    except ValueError as error:
        why = "a number of thousands of digits" if "digits" in str(error) else error
        raise ConfigError(f"{where} cannot be read as JSON: {why}") from error


def _read_csv(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    """Rows under a line of field names, separated by tabs in `.tsv` files, and else by what that line has."""
    csv.field_size_limit(MAX_ROW_BYTES)
    for file in matching_files(settings):
        try:
            yield from _records_of(settings, file, left_out)
        except ConfigError as error:
            left_out.refuse(error)


def _records_of(settings: DataSettings, file: Path, left_out: LeftOut) -> Iterator[RawDocument]:
    with reading(file), unpacked_bytes(file, left_out) as stream:
        rows = csv_rows(file, stream)
        names = rows.fieldnames or ()
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise ConfigError(
                f"{named(file)}: its first line names the field {twice[:64]!r} twice; rename one of them"
            )
        try:
            for row in rows:
                where = f"{named(file)}:{rows.line_num}"
                if None in row or None in row.values():
                    left_out.refuse(
                        ConfigError(
                            f"{where} has another number of fields than the first line, which names them"
                        )
                    )
                    continue
                yield from _taken(settings, row, where, named(file), left_out)
        except csv.Error as error:
            raise ConfigError(f"{named(file)}:{rows.line_num} is not CSV: {error}") from error


def csv_rows(file: Path, stream: BinaryIO) -> csv.DictReader[str]:
    """The rows of a CSV file: fields are separated by commas, or where its first line has none, by ; or tabs or |.

    Raises:
        ConfigError: the first line is not CSV.
    """
    begin = cast(io.BufferedReader, stream).peek(1)
    line = begin.partition(b"\n")[0]
    tabs = file.name.lower().removesuffix(".gz").endswith(".tsv")
    mark = "\t" if tabs else next((one for one in ",;\t|" if one.encode() in line), ",")
    rows = csv.DictReader(io.TextIOWrapper(stream, "utf-8-sig", newline=""), delimiter=mark, strict=True)
    try:
        rows.fieldnames = [name.strip() for name in rows.fieldnames or ()]
    except csv.Error as error:
        raise ConfigError(f"{named(file)}:1 is not CSV: {error}") from error
    return rows


def _read_parquet(settings: DataSettings, left_out: LeftOut) -> Iterator[RawDocument]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("parquet: sources need pyarrow; install the extra `echelon[data]`") from error
    for file in matching_files(settings):
        number = 0
        try:
            table = ParquetFile(file)
            # Only these: another column may hold what Python has no value for, such as a date in the year 20000.
            there = table.schema_arrow.names
            columns = [name for name in there if name in named_fields(settings, there)]
            _check_columns(settings, file, there, columns)
            for batch in table.iter_batches(batch_size=256, columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield from _taken(settings, row, f"{named(file)}:{number}", named(file), left_out)
            left_out.read_bytes += file.stat().st_size
        except (ArrowException, OSError, ValueError, OverflowError) as error:
            left_out.refuse(
                ConfigError(f"{named(file)} cannot be read as Parquet (after row {number}): {error}")
            )


def _check_columns(settings: DataSettings, file: Path, there: list[str], columns: list[str]) -> None:
    """Refuse a Parquet file none of whose columns is asked for, or one of whose is there twice."""
    if len(set(columns)) < len(columns):
        raise ConfigError(
            f"{named(file)} has two columns of one name among {', '.join(columns)}; rename one of them"
        )
    if not columns:
        field_of(
            dict.fromkeys(there),
            settings.messages_field or settings.prompt_field or settings.text_field,
            named(file),
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
        yield from _taken(settings, row, f"{name}:{number}", name, left_out)


def _taken(settings: DataSettings, row: Any, where: str, domain: str, left_out: LeftOut) -> list[RawDocument]:
    """The documents of a row; none of one that is refused, which is counted."""
    try:
        return list(_row(settings, row, where, domain, left_out))
    except ConfigError as error:
        left_out.refuse(error)
        return []


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
        domain = _whole(str(field_of(row, settings.domain_field, where)), mended)
    content: str | Completion | Conversation | tuple[Turn, ...]
    try:
        read = conversation_of(settings, row, where)
    except NoConversation as error:
        left_out.rows[error.reason] += 1
        return
    if read is None:
        content = _whole(_text(row, settings.text_field, where), mended)
        if not content.strip():
            left_out.rows[EMPTY] += 1
            return
    else:
        content = read.mended(lambda text: _whole(text, mended))
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


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = field_of(row, name, where)
    if not isinstance(value, str):
        raise ConfigError(f"{where}: field {name!r} is {kind_of(value)}, expected text")
    return value


def _label(row: Mapping[str, Any], name: str, where: str) -> str:
    value = field_of(row, name, where)
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise ConfigError(f"{where}: label {name!r} is {kind_of(value)}, expected text or an integer")
