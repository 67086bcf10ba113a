"""The files of a source: which they are, and their bytes, unpacked and counted."""

from __future__ import annotations

import glob
import gzip
import io
import itertools
import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from echelon.config.training import DataSettings
from echelon.errors import ConfigError

_BUFFER = 1 << 20
SUFFIXES = {
    "text": (".txt", ".md", ".text", ".rst"),
    "jsonl": (".jsonl", ".json", ".ndjson"),
    "csv": (".csv", ".tsv"),
    "parquet": (".parquet",),
}
"""Files of a folder that are read when the folder alone is named; each also with .gz behind it, but for Parquet."""

GZIP = b"\x1f\x8b"
UTF16 = (b"\xff\xfe", b"\xfe\xff")
UTF32 = b"\xff\xfe\0\0"


class ByteCount(Protocol):
    """Counts the bytes of files that were read, as they lie on the disk."""

    read_bytes: int


def named(file: Path) -> str:
    """A file's name as text: bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(file.as_posix()).decode("utf-8", "backslashreplace")


def matching_files(settings: DataSettings) -> list[Path]:
    """The files that a source names: one file exactly, all suitable files of a folder, or those of a pattern."""
    path = Path(settings.location).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        suffixes = SUFFIXES[settings.kind]
        wanted = (*suffixes, *(suffix + ".gz" for suffix in suffixes))
        files = _whole_files(
            file
            for file in path.rglob("*")
            if file.name.lower().endswith(wanted)
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
        if not files:
            raise ConfigError(
                f"data source {settings.source!r}: the folder has no file that ends with {', '.join(wanted)}; name the "
                "files by a pattern"
            )
        return files
    if path.exists():
        raise ConfigError(
            f"data source {settings.source!r} is no regular file and no folder; name one of them"
        )
    files = _whole_files(map(Path, glob.glob(str(path), recursive=True)))
    if not files:
        raise ConfigError(
            f"data source {settings.source!r} matches no file (looked from {Path.cwd()}); check the pattern"
        )
    return files


def base_folder(settings: DataSettings) -> Path:
    """The folder in which a source's files are told apart: itself, a file's, or what stands before the wildcards."""
    path = Path(settings.location).expanduser()
    if path.is_dir():
        return path
    fixed = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parent.parts))
    return path.parent if path.is_file() else fixed


def _whole_files(found: Iterable[Path]) -> list[Path]:
    """The files among paths, in order, each once: links may lead to a folder that is walked already."""
    files: dict[str, Path] = {}
    for path in sorted(found):
        if path.is_symlink() and not path.exists():
            raise ConfigError(f"{named(path)} is a link that leads nowhere; remove it, or put its file there")
        if path.is_file():
            files.setdefault(os.path.realpath(path), path)
    return sorted(files.values())


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """What reading a file may raise becomes one sentence that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{named(file)} is not UTF-8 text ({error.reason} at byte {error.start}); convert it or leave it out"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{named(file)} is no whole gzip file ({error}); fetch or pack it again") from error
    except OSError as error:
        raise ConfigError(f"{named(file)} cannot be read: {error.strerror or error}") from error


class _Counted(io.FileIO):
    """A file that tells how much of it was read."""

    def __init__(self, file: Path, reader: ByteCount) -> None:
        super().__init__(file)
        self._reader = reader

    def readinto(self, buffer: Any) -> int:
        found = super().readinto(buffer) or 0
        self._reader.read_bytes += found
        return found


@contextmanager
def unpacked_bytes(file: Path, reader: ByteCount) -> Iterator[BinaryIO]:
    """A file's bytes, unpacked if they are gzip's, whatever its name is.

    Raises:
        ConfigError: it is UTF-16 or UTF-32 text.
    """
    with io.BufferedReader(_Counted(file, reader), _BUFFER) as raw:
        if raw.peek(2)[:2] == GZIP:
            with gzip.open(raw, "rb") as unpacked:
                yield _utf8(file, io.BufferedReader(unpacked, _BUFFER))
        else:
            yield _utf8(file, raw)


def _utf8(file: Path, stream: io.BufferedReader[Any]) -> BinaryIO:
    """The stream, unless it begins as UTF-16 does."""
    begin = stream.peek(4)[:4]
    if begin[:2] in UTF16:
        form = "UTF-32" if begin == UTF32 else "UTF-16"
        raise ConfigError(
            f"{named(file)} is {form} text, and UTF-8 is read; convert it (iconv -f {form} -t UTF-8)"
        )
    return cast(BinaryIO, stream)
