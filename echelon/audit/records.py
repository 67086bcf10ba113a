"""Records of the exchange as the audit sees them: chunks of a payload, and manifests in their one form.

A chunk's headers carry a SHA-256 over everything else in its record, so a changed byte is found at that very
record; a manifest's key and headers follow from its content, and its value is signed. The chunk format is the
bus's; it is read here by code of its own, because a verifier must not trust the writer's.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from echelon.laws.hashing import Digest, Sha256
from echelon.messages.envelope import EXCHANGE_TYPE, MAX_DSSE_BYTES, Dsse, Signer
from echelon.messages.exchange import EXCHANGE
from echelon.messages.wire import Message, Reason, Refused

Headers = tuple[tuple[str, bytes], ...]

CHUNK_BYTES = 512 * 1024
MAX_RECORD_BYTES = CHUNK_BYTES + 4096
"""Largest record on the exchange: a chunk and its key and headers."""
_CHUNK_HEADERS = ("kind", "transfer", "index", "total", "length", "sha256")
_CHUNK_TAG = b"echelon/chunk/v1\x00"
_CHUNK_SIZES = (5, 16, 4, 4, 8, 32)
_PAYLOAD_TYPES = {
    EXCHANGE_TYPE.format(kind=kind, version=version): (kind, version)
    for kind, version in (*((m.kind, m.revision) for m in EXCHANGE), *EXCHANGE.former)
}
"""What may cross, and what an earlier protocol let cross: that is refused in words."""


class LogRecord(Protocol):
    """A record as it stands in a log; the bus's `Record` is one."""

    @property
    def topic(self) -> str:
        """Name of the topic."""

    @property
    def offset(self) -> int:
        """Place in the topic; ascending, may have gaps."""

    @property
    def key(self) -> bytes:
        """The key."""

    @property
    def value(self) -> bytes:
        """The value."""

    @property
    def headers(self) -> Headers:
        """Names and values, in order."""

    @property
    def timestamp_ms(self) -> int:
        """Advisory wall-clock time; covered by nothing."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A record that was read from an export, or is about to be written."""

    topic: str
    offset: int
    key: bytes
    value: bytes
    headers: Headers
    timestamp_ms: int = 0


@dataclass(frozen=True, slots=True)
class Damaged:
    """What stands where a record should be and cannot be read as one: a finding, not a record."""

    topic: str
    offset: int
    detail: str
    cut: bool = False
    """Whether it stands for everything that the topic had before its first record."""
    first: int = 0
    """Where `cut`: the first offset that is kept."""


class ManifestRecord(NamedTuple):
    """Key, headers and value of a manifest's record, as they must be."""

    key: bytes
    headers: Headers
    value: bytes


@dataclass(frozen=True, slots=True)
class CrossingChunk:
    """A verified chunk: part `index` of `total` of a transfer of `length` bytes; `digest` covers its
    record."""

    transfer: bytes
    index: int
    total: int
    length: int
    digest: bytes
    data: bytes


def _joined(parts: Iterable[bytes]) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def _text(value: str) -> bytes:
    # A log from elsewhere may hold names that are no valid Unicode; they must hash, not raise.
    return value.encode("utf-8", "surrogatepass")


def _named(headers: Headers) -> Iterable[bytes]:
    for name, value in headers:
        yield _text(name)
        yield value


def _names(headers: Headers) -> tuple[str, ...]:
    return tuple(name for name, _ in headers)


def _sizes(headers: Headers) -> tuple[int, ...]:
    return tuple(len(value) for _, value in headers)


def is_chunk(record: LogRecord) -> bool:
    """Whether the record says that it is a chunk."""
    return bool(record.headers) and record.headers[0] == ("kind", b"chunk")


def read_chunk(record: LogRecord, begun: Digest | None = None) -> CrossingChunk:
    """Read and verify one chunk record.

    Args:
        record: of which `is_chunk` holds.
        begun: what `begin_chunk` gave for this very record; None: the digest is computed here.

    Raises:
        Refused: other headers than a chunk's, numbers that cannot be, or the digest does not cover the
            record.
    """
    headers = record.headers
    if _names(headers) != _CHUNK_HEADERS:
        raise Refused(Reason.BAD_FIELD, "the headers are not those of a chunk")
    if _sizes(headers) != _CHUNK_SIZES:
        raise Refused(Reason.BAD_FIELD, "a header of a chunk has another length than it must")
    transfer, digest = headers[1][1], headers[5][1]
    index, total, length = (int.from_bytes(value, "big") for _, value in headers[2:5])
    if begun is None:
        begun = _begin(hashlib.sha256, record.topic, record.key, headers[:5], record.value)
    if begun.digest() != digest:
        raise Refused(
            Reason.BAD_TRANSFER, "the record was changed: it does not have the SHA-256 in its headers"
        )
    size = min(CHUNK_BYTES, length - index * CHUNK_BYTES)
    if index >= total or total != max(1, -(-length // CHUNK_BYTES)) or len(record.value) != size:
        raise Refused(
            Reason.BAD_TRANSFER,
            f"chunk {index} of {total} with {len(record.value)} of {length} bytes cannot be",
        )
    return CrossingChunk(
        transfer=transfer, index=index, total=total, length=length, digest=digest, data=record.value
    )


def chunk_digest(topic: str, key: bytes, headers: Headers, value: bytes) -> bytes:
    """SHA-256 over topic, key, the headers before the digest, and value: the last header of a chunk.

    Args:
        topic: where the chunk stands.
        key: the record's key.
        headers: those before the digest, in their order.
        value: the chunk's bytes.
    """
    return _begin(hashlib.sha256, topic, key, headers, value).digest()


def begin_chunk(record: LogRecord, sha256: Sha256) -> Digest | None:
    """Begin the digest that `read_chunk` will compare; None if the record does not have the form of a chunk.

    Args:
        record: any record.
        sha256: who computes it.
    """
    headers = record.headers
    if not is_chunk(record) or _names(headers) != _CHUNK_HEADERS or _sizes(headers) != _CHUNK_SIZES:
        return None
    return _begin(sha256, record.topic, record.key, headers[:5], record.value)


def _begin(sha256: Sha256, topic: str, key: bytes, headers: Headers, value: bytes) -> Digest:
    parts = (_text(topic), key, *_named(headers))
    digest = sha256()
    digest.update(_CHUNK_TAG + b"".join(len(part).to_bytes(4, "big") + part for part in parts))
    digest.update(value)
    return digest


def record_hash(record: LogRecord, chunk: CrossingChunk | None = None) -> bytes:
    """SHA-256 that stands for topic, key, headers and value of a record (not its offset or time), 32 bytes.

    For a chunk that was verified its own digest covers all of that, so its bytes are not hashed a second
    time.
    """
    if chunk is not None:
        return hashlib.sha256(b"echelon chunk record v1\x00" + chunk.digest).digest()
    count = struct.pack(">I", len(record.headers))
    parts = (_text(record.topic), record.key, count, *_named(record.headers), record.value)
    return hashlib.sha256(b"echelon record v1\x00" + _joined(parts)).digest()


def manifest_record(signer: Signer, message: Message, run: bytes) -> ManifestRecord:
    """The record of a signed manifest: the run's id as key, the kind as its one header, the envelope as
    value.

    Args:
        signer: the controller's key.
        message: the manifest.
        run: the run's id, 16 bytes.

    Raises:
        Refused: the manifest is larger than what may cross.
    """
    return _form(message.kind, run, Dsse.seal_message(signer, message).encode())


def _form(kind: str, run: bytes, value: bytes) -> ManifestRecord:
    return ManifestRecord(run, (("kind", kind.encode()),), value)


def read_manifest(record: LogRecord) -> tuple[Dsse, Message]:
    """Read a manifest record; its signature is not checked yet.

    Raises:
        Refused: not the canonical envelope of a message of the exchange, or key and headers are not those
            that go with it.
    """
    envelope = Dsse.decode(record.value, limit=MAX_DSSE_BYTES)
    named = _PAYLOAD_TYPES.get(envelope.payload_type)
    if named is None:
        raise Refused(Reason.UNKNOWN_TYPE, f"{envelope.payload_type[:80]!r} may not cross")
    kind = EXCHANGE.find(*named)
    message = kind.decode(envelope.payload, limit=kind.largest)
    run = getattr(message, "run", None)
    if not isinstance(run, bytes) or (record.key, record.headers) != _form(message.kind, run, b"")[:2]:
        raise Refused(Reason.BAD_FIELD, f"key or headers are not those of this {message.kind}")
    return envelope, message
