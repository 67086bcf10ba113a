"""Large payloads as chunks: no asyncio, no I/O.

A payload travels as chunk records of `CHUNK` bytes (the last one shorter), followed by one **manifest**: an
ordinary message that its writer makes, naming the transfer, its length and its SHA-256. A transfer without a
manifest is a crash, and is never completed. Chunk records have these headers, in this order and no others:

    kind      b"chunk"
    transfer  16 bytes: the start of SHA-256("echelon/transfer/v1" || 0 || u32 length of the context ||
              context || u64 payload length || SHA-256 of the payload). So a repeat is the same bytes again.
    index     u32, from 0
    total     u32, number of chunks: at least 1, as an empty payload is one empty chunk
    length    u64, bytes of the payload
    sha256    32 bytes: SHA-256("echelon/chunk/v1" || 0 || each of topic, key, and names and values of the
              other headers with its u32 length before it || value)

Integers are big-endian. The last header finds a change in any byte of one record at that record; it says
nothing about who wrote it, which the signature of the manifest does.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from echelon.bus.base import Headers, Outgoing, Record, TopicPartition
from echelon.errors import EchelonError

CHUNK = 512 * 1024
"""Bytes of payload in one chunk record."""

OVERHEAD = 256
"""At most so many bytes of headers does a chunk record have."""

MAX_LENGTH = CHUNK * (2**32 - 1)
"""Longest payload: the number of chunks is a u32."""

TransferId = NewType("TransferId", bytes)

_KIND = ("kind", b"chunk")
_SHAPE = (("kind", 5), ("transfer", 16), ("index", 4), ("total", 4), ("length", 8), ("sha256", 32))


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
    """Name the transfer of a payload.

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
    sha256 = hashlib.sha256(payload).digest()
    named = hashlib.sha256(b"echelon/transfer/v1\0" + _framed(context) + length.to_bytes(8, "big") + sha256)
    return Transfer(TransferId(named.digest()[:16]), length, sha256)


def split(
    payload: bytes | bytearray | memoryview,
    transfer: Transfer,
    *,
    topic: str,
    key: bytes,
    partition: int = 0,
) -> Iterator[Outgoing]:
    """The chunk records of a payload, in order. Each is made, and the payload's part copied, when asked for.

    Args:
        payload: the payload that `transfer` was made of.
        transfer: from `transfer_of`.
        topic: where the chunks and the manifest go.
        key: the key of all of them: the sender's.
        partition: likewise.
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
        digest = ("sha256", _digest(topic, key, headers, value))
        yield Outgoing(topic, value, key, (*headers, digest), partition)


def is_chunk(record: Record) -> bool:
    """Whether the record claims to be a chunk. Whatever does not is for the message codec to judge."""
    return _KIND in record.headers


@dataclass(frozen=True, slots=True)
class _Chunk:
    id: TransferId
    index: int
    total: int
    length: int


def _parse(record: Record) -> _Chunk:
    where = f"chunk {record.topic}/{record.partition}@{record.offset}"
    values = dict(record.headers)
    shape = tuple((name, len(value)) for name, value in record.headers)
    if shape != _SHAPE:
        raise ChunkError(ChunkFault.CORRUPT, f"{where}: its headers are not those of a chunk")
    if (
        values["kind"] != b"chunk"
        or _digest(record.topic, record.key, record.headers[:-1], record.value) != values["sha256"]
    ):
        raise ChunkError(ChunkFault.CORRUPT, f"{where}: its bytes were changed after it was written")
    index, total = struct.unpack(">II", values["index"] + values["total"])
    (length,) = struct.unpack(">Q", values["length"])
    if length > MAX_LENGTH or total != chunks_of(length) or index >= total:
        raise ChunkError(ChunkFault.OUT_OF_RANGE, f"{where}: chunk {index} of {total} for {length} bytes")
    expected = min(CHUNK, length - index * CHUNK)
    if len(record.value) != expected:
        raise ChunkError(ChunkFault.OUT_OF_RANGE, f"{where}: {len(record.value)} bytes, not {expected}")
    return _Chunk(TransferId(values["transfer"]), index, total, length)


class _Open:
    """A transfer that is being received."""

    __slots__ = ("at", "first_offset", "length", "missing", "number", "open_bytes", "parts")

    def __init__(self, chunk: _Chunk, record: Record, number: int) -> None:
        self.at = record.at
        self.first_offset = record.offset
        self.length = chunk.length
        self.missing = chunk.total
        self.number = number  # by age, among all senders
        self.open_bytes = 0
        # By index. Only what has come: a peer that announces 2^32 chunks and sends one must not cost more.
        self.parts: dict[int, bytes] = {}


class Assembler:
    """Puts chunks together again, in bounded memory whatever senders do.

    One transfer may have at most `max_open_bytes_per_sender` bytes. When a sender goes above its number or
    bytes of open transfers, its own oldest one is dropped; when all senders together go above
    `max_open_bytes_total`, the oldest of the sender with the most open bytes is. So a sender that never
    finishes harms itself before it harms others. An open chunk counts as its bytes, at least `OVERHEAD`.

    Args:
        max_open_bytes_per_sender: bytes.
        max_open_transfers_per_sender: number.
        max_open_bytes_total: bytes, over all senders.

    Raises:
        ValueError: a bound is too small for a single chunk, or for one sender.
    """

    def __init__(
        self,
        *,
        max_open_bytes_per_sender: int,
        max_open_transfers_per_sender: int,
        max_open_bytes_total: int,
    ) -> None:
        ordered = CHUNK <= max_open_bytes_per_sender <= max_open_bytes_total
        if not ordered or max_open_transfers_per_sender < 1:
            raise ValueError(
                f"bounds of open transfers: per sender {max_open_bytes_per_sender} bytes and "
                f"{max_open_transfers_per_sender} transfers, in all {max_open_bytes_total} bytes; give at "
                f"least {CHUNK} bytes and 1 transfer per sender, and in all no less than one sender's bytes"
            )
        self._max_sender_bytes = max_open_bytes_per_sender
        self._max_sender_transfers = max_open_transfers_per_sender
        self._max_bytes = max_open_bytes_total
        self._senders: dict[bytes, dict[TransferId, _Open]] = {}  # transfers of a sender by age
        self._sender_bytes: dict[bytes, int] = {}
        self._open_bytes = 0
        self._number = 0

    @property
    def open_bytes(self) -> int:
        """What open transfers hold, in bytes; never above `most_open_bytes`."""
        return self._open_bytes

    @property
    def most_open_bytes(self) -> int:
        """`max_open_bytes_total`."""
        return self._max_bytes

    def add(self, sender: bytes, record: Record) -> tuple[Dropped, ...]:
        """Take in a chunk record. A byte-identical repeat changes nothing.

        Args:
            sender: whose bounds it counts against. The caller has checked that the record's key is this
                sender's.
            record: for which `is_chunk` holds.

        Returns:
            The transfers that were dropped for it, oldest first; seldom any.

        Raises:
            ChunkError: CORRUPT, OUT_OF_RANGE, DIFFERS or TOO_LARGE; nothing has changed.
        """
        chunk = _parse(record)
        where = f"chunk {record.topic}/{record.partition}@{record.offset}"
        if _cost(chunk.length) > self._max_sender_bytes:
            raise ChunkError(
                ChunkFault.TOO_LARGE,
                f"{where}: the payload has {chunk.length} bytes, a sender may have {self._max_sender_bytes}",
            )
        transfer = self._senders.get(sender, {}).get(chunk.id)
        if transfer is not None:
            if transfer.length != chunk.length or transfer.at != record.at:
                raise ChunkError(
                    ChunkFault.DIFFERS,
                    f"{where}: transfer {chunk.id.hex()} has begun at {transfer.at.topic}/"
                    f"{transfer.at.partition}@{transfer.first_offset} with {transfer.length} bytes",
                )
            known = transfer.parts.get(chunk.index)
            if known is not None:
                if known != record.value:
                    raise ChunkError(
                        ChunkFault.DIFFERS,
                        f"{where}: chunk {chunk.index} of transfer {chunk.id.hex()} had other bytes before",
                    )
                return ()
        else:
            transfer = _Open(chunk, record, self._number)
            self._number += 1
            self._senders.setdefault(sender, {})[chunk.id] = transfer
            self._sender_bytes.setdefault(sender, 0)
        transfer.parts[chunk.index] = record.value
        transfer.first_offset = min(transfer.first_offset, record.offset)
        transfer.missing -= 1
        self._count(sender, transfer, max(OVERHEAD, len(record.value)))
        return tuple(self._keep_bounds(sender))

    def _count(self, sender: bytes, transfer: _Open, size: int) -> None:
        transfer.open_bytes += size
        self._sender_bytes[sender] += size
        self._open_bytes += size

    def _keep_bounds(self, sender: bytes) -> Iterator[Dropped]:
        # Both loops end: a transfer alone is within the bounds of its sender, and one sender within all.
        while (
            self._sender_bytes.get(sender, 0) > self._max_sender_bytes
            or len(self._senders.get(sender, ())) > self._max_sender_transfers
        ):
            yield self._drop_oldest(sender)
        while self._open_bytes > self._max_bytes:
            greatest = max(self._sender_bytes.values())
            yield self._drop_oldest(
                min(
                    (who for who, size in self._sender_bytes.items() if size == greatest),
                    key=lambda who: next(iter(self._senders[who].values())).number,
                )
            )

    def _drop_oldest(self, sender: bytes) -> Dropped:
        transfer_id, transfer = next(iter(self._senders[sender].items()))
        dropped = Dropped(sender, transfer_id, transfer.at, transfer.first_offset, transfer.open_bytes)
        self.discard(sender, transfer_id)
        return dropped

    def complete(self, sender: bytes, transfer_id: TransferId, length: int, sha256: bytes) -> bytes:
        """The payload that a manifest names; its transfer is closed.

        Args:
            sender: who wrote the manifest.
            transfer_id: from the manifest, like the rest.
            length: bytes.
            sha256: 32 bytes.

        Raises:
            ChunkError: UNKNOWN_TRANSFER; INCOMPLETE, and the transfer stays open; DIGEST_MISMATCH, and it is
                dropped: a repeat of its chunks could not change it.
        """
        where = f"transfer {transfer_id.hex()} of {sender.hex()}"
        transfer = self._senders.get(sender, {}).get(transfer_id)
        if transfer is None:
            raise ChunkError(
                ChunkFault.UNKNOWN_TRANSFER, f"{where}: none of its chunks has come, or it was dropped"
            )
        if transfer.missing:
            raise ChunkError(
                ChunkFault.INCOMPLETE,
                f"{where}: {transfer.missing} of {chunks_of(transfer.length)} chunks are missing",
            )
        self.discard(sender, transfer_id)
        payload = b"".join(transfer.parts[index] for index in range(len(transfer.parts)))
        if len(payload) != length or hashlib.sha256(payload).digest() != sha256:
            raise ChunkError(
                ChunkFault.DIGEST_MISMATCH,
                f"{where}: {len(payload)} bytes have come, not the {length} bytes of the manifest",
            )
        return payload

    def discard(self, sender: bytes, transfer_id: TransferId) -> None:
        """Forget a transfer, for example when its manifest is a repeat; unknown ones are ignored."""
        transfers = self._senders.get(sender, {})
        transfer = transfers.pop(transfer_id, None)
        if transfer is None:
            return
        self._count(sender, transfer, -transfer.open_bytes)
        if not transfers:
            del self._senders[sender], self._sender_bytes[sender]

    def drop(self, sender: bytes) -> None:
        """Forget everything that the sender has open, for example when its window has closed."""
        for transfer_id in list(self._senders.get(sender, ())):
            self.discard(sender, transfer_id)

    def first_open_offset(self, at: TopicPartition) -> int | None:
        """Where the first chunk of any open transfer of the partition stands; None if none is open.

        A restart offset that is stored must not be past it.
        """
        offsets = [
            transfer.first_offset
            for transfers in self._senders.values()
            for transfer in transfers.values()
            if transfer.at == at
        ]
        return min(offsets, default=None)


def _cost(length: int) -> int:
    """What a whole payload counts as."""
    last = length - (chunks_of(length) - 1) * CHUNK
    return length - last + max(OVERHEAD, last)


def _framed(part: bytes) -> bytes:
    return struct.pack(">I", len(part)) + part


def _digest(topic: str, key: bytes, headers: Headers, value: bytes) -> bytes:
    hashed = hashlib.sha256(b"echelon/chunk/v1\0" + _framed(topic.encode()) + _framed(key))
    for name, content in headers:
        hashed.update(_framed(name.encode()) + _framed(content))
    hashed.update(value)
    return hashed.digest()
