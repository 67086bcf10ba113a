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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
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

MAX_SETTLED = 64
"""Completed transfers that are remembered for each sender and partition, among those of its newest order."""

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
        TransferId(values["transfer"]), index, total, length, values.get("scope", NO_SCOPE),
        int.from_bytes(values.get("order", b""), "big"), values["sha256"], record.partition,
        values.get("signature", b""),
    )  # fmt: skip


class _Open:
    """A transfer that is being received."""

    __slots__ = ("at", "first_offset", "length", "missing", "number", "open_bytes", "order", "parts", "scope")

    def __init__(self, chunk: Chunk, record: Record, number: int) -> None:
        self.at = record.at
        self.first_offset = record.offset
        self.length = chunk.length
        self.scope = chunk.scope
        self.order = chunk.order
        self.missing = chunk.total
        self.number = number  # by age, among all senders
        self.open_bytes = 0
        # By index. Only what has come: a peer that announces 2^32 chunks and sends one must not cost more.
        self.parts: dict[int, bytes] = {}


@dataclass(slots=True)
class _Settled:
    """How far the transfers of one sender in one partition are done."""

    scope: bytes
    order: int
    ids: dict[TransferId, None] = field(default_factory=dict)
    """The newest that were completed in that order."""


class Assembler:
    """Puts chunks together again, in bounded memory whatever senders do.

    One transfer may have at most `max_open_bytes_per_sender` bytes, and at most what `largest` says of its topic.
    When a sender goes above its number or bytes of open transfers, one of its own is dropped: one of another scope
    than the chunk that has just come, then the lowest order, then the oldest. When all senders together go above
    `max_open_bytes_total`, the sender with the most open bytes loses one. So a sender that never finishes harms itself
    before it harms others, and an old chunk that is sent again never drops a newer one. An open chunk counts as its
    bytes, at least `OVERHEAD`.

    What was completed is over: of each sender and partition its newest order is remembered, with the last
    `MAX_SETTLED` transfers of it; chunks of those, or of a lower order in the same scope, change nothing.

    Args:
        max_open_bytes_per_sender: bytes.
        max_open_transfers_per_sender: number.
        max_open_bytes_total: bytes, over all senders.
        largest: the longest payload by topic, in bytes; a topic that is not in it takes none. None: no topic has a
            bound of its own.

    Raises:
        ValueError: a bound is too small for a single chunk, or for one sender.
    """

    def __init__(
        self,
        *,
        max_open_bytes_per_sender: int,
        max_open_transfers_per_sender: int,
        max_open_bytes_total: int,
        largest: Mapping[str, int] | None = None,
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
        self._largest = None if largest is None else dict(largest)
        self._senders: dict[bytes, dict[TransferId, _Open]] = {}  # transfers of a sender by age
        self._sender_bytes: dict[bytes, int] = {}
        self._settled: dict[tuple[bytes, TopicPartition], _Settled] = {}
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

    @property
    def most_open_bytes_per_sender(self) -> int:
        """`max_open_bytes_per_sender`."""
        return self._max_sender_bytes

    def add(self, sender: bytes, record: Record) -> tuple[Dropped, ...]:
        """Take in a chunk record that is not signed: `read_chunk` and `take`."""
        return self.take(sender, record, read_chunk(record))

    def take(self, sender: bytes, record: Record, chunk: Chunk) -> tuple[Dropped, ...]:
        """Take in a chunk. A byte-identical repeat changes nothing.

        Args:
            sender: whose bounds it counts against. The caller has checked that the record's key, and the
                signature if there is one, are this sender's.
            record: the chunk's record.
            chunk: what `read_chunk` found in it.

        Returns:
            The transfers that were dropped for it; seldom any.

        Raises:
            ChunkError: DIFFERS or TOO_LARGE; nothing has changed.
        """
        where = f"chunk {record.topic}/{record.partition}@{record.offset}"
        most = self._max_sender_bytes
        if self._largest is not None:
            most = min(most, self._largest.get(record.topic, -1))
        if chunk.length > most or open_cost(chunk.length) > self._max_sender_bytes:
            raise ChunkError(
                ChunkFault.TOO_LARGE,
                f"{where}: the payload has {chunk.length} bytes, one transfer here may have {max(0, most)}",
            )
        settled = self._settled.get((sender, record.at))
        if (
            settled is not None
            and settled.scope == chunk.scope
            and (chunk.order < settled.order or chunk.id in settled.ids)
        ):
            return ()
        transfer = self._senders.get(sender, {}).get(chunk.id)
        if transfer is not None:
            if (transfer.length, transfer.scope, transfer.order) != (
                chunk.length,
                chunk.scope,
                chunk.order,
            ) or transfer.at != record.at:
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
        return tuple(self._keep_bounds(sender, chunk.scope))

    def _count(self, sender: bytes, transfer: _Open, size: int) -> None:
        transfer.open_bytes += size
        self._sender_bytes[sender] += size
        self._open_bytes += size

    def _keep_bounds(self, sender: bytes, scope: bytes) -> Iterator[Dropped]:
        # Both loops end: a transfer alone is within the bounds of its sender, and one sender within all.
        while (
            self._sender_bytes.get(sender, 0) > self._max_sender_bytes
            or len(self._senders.get(sender, ())) > self._max_sender_transfers
        ):
            yield self._drop_one(sender, scope)
        while self._open_bytes > self._max_bytes:
            greatest = max(self._sender_bytes.values())
            yield self._drop_one(
                min(
                    (who for who, size in self._sender_bytes.items() if size == greatest),
                    key=lambda who: next(iter(self._senders[who].values())).number,
                ),
                scope,
            )

    def _drop_one(self, sender: bytes, scope: bytes) -> Dropped:
        """Drop the transfer of the sender that is least likely to go on, given the scope of its newest chunk."""
        transfer_id, transfer = min(
            self._senders[sender].items(),
            key=lambda item: (item[1].scope == scope, item[1].order, item[1].number),
        )
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
        self._settle(sender, transfer_id, transfer)
        return payload

    def _settle(self, sender: bytes, transfer_id: TransferId, transfer: _Open) -> None:
        """A transfer is done: what the sender began before it in the same partition and scope will not go on."""
        where = (sender, transfer.at)
        settled = self._settled.get(where)
        if settled is None or settled.scope != transfer.scope or settled.order < transfer.order:
            settled = self._settled[where] = _Settled(transfer.scope, transfer.order)
        settled.ids[transfer_id] = None
        if len(settled.ids) > MAX_SETTLED:
            del settled.ids[next(iter(settled.ids))]
        older = [
            other_id
            for other_id, other in self._senders.get(sender, {}).items()
            if other.at == transfer.at and other.scope == transfer.scope and other.order < transfer.order
        ]
        for other_id in older:
            self.discard(sender, other_id)

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


def open_cost(length: int) -> int:
    """What a whole payload of so many bytes counts as while it is open: its last chunk as `OVERHEAD` at least."""
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
