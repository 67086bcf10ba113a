"""Payloads put together again from their chunks, within a bound of memory."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import (
    CHUNK,
    OVERHEAD,
    Chunk,
    ChunkError,
    ChunkFault,
    Dropped,
    TransferId,
    chunks_of,
    read_chunk,
)
from echelon.bus.spill import Spill

SPILLED = 4 << 20
"""Payloads of so many bytes are kept in a file while they are received, where there is a folder for it."""
MAX_SETTLED = 64
"""Completed transfers that are remembered for each sender and partition, among those of its newest order."""


class _InMemory:
    """The start of a payload, which becomes the payload without a copy.

    The first chunk is kept as it came until there is a second one: a payload of one chunk is the value of its record,
    which everybody in the process shares who reads that record from a log in memory.
    """

    def __init__(self) -> None:
        self._first = b""
        self._bytes: BytesIO | None = None

    def write(self, data: bytes, at: int) -> None:
        if self._bytes is None:
            if at == 0:
                self._first = data
                return
            self._bytes = BytesIO(self._first)
            self._first = b""
        self._bytes.seek(at)
        self._bytes.write(data)

    def read(self, at: int, length: int) -> bytes:
        if self._bytes is None:
            return self._first[at : at + length]
        with self._bytes.getbuffer() as view:
            return bytes(view[at : at + length])

    def whole(self, length: int) -> bytes:
        return self._first if self._bytes is None else self._bytes.getvalue()

    def close(self) -> None:
        """Nothing to let go of."""


class _OnDisk:
    """The same in a file."""

    def __init__(self, spill: Spill) -> None:
        self._spill, self._place = spill, spill.take()

    def write(self, data: bytes, at: int) -> None:
        self._spill.write(self._place, at, data)

    def read(self, at: int, length: int) -> bytes:
        return self._spill.read(self._place, at, length)

    def whole(self, length: int) -> bytes:
        return self._spill.read(self._place, 0, length)

    def close(self) -> None:
        self._spill.give_back(self._place)


class _Open:
    """A transfer that is being received."""

    __slots__ = (
        "at", "body", "early", "first_offset", "length", "missing", "number", "open_bytes", "order", "scope", "whole"
    )  # fmt: skip

    def __init__(self, chunk: Chunk, record: Record, number: int, spill: Spill | None) -> None:
        self.at = record.at
        self.first_offset = record.offset
        self.length = chunk.length
        self.scope = chunk.scope
        self.order = chunk.order
        self.missing = chunk.total
        self.number = number  # by age, among all senders
        self.open_bytes = 0
        # Only what has come: a peer that announces 2^32 chunks and sends one must not cost more.
        # Chunks one behind the other, from the first on.
        self.body = _InMemory() if spill is None else _OnDisk(spill)
        self.whole = 0  # how many chunks that are
        self.early: dict[int, bytes] = {}  # by index: those behind a chunk that is missing

    def known(self, index: int) -> bytes | None:
        """A chunk that has come; None if it has not."""
        if index >= self.whole:
            return self.early.get(index)
        return self.body.read(index * CHUNK, min(CHUNK, self.length - index * CHUNK))

    def put(self, index: int, part: bytes) -> None:
        """Take a chunk that has not come before."""
        self.early[index] = part
        while (found := self.early.pop(self.whole, None)) is not None:
            self.body.write(found, self.whole * CHUNK)
            self.whole += 1

    def payload(self) -> bytes:
        """All chunks as one, once none is missing."""
        return self.body.whole(self.length)


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
        self._spill: Spill | None = None

    def keep_in(self, folder: Path) -> None:
        """Keep what is received from now on of payloads of `SPILLED` bytes or more in a file in this folder, and not in
        memory. `StorageError` is raised then where the disk does not take it.
        """
        self._spill = Spill(folder, self._max_sender_bytes)

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
            known = transfer.known(chunk.index)
            if known is not None:
                if known != record.value:
                    raise ChunkError(
                        ChunkFault.DIFFERS,
                        f"{where}: chunk {chunk.index} of transfer {chunk.id.hex()} had other bytes before",
                    )
                return ()
        else:
            transfer = _Open(chunk, record, self._number, self._spill if chunk.length >= SPILLED else None)
            self._number += 1
            self._senders.setdefault(sender, {})[chunk.id] = transfer
            self._sender_bytes.setdefault(sender, 0)
        transfer.put(chunk.index, record.value)
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
        payload = transfer.payload()
        self.discard(sender, transfer_id)
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
        transfer.body.close()
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
