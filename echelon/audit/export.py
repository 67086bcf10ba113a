"""The folder format of exported topics, as bytes: one file for each topic and an index.

A topic's file is `MAGIC`, then records in offset order. A record is the u32 length of the rest, then u64
offset, i64 timestamp (ms), key, u32 number of headers, name and value of each, value; key, names and values
with a u32 length before them. Integers are big-endian, names UTF-8. `index.json` is a JSON object with
`format` and `topics`, a list of objects with `topic`, `file`, `records` and `bytes`; nothing in it is
trusted, a verifier reads the files.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from echelon.audit.records import MAX_RECORD_BYTES, Damaged, LogRecord, StoredRecord
from echelon.errors import CodecError

MAGIC = b"echelon export v1\n"
INDEX_FILE = "index.json"
FORMAT = "echelon.export.v1"
MAX_TOPICS = 4096
MAX_INDEX_BYTES = 8 << 20
"""Largest index that is read: a line of it has fewer than 1,000 bytes."""
MAX_FRAME = MAX_RECORD_BYTES + 4096
"""Largest record that is read; a topic's own limit is checked by the verifier."""
_TOPIC = re.compile(r"[a-zA-Z0-9._-]{1,249}", re.ASCII)


class Readable(Protocol):
    """Something that bytes are read from, like an open file."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place of the stream; with `whence` 1, so many bytes on from here."""


@dataclass(frozen=True, slots=True)
class ExportedTopic:
    """A line of the index: the topic, its file's name, number of records and bytes of the file."""

    topic: str
    file: str
    records: int
    bytes: int


def topic_file(topic: str) -> str:
    """The name of a topic's file.

    Raises:
        CodecError: a name that no topic of the exchange has.
    """
    if not _TOPIC.fullmatch(topic) or topic in (".", ".."):
        raise CodecError(f"{topic[:80]!r} is not the name of a topic")
    return f"{topic}.records"


def _framed(part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + part


def encode_record(record: LogRecord) -> bytes:
    """One record with its length in front."""
    headers = b"".join(
        _framed(name.encode("utf-8", "surrogatepass")) + _framed(value) for name, value in record.headers
    )
    body = (
        struct.pack(">Qq", record.offset, record.timestamp_ms)
        + _framed(record.key)
        + struct.pack(">I", len(record.headers))
        + headers
        + _framed(record.value)
    )
    return _framed(body)


def encode_topic(records: Iterable[LogRecord]) -> Iterator[bytes]:
    """The pieces of a topic's file."""
    yield MAGIC
    for record in records:
        yield encode_record(record)


def read_topic(topic: str, stream: Readable, start: int = 0) -> Iterator[LogRecord | Damaged]:
    """The records of a topic's file; what cannot be read ends it with a `Damaged`.

    Records below offset `start` are skipped by their lengths, and not looked into.

    Args:
        topic: name that the records get.
        stream: the file, opened for bytes, at its beginning.
        start: offset of the first record that is wanted.
    """
    offset = 0
    if stream.read(len(MAGIC)) != MAGIC:
        yield Damaged(topic, offset, "the file does not begin like an exported topic")
        return
    while head := stream.read(4):
        size = int.from_bytes(head, "big")
        if len(head) < 4 or size > MAX_FRAME:
            yield Damaged(
                topic, offset, "the length of a record is cut off or too large; nothing after it was read"
            )
            return
        place = stream.read(8) if start else b""
        if len(place) == 8 and size >= 8 and int.from_bytes(place, "big") < start:
            stream.seek(size - 8, 1)
            continue
        try:
            record = _record(topic, place + stream.read(size - len(place)), size)
        except (ValueError, struct.error) as error:
            yield Damaged(topic, offset, f"not a record ({error}); nothing after it was read")
            return
        yield record
        offset = record.offset + 1


def _record(topic: str, body: bytes, size: int) -> StoredRecord:
    if len(body) != size:
        raise ValueError("the file ends in the middle of it")
    offset, timestamp = struct.unpack_from(">Qq", body)
    place = 16

    def take() -> bytes:
        nonlocal place
        (length,) = struct.unpack_from(">I", body, place)
        start = place + 4
        place = start + length
        if place > size:
            raise ValueError("a part is longer than the record")
        return body[start:place]

    key = take()
    (count,) = struct.unpack_from(">I", body, place)
    place += 4
    headers = []
    for _ in range(count):
        name = take().decode("utf-8", "surrogatepass")
        headers.append((name, take()))
    value = take()
    if place != size:
        raise ValueError("bytes follow its value")
    return StoredRecord(
        topic=topic, offset=offset, key=key, value=value, headers=tuple(headers), timestamp_ms=timestamp
    )


def encode_index(topics: Sequence[ExportedTopic]) -> bytes:
    """The bytes of `index.json`."""
    return (
        json.dumps({"format": FORMAT, "topics": [asdict(topic) for topic in topics]}, indent=2).encode()
        + b"\n"
    )


def read_index(data: bytes) -> tuple[str, ...]:
    """The topics that an index names; file names follow from them (`topic_file`).

    Raises:
        CodecError: not an index of this format.
    """
    try:
        index = json.loads(data)
        names = [topic["topic"] for topic in index["topics"]] if index["format"] == FORMAT else None
        if not all(isinstance(name, str) for name in names or ()):
            names = None
    except (ValueError, KeyError, TypeError, RecursionError):
        names = None
    if names is None or len(names) > MAX_TOPICS or len(set(names)) != len(names):
        raise CodecError(f"{INDEX_FILE} is not the index of an export in the format {FORMAT}")
    for name in names:
        topic_file(name)
    return tuple(names)
