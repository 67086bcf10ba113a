"""Read documents: whole files or rows, each with an id that is the same on every machine, and a domain."""

from __future__ import annotations

import glob
import json
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from echelon.config.training import DataSettings
from echelon.errors import ConfigError

MAX_ROW_BYTES = 64 << 20
MAX_TURNS = 1024
_TEST_FOLDERS = frozenset({"test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class RawDocument:
    """A text or a conversation. `id` is unique in its source; `domain` is what partitions group by.

    `label` is the class of a text, where there are such.
    """

    id: str
    domain: str
    content: str | tuple[Turn, ...]
    label: str | None = None


def read_source(settings: DataSettings) -> list[RawDocument]:
    """The first `max_documents` non-empty documents of the source, in a fixed order.

    Raises `ConfigError` for a source that cannot be read, a row that lacks a field, or no document at all.
    """
    readers = {
        "stdlib": _read_stdlib,
        "text": _read_text,
        "jsonl": _read_jsonl,
        "parquet": _read_parquet,
        "hf": _read_hf,
    }
    documents = list(islice(readers[settings.kind](settings), settings.max_documents))
    if not documents:
        raise ConfigError(
            f"data source {settings.source!r} has no non-empty document; name files or packages that have "
            f"text"
        )
    return documents


def _read_stdlib(settings: DataSettings) -> Iterator[RawDocument]:
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in settings.location.split("+"):
        if not all(part.isidentifier() for part in name.split(".")):
            raise ConfigError(f"data source {settings.source!r}: {name!r} is not a module name")
        folder = root.joinpath(*name.split("."))
        files = [folder.with_suffix(".py")] if not folder.is_dir() else sorted(folder.rglob("*.py"))
        files = [file for file in files if file.is_file()]
        if not files:
            raise ConfigError(
                f"data source {settings.source!r}: this Python has no sources of {name!r} below {root}; "
                f"leave "
                "it out, or install the full standard library"
            )
        for file in files:
            relative = file.relative_to(root)
            if _TEST_FOLDERS.isdisjoint(relative.parts[:-1]):
                # A few encoding tables are not UTF-8; replacement characters do no harm to a corpus of code.
                text = file.read_text("utf-8", errors="replace")
                if text.strip():
                    yield RawDocument(relative.as_posix(), name, text)


def _matching_files(settings: DataSettings) -> list[Path]:
    pattern = str(Path(settings.location).expanduser())
    files = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    files = [file for file in files if file.is_file()]
    if not files:
        raise ConfigError(
            f"data source {settings.source!r} matches no file (looked from {Path.cwd()}); check the pattern"
        )
    return files


def _read_text(settings: DataSettings) -> Iterator[RawDocument]:
    files = _matching_files(settings)
    # Files of several folders: the folder is the domain. Files of one folder: each file is its own.
    by_folder = len({file.parent for file in files}) > 1
    for file in files:
        text = _utf8(file)
        if text.strip():
            yield RawDocument(file.as_posix(), (file.parent if by_folder else file).as_posix(), text)


def _utf8(file: Path) -> str:
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text ({error}); convert it or leave it out") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error


def _read_jsonl(settings: DataSettings) -> Iterator[RawDocument]:
    for file in _matching_files(settings):
        with file.open("rb") as lines:
            for number in range(1, 1 << 62):
                line = lines.readline(MAX_ROW_BYTES + 1)
                if not line:
                    break
                where = f"{file.as_posix()}:{number}"
                if len(line) > MAX_ROW_BYTES:
                    raise ConfigError(f"{where}: the line is longer than {MAX_ROW_BYTES} bytes")
                if line.strip():
                    try:
                        row = json.loads(line)
                    except (ValueError, RecursionError) as error:
                        raise ConfigError(f"{where} is not JSON: {error}") from error
                    yield from _row(settings, row, where, file.as_posix())


def _read_parquet(settings: DataSettings) -> Iterator[RawDocument]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ConfigError("parquet: sources need pyarrow; install the extra `echelon[data]`") from error
    for file in _matching_files(settings):
        number = 0
        try:
            for batch in ParquetFile(file).iter_batches(batch_size=256):
                for row in batch.to_pylist():
                    number += 1
                    yield from _row(settings, row, f"{file.as_posix()}:{number}", file.as_posix())
        except (ArrowInvalid, OSError) as error:
            raise ConfigError(f"{file} cannot be read as Parquet: {error}") from error


def _read_hf(settings: DataSettings) -> Iterator[RawDocument]:
    name, _, rest = settings.location.partition(":")
    config, _, split = rest.partition(":")
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ConfigError("hf: sources need datasets; install the extra `echelon[data]`") from error
    try:
        rows: Iterable[Any] = load_dataset(name, config or None, split=split or "train")
    except Exception as error:  # the library raises many unrelated types for one cause: it is not there
        raise ConfigError(
            f"data source {settings.source!r} cannot be loaded: {type(error).__name__}: {error}. Check name, "
            "configuration and split; without a network, fill the datasets cache first or use jsonl: or "
            "parquet:"
        ) from error
    for number, row in enumerate(rows, 1):
        yield from _row(settings, row, f"{name}:{number}", name)


def _row(settings: DataSettings, row: Any, where: str, domain: str) -> Iterator[RawDocument]:
    """The document of one row, or none if it is empty."""
    if not isinstance(row, Mapping):
        raise ConfigError(f"{where} is not an object with fields")
    label = None
    if settings.label_field is not None:
        label = domain = _label(row, settings.label_field, where)
    if settings.domain_field is not None:
        domain = str(_field(row, settings.domain_field, where))
    if settings.messages_field is not None:
        turns = _turns(_field(row, settings.messages_field, where), where)
    elif settings.prompt_field is not None and settings.answer_field is not None:
        prompt = _text(row, settings.prompt_field, where)
        turns = (Turn("user", prompt), Turn("assistant", _text(row, settings.answer_field, where)))
    else:
        text = _text(row, settings.text_field, where)
        if text.strip():
            yield RawDocument(where, domain, text, label)
        return
    if any(turn.role == "assistant" and turn.content.strip() for turn in turns):
        yield RawDocument(where, domain, turns)


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


def _turns(value: Any, where: str) -> tuple[Turn, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > MAX_TURNS:
        raise ConfigError(f"{where}: a conversation is a list of at most {MAX_TURNS} messages")
    turns = []
    for message in value:
        if not isinstance(message, Mapping):
            raise ConfigError(f"{where}: a message is an object with `role` and `content`")
        turns.append(Turn(_text(message, "role", where), _text(message, "content", where)))
    return tuple(turns)
