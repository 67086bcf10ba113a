"""The gate's way inward: it reads `global` on the exchange, copies it into its boundary, and says what was decided."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from echelon.actors.exchange import reportable_faults
from echelon.actors.kept_logs import check_end
from echelon.actors.relay import Relay, relayed_chunks
from echelon.actors.runtime import BATCH_BYTES, Services, end_of, read_to_end
from echelon.audit.log import Entry, Step, TopicLog
from echelon.audit.merkle import EMPTY_ROOT
from echelon.audit.records import is_chunk, read_chunk
from echelon.backoff import Backoff
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.errors import ConnectionLost, LogLost, OffsetOutOfRange, StateError
from echelon.laws.keys import KeySpan, Line, gate_of_place
from echelon.laws.lengths import genesis_length
from echelon.laws.relay import may_relay, relayed_commit
from echelon.messages.exchange import (
    OTHER_RECORD,
    RELAYED_HEADER,
    SOURCE_HEADER,
    Close,
    Commit,
    Genesis,
    Refusal,
    RefusalReason,
)
from echelon.messages.keys import KeyEnd, KeyNext
from echelon.rounds.effects import note
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts
from echelon.rounds.gate.global_facts import MAX_ADAPTERS

GLOBAL = TopicPartition("global")
MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gate had read of `global`: manifests and the root over them, microseconds between the arrivals of the
    two newest commits (0: not known), and whether the run was closed."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    spacing_us: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class CommitRead:
    """A commit was read on `global`; its adapter, float32[d], if it is not to be read again later."""

    facts: CommitFacts
    adapter: NDArray[np.float32] | None

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.learn(self.facts, self.adapter)


@dataclass(frozen=True, slots=True)
class RefusalRead:
    """A refusal of one of the boundary's deltas was read on `global`."""

    seq: int
    stale: bool

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.refuse(self.seq, self.stale)


@dataclass(frozen=True, slots=True)
class Learned:
    """Something was read on `global`; steps of the derivation may run in a thread, so it is told as an event."""

    news: tuple[CommitRead | RefusalRead, ...]


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """An effect: the derivation has come to a commit whose adapter was not kept."""

    facts: CommitFacts


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """The adapter of a commit was read again: float32[d]."""

    commit: int
    adapter: NDArray[np.float32]


def bytes_of(records: Sequence[Outgoing]) -> int:
    """Bytes of keys, values and headers, without the mark that mirroring adds."""
    return sum(
        len(record.key)
        + len(record.value)
        + sum(len(name) + len(value) for name, value in record.headers if name != SOURCE_HEADER)
        for record in records
    )


def batches(records: list[Outgoing]) -> Iterable[list[Outgoing]]:
    """The records in order, in batches of about as many bytes as go to the broker at once."""
    batch: list[Outgoing] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Mirror:
    """Reads `global` on the exchange, copies it into the boundary record by record, and knows what was read.

    Args:
        name: of the gate.
        index: the boundary's, in the run manifest.
        line: the gate's keys on the exchange, as the run manifest names them.
        dim: numbers of the adapter.
        manifest_sha256: the pinned digest of the signed run manifest.
        bus: the boundary's broker.
        exchange: the exchange's broker.
        services: what every actor gets.
        tell: called with what was read, once it was copied.
        relay: gives the adapters of relayed commits; None: every commit brings its own.
    """

    def __init__(
        self,
        name: str,
        *,
        index: int,
        line: Line,
        dim: int,
        manifest_sha256: bytes,
        bus: Bus,
        exchange: Bus,
        services: Services,
        tell: Callable[[Learned], None],
        relay: Relay | None = None,
    ) -> None:
        self.name = name
        self._index, self._dim, self._pinned = index, dim, manifest_sha256
        self._bus, self._exchange, self._services, self._tell = bus, exchange, services, tell
        self._relay = relay
        self.log = TopicLog("global", largest=genesis_length(dim))
        self.line = line
        """The gate's keys on the exchange, as far as `global` was read: replaced before `seen` says so."""
        self._rekeyed = asyncio.Event()
        self.seen = Seen()
        """The newest that a delta may state; replaced as a whole, as steps of the gate run in other threads."""
        self.bases: dict[int, tuple[int, bytes]] = {}
        """Of every commit (0: genesis) that was read: the record's index, and the SHA-256 of its envelope."""
        self.history = 0
        """Exchange offset before which `global` stood when this life began: what is older arrived at no known time."""
        self._commit_arrived: float | None = None
        """When the newest commit arrived; None: before this life."""
        self._closing = False
        self.closed = False
        """Whether `close` was read on the exchange, and stands in the boundary, too."""
        self._origin = ""
        self.places: dict[int, tuple[int, int]] = {}
        """Offsets of `global` between which a commit's chunks stand, for commits whose adapter may be wanted."""
        self._inside: dict[int, tuple[int, int]] = {}
        """The same of the boundary's `global`, for relayed commits, whose chunks stand nowhere else."""
        self._newest: CommitFacts | None = None
        """The newest commit that was read."""
        self._before = 0
        """Offset behind the newest manifest that was read on `global`."""
        self._unread = 0
        """Adapters that were read and not taken yet."""
        self.signed: dict[int, float] = {}
        """When deltas were signed that no commit has merged yet; those of an earlier life are not in it."""
        self.sync_us = 0
        """Microseconds from the signature over a delta to the commit that merged it, at the newest such commit; 0: not
        known."""

    def taken(self, news: CommitRead | RefusalRead) -> None:
        """The derivation was told of this."""
        self._unread -= isinstance(news, CommitRead) and news.adapter is not None

    async def run(self) -> None:
        """Copy `global` inward, and tell the derivation what was decided. Returns when `close` was copied."""
        backoff = Backoff(f"{self.name} inward")
        copied = await self._copied()
        self.history = await end_of(self._exchange, GLOBAL, self.name)
        check_end(GLOBAL, copied, self.history)
        reader = self._exchange.reader({GLOBAL: 0})
        try:
            while not self.closed:
                try:
                    records = await reader.next()
                except ConnectionLost:
                    await backoff.wait()
                    continue
                except OffsetOutOfRange as error:
                    raise LogLost(f"the exchange's {error}") from error
                fresh: list[Outgoing] = []
                news: list[CommitRead | RefusalRead] = []
                now = asyncio.get_running_loop().time()
                for record in records:
                    step = self.log.read(record)
                    adapter = await self._relayed(step, record, fresh=record.offset >= copied)
                    news += self._learned(step, record, now, adapter)
                    if record.offset < copied:
                        continue
                    if adapter is not None and step.entry is not None and step.entry.payload is None:
                        assert isinstance(step.entry.message, Commit)
                        await self._publish(fresh, backoff)  # of many adapters in a batch, one is in memory
                        fresh = list(relayed_chunks(step.entry.message, adapter))
                    source = (SOURCE_HEADER, record.offset.to_bytes(8, "big"))
                    fresh.append(Outgoing("global", record.value, record.key, (*record.headers, source)))
                await self._publish(fresh, backoff)
                # Not before it was copied: an event of an earlier record must not end the gate meanwhile.
                self.closed = self._closing
                if self.closed:
                    self._rekeyed.set()
                self._tell(Learned(tuple(news)))
        finally:
            await reader.aclose()

    def span_of(self, public: bytes) -> KeySpan | None:
        """Since when a key is the gate's, as far as `global` was read."""
        return next((span for span in self.line if span.public == public), None)

    async def knows_key(self, public: bytes) -> None:
        """Wait until `global` names a key as the gate's.

        Raises:
            StateError: the run was closed before that.
        """
        while self.span_of(public) is None:
            if self.closed:
                raise StateError(f"{self.name}: the run was closed, and its key never stood on `global`")
            self._rekeyed.clear()
            await self._rekeyed.wait()

    async def _publish(self, records: list[Outgoing], backoff: Backoff) -> None:
        """Put records into the boundary's `global`."""
        for batch in batches(records):
            await self._copy(batch, backoff)
            self._count(batch)

    async def _copy(self, batch: list[Outgoing], backoff: Backoff) -> None:
        while True:
            try:
                offsets = await self._bus.publish_many(batch)
            except ConnectionLost:
                await backoff.wait()
            else:
                backoff.reset()
                for record, offset in zip(batch, offsets, strict=True):
                    self._stands(record, offset)
                return

    def _stands(self, record: Record | Outgoing, offset: int) -> None:
        """A record stands in the boundary: if it is a chunk of a relayed commit's adapter, it is found there again."""
        commit = relayed_commit(record.headers)
        if commit is not None:
            start, _ = self._inside.get(commit, (offset, offset))
            self._inside[commit] = start, offset + 1

    def _count(self, batch: list[Outgoing]) -> None:
        """Tell the metrics what came in."""
        for record in batch:
            if relayed_commit(record.headers) is not None:
                continue
            kind = dict(record.headers).get("kind", b"").decode(errors="replace")
            self._origin = {"genesis": "genesis", "commit": "commit"}.get(kind, self._origin)
            if kind == "chunk":
                kind = "commit.chunk" if self._origin else "genesis.chunk"
            elif kind == "commit":
                kind = "commit.manifest"
            fact = note("bytes", direction="in", type=kind, bytes=bytes_of([record]), records=1)
            self._services.sink(self.name, asyncio.get_running_loop().time(), fact)

    async def _copied(self) -> int:
        """The exchange offset after the last record that stands mirrored in the boundary."""
        copied = 0
        async for record in read_to_end(self._bus, GLOBAL, 0, self.name):
            self._stands(record, record.offset)
            for header, value in record.headers:
                if header == SOURCE_HEADER:
                    copied = max(copied, int.from_bytes(value, "big") + 1)
        return copied

    def learn(self, record: Record, now: float) -> list[CommitRead | RefusalRead]:
        """What a record of `global`, which arrived at this time, says to the derivation."""
        return self._learned(self.log.read(record), record, now, None)

    def _learned(
        self, step: Step, record: Record, now: float, adapter: NDArray[np.float32] | None
    ) -> list[CommitRead | RefusalRead]:
        """The same of a record that was read; `adapter`, float32[d], is what it gives if it is a relayed commit."""
        for fault in reportable_faults(step):
            self._services.log.warning(
                "%s does not believe global@%d: %s", self.name, record.offset, fault.detail
            )
        if step.entry is None:
            return []
        told = [] if step.entry.refusal is not None else self._follow(step.entry, record, now, adapter)
        tree, spacing_us = self.log.tree, self.seen.spacing_us
        if isinstance(step.entry.message, Commit):
            spacing_us = self._spacing(record.offset, now)
        self.seen = Seen(tree.size, tree.root(), spacing_us, self._closing)
        return told

    async def _relayed(self, step: Step, record: Record, *, fresh: bool) -> NDArray[np.float32] | None:
        """In a run that relays: take what a record decides of deltas, and derive the adapter of a commit.

        Also of a commit that brings its adapter: it is believed only if it is what the deltas give.

        Args:
            step: what the record is.
            record: of the exchange's `global`.
            fresh: whether it is not copied yet; the commits before it need not be derived again.

        Returns:
            The adapter, float32[d]; None: it is no commit, or a copy of it stands in the boundary.

        Raises:
            StateError: the commit is not what its deltas give.
        """
        entry, relay = step.entry, self._relay
        if relay is None or entry is None or entry.refusal is not None:
            return None
        match message := entry.message:
            case Genesis() if self.log.initial is not None:
                relay.core.begin(0, self.log.initial)
            case Refusal() if message.reason not in OTHER_RECORD:
                relay.core.decide([(message.boundary, message.seq)])
            case Commit() if not fresh:
                relay.core.decide([(one.boundary, one.seq) for one in message.merged])
            case Commit() if self.log.keys is not None:
                if message.relayed and not may_relay(relay.terms, message.commit):
                    raise StateError(
                        f"{self.name}: commit {message.commit} of `global` comes without its adapter, and by the run's "
                        "terms it must bring it"
                    )
                before = self._newest
                if before is not None and relay.core.commit < before.commit:
                    again = await self.adapter_of(before)
                    relay.core.begin(again.commit, again.adapter)
                return await relay.derive(message, self.log.keys)
            case _:
                pass
        return None

    def _follow(
        self, entry: Entry, record: Record, now: float, adapter: NDArray[np.float32] | None
    ) -> list[CommitRead | RefusalRead]:
        start, self._before = self._before, record.next_offset
        payload, message = entry.payload or b"", entry.message
        place = self.log.tree.size - 1
        match message:
            case Genesis():
                if message.manifest_sha256 != self._pinned:
                    raise StateError(f"{self.name}: genesis carries another run manifest than the pinned one")
                self.places[0] = start, record.offset
                self.bases[0] = place, entry.sha256
                self._newest = CommitFacts(0, (), message.adapter_sha256)
                return [self._commit(self._newest, self.log.take_initial())]
            case Commit():
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self._index)
                for seq in mine:
                    self._measure(seq, now)
                relayed = message.relayed and self._relay is not None
                brought = relayed or len(payload) == 4 * self._dim
                if message.payload.sha256 != message.adapter_sha256 or not brought:
                    self._services.log.warning(
                        "%s does not believe global@%d: commit %d without the adapter that it names",
                        self.name, record.offset, message.commit,
                    )  # fmt: skip
                    return []
                self.places[message.commit] = start, record.offset
                self.bases[message.commit] = place, entry.sha256
                self._newest = CommitFacts(message.commit, mine, message.adapter_sha256)
                if adapter is None and not relayed:
                    adapter = np.frombuffer(payload, "<f4")
                return [self._commit(self._newest, adapter)]
            case Refusal() if message.boundary == self._index and message.reason not in OTHER_RECORD:
                self.signed.pop(message.seq, None)
                return [RefusalRead(message.seq, message.reason is RefusalReason.STALE)]
            case Close():
                self._closing = True
            case KeyNext() | KeyEnd() if self.log.keys is not None:
                self.line = self.log.keys.line(gate_of_place(self._index))
                self._rekeyed.set()
            case _:
                pass
        return []

    def _spacing(self, offset: int, now: float) -> int:
        """Microseconds since the commit before arrived; 0 if one of them came at no known time, or both at once."""
        before = self._commit_arrived
        self._commit_arrived = now if offset >= self.history else None
        if before is None or self._commit_arrived is None or now <= before:
            return 0
        return max(1, round((now - before) * MICROSECONDS))

    def _commit(self, facts: CommitFacts, adapter: NDArray[np.float32] | None) -> CommitRead:
        """What the derivation is told of a commit (0 is genesis) and its adapter, float32[d].

        The adapter goes along unless some wait to be taken already: a gate that is behind asks for it later.
        """
        if self._unread >= MAX_ADAPTERS or adapter is None:
            return CommitRead(facts, None)
        self._unread += 1
        return CommitRead(facts, adapter)

    def _measure(self, seq: int, now: float) -> None:
        """A commit that merged the boundary's delta has arrived: how long the sync took."""
        signed = self.signed.pop(seq, None)
        if signed is not None:
            self.sync_us = max(1, round((now - signed) * MICROSECONDS))

    async def adapter_of(self, facts: CommitFacts) -> AdapterRead:
        """The adapter of a commit whose record was verified before, from its chunks on the exchange.

        That of a relayed commit stands in the boundary alone, where this gate has put it.
        """
        (start, end), bus, whose = self.places[facts.commit], self._exchange, "the exchange's"
        if facts.commit in self._inside:
            (start, end), bus, whose = self._inside[facts.commit], self._bus, "the boundary's"
        backoff = Backoff(f"{self.name} adapter")
        while True:
            parts: dict[bytes, dict[int, bytes]] = {}
            reader = bus.reader({GLOBAL: start})
            try:
                at = start
                while at < end:
                    for record in await reader.next():
                        at = record.next_offset
                        if record.offset < end and is_chunk(record):
                            chunk = read_chunk(_bare(record))
                            parts.setdefault(chunk.transfer, {})[chunk.index] = chunk.data
            except ConnectionLost:
                await backoff.wait()
                continue
            finally:
                await reader.aclose()
            for chunks in parts.values():
                payload = b"".join(chunks[index] for index in sorted(chunks))[-4 * self._dim :]
                if hashlib.sha256(payload).digest() == facts.adapter_sha256:
                    return AdapterRead(facts.commit, np.frombuffer(payload, "<f4"))
            raise StateError(
                f"{self.name}: the adapter of commit {facts.commit} does not stand on `global` any more, "
                f"offsets {start} to {end}: {whose} log was cut"
            )


def _bare(record: Record) -> Record:
    """A record without the marks that mirroring adds."""
    headers = tuple(one for one in record.headers if one[0] not in (SOURCE_HEADER, RELAYED_HEADER))
    return replace(record, headers=headers)
