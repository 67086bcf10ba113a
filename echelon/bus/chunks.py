"""Large payloads as chunks: no asyncio, no I/O.

A payload travels as chunk records of `CHUNK` bytes (the last one shorter), followed by one **manifest**: an
ordinary message that its writer makes, naming the transfer, its length and its SHA-256. A transfer without a
manifest is a crash, and is never completed. Chunk records have these headers, in this order and no others:

    kind      b"chunk"
    transfer  16 bytes: the id that the manifest names. Its writer makes it by `Payload.of`: the start of
              SHA-256("echelon transfer v1" || 0 || canonical MessagePack of [context, SHA-256 of the payload]).
              So a repeat is the same bytes again. A reader compares ids, and never makes one.
    index     u32, from 0
    total     u32, number of chunks: at least 1, as an empty payload is one empty chunk
    length    u64, bytes of the payload
    sha256    32 bytes: SHA-256("echelon/chunk/v1" || 0 || each of topic, key, and names and values of the
              other headers with its u32 length before it || value)

Integers are big-endian. `sha256` finds a change in any byte of one record at that record.

On the exchange one writer alone may write a topic, and that is all: who wrote a chunk is said by the signature of
the manifest. A boundary's topics have many writers. There a chunk says itself whose it is, by three headers more:

    scope      16 bytes, before `sha256`: what `order` counts in; zeros, or the id of a session
    order      u64, behind it: never falls from one transfer of the sender to the next of the same scope
    signature  64 bytes, the last header: of the sender, over "echelon boundary chunk v1" || 0 || u32 length of
               the run's id || the id || u32 partition || `sha256`

So a transfer belongs to its sender, and an old chunk that somebody sends again is known to be old.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from echelon.bus.base import Headers, Outgoing, Record, TopicPartition
from echelon.errors import EchelonError
from echelon.messages.exchange import Payload

CHUNK = 512 * 1024
"""Bytes of payload in one chunk record."""

OVERHEAD = 256
"""At most so many bytes of headers does a chunk record have."""

MAX_LENGTH = CHUNK * (2**32 - 1)
"""Longest payload: the number of chunks is a u32."""

TransferId = NewType("TransferId", bytes)

NO_SCOPE = bytes(16)
"""The scope of transfers outside of sessions."""

_KIND = ("kind", b"chunk")
_PLAIN = (("kind", 5), ("transfer", 16), ("index", 4), ("total", 4), ("length", 8), ("sha256", 32))
_SIGNED = (*_PLAIN[:-1], ("scope", 16), ("order", 8), ("sha256", 32), ("signature", 64))
_SIGNED_TAG = b"echelon boundary chunk v1\0"


class ChunkFault(Enum):
    """Why a chunk, or the completion of a transfer, was refused."""

    CORRUPT = "corrupt"
    """The record is not a chunk, its headers are not as they must be, or a byte of it was changed."""
    DIFFERS = "differs"
    """The same transfer was sent with another content, size or place before: a fork."""
    TOO_LARGE = "too_large"
    """The payload is larger than one sender may have open."""
    TOO_MANY_OPEN = "too_many_open"
    """The transfer was dropped to keep within the bounds."""
    OUT_OF_RANGE = "out_of_range"
    """Index, total, length and size of the value do not fit together."""
    UNKNOWN_TRANSFER = "unknown_transfer"
    """The sender has no such transfer open."""
    INCOMPLETE = "incomplete"
    """Chunks are missing."""
    DIGEST_MISMATCH = "digest_mismatch"
    """The payload is not the one that the manifest names."""


class ChunkError(EchelonError):
    """A chunk or a manifest was refused. `fault` says why."""

    def __init__(self, fault: ChunkFault, message: str) -> None:
        super().__init__(f"{message} ({fault.value})")
        self.fault = fault


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a manifest has to say about a payload. `sha256` is that of the payload, 32 bytes."""

    id: TransferId
    length: int
    sha256: bytes

    @property
    def total(self) -> int:
        """Number of chunks."""
        return chunks_of(self.length)


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose chunks they are, and where their transfer stands among those of its sender.

    Attributes:
        run: the run's id.
        sign: makes the sender's Ed25519 signature, 64 bytes.
        scope: what `order` counts in, 16 bytes.
        order: u64; never falls from one transfer of the sender to the next of the same scope.
    """

    run: bytes
    sign: Callable[[bytes], bytes]
    scope: bytes = NO_SCOPE
    order: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A transfer that was dropped to keep within the bounds; its manifest cannot be answered from memory.

    The log still has it: whoever needs it reads on from `first_offset` with an assembler of its own.
    """

    sender: bytes
    id: TransferId
    at: TopicPartition
    first_offset: int
    open_bytes: int


def chunks_of(length: int) -> int:
    """Number of chunks of a payload of `length` bytes."""
    return max(1, -(-length // CHUNK))


def transfer_of(payload: bytes | bytearray | memoryview, context: bytes) -> Transfer:
    """Name the transfer of a payload, by the id that `Payload.of` makes.

    Args:
        payload: the bytes; a memoryview must be contiguous.
        context: what the payload is sent for (run, topic, window, sender, ...), in any unambiguous encoding.
            Another context makes another transfer of the same payload.

    Raises:
        ChunkError: TOO_LARGE: the payload is longer than `MAX_LENGTH`.
    """
    length = memoryview(payload).nbytes
    if length > MAX_LENGTH:
        raise ChunkError(ChunkFault.TOO_LARGE, f"a payload has {length} bytes, {MAX_LENGTH} can be sent")
    described = Payload.of(memoryview(payload).cast("B"), context)
    return Transfer(TransferId(described.transfer), described.length, described.sha256)


def to_chunks(
    payload: bytes | bytearray | memoryview,
    transfer: Transfer,
    *,
    topic: str,
    key: bytes,
    partition: int = 0,
    origin: Origin | None = None,
) -> Iterator[Outgoing]:
    """The chunk records of a payload, in order. Each is made, and the payload's part copied, when asked for.

    Args:
        payload: the payload that `transfer` was made of.
        transfer: what the manifest says of it.
        topic: where the chunks and the manifest go.
        key: the key of all of them: the sender's.
        partition: likewise.
        origin: who signs them; None on the exchange, whose chunks are not signed.
    """
    view = memoryview(payload).cast("B")
    for index in range(transfer.total):
        value = bytes(view[index * CHUNK : (index + 1) * CHUNK])
        headers: Headers = (
            _KIND,
            ("transfer", transfer.id),
            ("index", struct.pack(">I", index)),
            ("total", struct.pack(">I", transfer.total)),
            ("length", struct.pack(">Q", transfer.length)),
        )
        if origin is not None:
            headers = (*headers, ("scope", origin.scope), ("order", struct.pack(">Q", origin.order)))
        digest = _digest(topic, key, headers, value)
        headers = (*headers, ("sha256", digest))
        if origin is not None:
            signed = _signed_bytes(origin.run, partition, digest)
            headers = (*headers, ("signature", origin.sign(signed)))
        yield Outgoing(topic, value, key, headers, partition)


def _signed_bytes(run: bytes, partition: int, digest: bytes) -> bytes:
    return _SIGNED_TAG + _framed(run) + struct.pack(">I", partition) + digest


def is_chunk(record: Record) -> bool:
    """Whether the record claims to be a chunk. Whatever does not is for the message codec to judge."""
    return _KIND in record.headers


@dataclass(frozen=True, slots=True)
class Chunk:
    """What the headers of one chunk say, held against its bytes.

    Attributes:
        id: of its transfer.
        index: from 0.
        total: chunks of the transfer.
        length: bytes of the payload.
        scope: as in `Origin`; so is `order`.
        digest: SHA-256 over everything else in the record, the signature excepted.
        partition: where the record stands.
        signature: the sender's, 64 bytes; empty for a chunk that is not signed.
    """

    id: TransferId
    index: int
    total: int
    length: int
    scope: bytes
    order: int
    digest: bytes
    partition: int
    signature: bytes

    def signed_bytes(self, run: bytes) -> bytes:
        """The bytes that its sender has signed."""
        return _signed_bytes(run, self.partition, self.digest)


def read_chunk(record: Record, *, signed: bool = False) -> Chunk:
    """Read a chunk and hold its headers against its bytes. Its signature is not checked here.

    Args:
        record: for which `is_chunk` holds.
        signed: whether it must be one that is signed; otherwise it must be one that is not.

    Raises:
        ChunkError: CORRUPT or OUT_OF_RANGE.
    """
    where = f"chunk {record.topic}/{record.partition}@{record.offset}"
    values = dict(record.headers)
    shape = tuple((name, len(value)) for name, value in record.headers)
    if shape != (_SIGNED if signed else _PLAIN):
        kind = "a signed chunk" if signed else "a chunk"
        raise ChunkError(ChunkFault.CORRUPT, f"{where}: its headers are not those of {kind}")
    covered = record.headers[: -2 if signed else -1]
    if (
        values["kind"] != b"chunk"
        or _digest(record.topic, record.key, covered, record.value) != values["sha256"]
    ):
        raise ChunkError(ChunkFault.CORRUPT, f"{where}: its bytes were changed after it was written")
    index, total = struct.unpack(">II", values["index"] + values["total"])
    (length,) = struct.unpack(">Q", values["length"])
    if length > MAX_LENGTH or total != chunks_of(length) or index >= total:
        raise ChunkError(ChunkFault.OUT_OF_RANGE, f"{where}: chunk {index} of {total} for {length} bytes")
    expected = min(CHUNK, length - index * CHUNK)
    if len(record.value) != expected:
        raise ChunkError(ChunkFault.OUT_OF_RANGE, f"{where}: {len(record.value)} bytes, not {expected}")
    return Chunk(
        id=TransferId(values["transfer"]),
        index=index,
        total=total,
        length=length,
        scope=values.get("scope", NO_SCOPE),
        order=int.from_bytes(values.get("order", b""), "big"),
        digest=values["sha256"],
        partition=record.partition,
        signature=values.get("signature", b""),
    )


def _framed(part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + part


def _digest(topic: str, key: bytes, headers: Headers, value: bytes) -> bytes:
    hashed = hashlib.sha256(b"echelon/chunk/v1\0" + _framed(topic.encode()) + _framed(key))
    for name, content in headers:
        hashed.update(_framed(name.encode()) + _framed(content))
    hashed.update(value)
    return hashed.digest()
