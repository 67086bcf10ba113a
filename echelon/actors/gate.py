"""The gate: the one process of a boundary that knows two brokers, and all that it does is check, sign and mirror.

Outward it derives every delta again from the boundary's own topics and signs nothing else. Inward it copies the
exchange's `global` topic record by record, and says which versions of the boundary adapter it derived. Only the gate
holds the boundary's signing key. Unless the run's terms leave it out, it is a witness of `global` and of other
boundaries' logs, too, with a key of its own for that.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echelon.actors.announcing import Announcer
from echelon.actors.boundary import BoundaryActor, Cross, raise_if_failed
from echelon.actors.exchange import Writer, reportable_faults
from echelon.actors.kept_logs import check_end
from echelon.actors.runtime import BATCH_BYTES, DRAIN_SECONDS, Publisher, end_of, read_to_end
from echelon.actors.state import Row, State
from echelon.actors.witness import FINAL_SECONDS, Witness
from echelon.audit.log import Entry, TopicLog
from echelon.audit.merkle import EMPTY_ROOT
from echelon.audit.records import is_chunk, read_chunk
from echelon.backoff import Backoff
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.errors import ConnectionLost, LogLost, OffsetOutOfRange, ProtocolError, StateError
from echelon.laws.ledger import RoundedDelta
from echelon.laws.lengths import delta_length, genesis_length
from echelon.messages.boundary import INPUTS, Derived, SealedDelta
from echelon.messages.envelope import Signer
from echelon.messages.exchange import (
    OTHER_RECORD,
    SOURCE_HEADER,
    Close,
    Commit,
    Delta,
    Genesis,
    Payload,
    Refusal,
    RefusalReason,
)
from echelon.messages.stored import stored
from echelon.messages.wire import Refused
from echelon.rounds.effects import Effect, Incoming, Publish, Save, Stop, note
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts, DerivedVersion
from echelon.rounds.gate.global_facts import MAX_ADAPTERS

GLOBAL = TopicPartition("global")
VERSIONS = TopicPartition("versions")
MICROSECONDS = 1_000_000
MAX_PROPOSED = 64
"""Deltas that the aggregator may propose ahead of what is derived: no more of its topic is read before."""


class Gate(BoundaryActor):
    """One boundary's gate.

    Args:
        exchange: the exchange's broker.
        exchange_signer: the boundary's signing key on the exchange.
        log: the derivation of the boundary's history.
        index: the boundary's index in the run manifest.
        manifest_sha256: the pinned digest of the signed run manifest.
        witness: what it is as a witness, over the same state file; None: it is none.
    """

    def __init__(
        self,
        name: str,
        *,
        boundary: str,
        exchange: Bus,
        exchange_signer: Signer,
        log: BoundaryLog,
        index: int,
        manifest_sha256: bytes,
        witness: Witness | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(name, **shared)
        self._exchange, self._log, self._index = exchange, log, index
        self._topic = TopicPartition(f"delta.{boundary}")
        run = log.manifest.run_id
        own = TopicLog(
            self._topic.topic, public=exchange_signer.public, run=run, boundary=index,
            largest=delta_length(log.manifest, log.dim),
        )  # fmt: skip
        self._writer = Writer(own, exchange_signer, run)
        self._global = TopicLog("global", largest=genesis_length(log.dim))
        self._followed = Seen()
        self._said = 0
        """Manifests of `global` that the newest delta on the exchange says it had read, maybe in an earlier life."""
        self._bases: dict[int, tuple[int, bytes]] = {}
        """Of every commit (0: genesis) that was read: the record's index, and the SHA-256 of its envelope."""
        self._history = 0
        """Exchange offset before which `global` stood when this life began: what is older arrived at no known time."""
        self._commit_arrived: float | None = None
        """When the newest commit arrived; None: before this life."""
        self._pinned = manifest_sha256
        self._announcer = Announcer(self._writer)
        self._outward = Publisher(
            f"{name} outward",
            exchange,
            self.store,
            self.services,
            owns=lambda topic: topic == self._topic.topic,
            took=self._announcer.took,
        )
        self._witness = witness
        self._proposed: dict[int, SealedDelta] = {}
        self._closing = self._closed = False
        """Whether `close` was read on the exchange; whether it stands mirrored inward, too."""
        self._origin = ""
        self._clock: Callable[[], float] = lambda: 0.0
        """The loop's clock once it runs; steps are taken in threads, which have no loop of their own."""
        self._places: dict[int, tuple[int, int]] = {}
        """Offsets of `global` between which a commit's chunks stand, for commits whose adapter may be wanted."""
        self._before = 0
        """Offset behind the newest manifest that was read on `global`."""
        self._unread = 0
        """Adapters that were read and not taken yet."""
        self._wanted: int | None = None
        """The commit whose adapter is being read again."""
        self._signed: dict[int, float] = {}
        """When deltas were signed that no commit has merged yet; those of an earlier life are not in it."""
        self._sync_us = 0

    def inputs(self) -> Iterable[TopicPartition]:
        """Decisions, rounds, masked updates, edges' parts, and the deltas that the aggregator proposes."""
        return tuple(TopicPartition(topic) for topic in ("control", *INPUTS, "delta"))

    def on_demand(self) -> Iterable[TopicPartition]:
        """All of them: a decision at a time, and of the devices' records those that it waits for."""
        return self.inputs()

    def wants(self, at: TopicPartition) -> bool:
        """Whether the derivation can use a record of that topic now."""
        if at.topic == "control":
            return not self._log.blocked
        if at.topic == "delta":
            return len(self._proposed) < MAX_PROPOSED
        return at.topic in self._log.wants

    def owns(self, topic: str) -> bool:
        """Everything but the topics of the exchange."""
        return topic != self._topic.topic and (self._witness is None or topic != self._witness.topic)

    def crossing(self, rows: Sequence[Row]) -> None:
        """Hand rows to the exchange's publisher."""
        self._outward.put(rows)

    def snapshot(self) -> State:
        """The derivation's state."""
        return self._log.snapshot_parts()

    async def run(self) -> None:
        """Mirror both ways until the run is closed and mirrored inward."""
        self._clock = asyncio.get_running_loop().time
        await self._outward.reconcile()
        tasks = [
            asyncio.create_task(self._outward.run(), name=f"{self.name} outward"),
            asyncio.create_task(self._mirror(), name=f"{self.name} inward"),
        ]
        witness: asyncio.Task[None] | None = None
        if self._witness is not None:
            witness = asyncio.create_task(self._witness.run(), name=f"{self.name} witness")
            tasks.append(witness)
        main = asyncio.create_task(super().run(), name=f"{self.name} boundary")
        try:
            while not main.done():
                done, _ = await asyncio.wait(
                    {main, *(task for task in tasks if not task.done())}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            await self._outward.drained(DRAIN_SECONDS)
            if witness is not None and not self.halted:
                # The last heads of the run are for it to cosign; it waits for them no longer than this.
                await asyncio.wait({witness}, timeout=FINAL_SECONDS + DRAIN_SECONDS)
                if witness.done():
                    witness.result()
        finally:
            for task in (main, *tasks):
                task.cancel()
            await asyncio.gather(main, *tasks, return_exceptions=True)

    def checkpoint(self) -> tuple[str, bytes]:
        """The topic, and the signed head of its log as it stands (a C2SP checkpoint)."""
        return self._writer.log.topic, self._writer.checkpoint()

    # ---- outward ---------------------------------------------------------------------------------

    async def recover(self) -> list[Effect]:
        """Restore the derivation; what was written on the exchange is read there, and in the outbox."""
        snapshot = self.store.snapshot()
        if snapshot is not None:
            with stored(f"{self.name}: its stored state"):
                self._log.restore(snapshot)
        # The outbox first: the publisher is at work, and what it sends meanwhile leaves the outbox behind the end that
        # is read.
        unsent = self.store.outbox()
        standing, announced = await asyncio.gather(self._read_own(), self._announcer.look(self._exchange))
        for row in unsent:
            if row.record.topic == self._topic.topic:
                self._wrote(row.record)
        self._announcer.start(announced, self._outward, standing)
        current, newest = self._log.current(), -1
        async for record in read_to_end(self.bus, VERSIONS, 0, self.name):
            try:
                _, message = self._opener.verified(record)
            except Refused:
                continue  # devices refuse it too: this record says nothing
            if isinstance(message, Derived):
                newest = max(newest, message.version)
        # Said by no life before: it stopped between the step that derived it and the record.
        return [] if current is None or current.version <= newest else [self._say(current)]

    async def _read_own(self) -> int:
        """Read what the boundary's log has on the exchange; how many manifests that are."""
        async for record in read_to_end(self._exchange, self._topic, 0, self.name):
            self._wrote(record)
        return len(self._writer.tree)

    def _wrote(self, record: Record | Outgoing) -> None:
        entry = self._writer.wrote(record).entry
        if entry is not None and isinstance(entry.message, Delta):
            self._said = max(self._said, entry.message.seen_size)

    def take(self, event: object) -> list[Any]:
        """Feed the derivation, and sign what it confirms."""
        raise_if_failed(event)
        if isinstance(event, _Learned):
            for news in event.news:
                self._unread -= isinstance(news, _Commit) and news.adapter is not None
                news.tell(self._log)
            self._log.progress()
            return [*self._derived(), *self._sign(), *([Stop()] if self._closed else [])]
        if isinstance(event, _Adapter):
            self._wanted = None
            self._log.take_adapter(event.commit, event.adapter)
            self._log.progress()
            return [*self._derived(), *self._sign()]
        if not isinstance(event, Incoming):
            raise TypeError(f"{self.name}: {event!r} is not an event of a gate")
        if isinstance(event.message, SealedDelta):
            self._proposed[event.message.seq] = event.message
        elif event.topic == "control" or event.topic in INPUTS:
            self._log.feed(event)
        return [*self._derived(), *self._sign()]  # whatever record was the last that a delta waited for

    def _derived(self) -> list[Any]:
        """Say which versions were derived, and ask for the adapter that the next one needs."""
        versions, self._log.versions = self._log.versions, []
        effects: list[Any] = [self._say(version) for version in versions]
        wanted = self._log.wanted
        if wanted is not None and wanted.commit != self._wanted and wanted.commit in self._places:
            self._wanted = wanted.commit
            effects.append(_ReadAgain(wanted))
        return effects

    def _say(self, version: DerivedVersion) -> Publish:
        said = Derived(
            version=version.version, commit=version.commit, sha256=version.sha256, window=version.window
        )
        return Publish(VERSIONS.topic, said, version.window)

    async def perform(self, effect: object) -> None:
        """Read the adapter of a commit again, beside the loop."""
        if isinstance(effect, _ReadAgain):
            self.start_job(partial(self._adapter_of, effect.facts), "adapter")
        else:
            raise ProtocolError(f"{self.name} cannot carry out {effect!r}")

    async def _adapter_of(self, facts: CommitFacts) -> _Adapter:
        """The adapter of a commit whose record was verified before, from its chunks on the exchange."""
        start, end = self._places[facts.commit]
        backoff = Backoff(f"{self.name} adapter")
        while True:
            parts: dict[bytes, list[bytes]] = {}
            reader = self._exchange.reader({GLOBAL: start})
            try:
                at = start
                while at < end:
                    for record in await reader.next():
                        at = record.next_offset
                        if record.offset < end and is_chunk(record):
                            chunk = read_chunk(record)
                            parts.setdefault(chunk.transfer, []).append(chunk.data)
            except ConnectionLost:
                await backoff.wait()
                continue
            finally:
                await reader.aclose()
            for chunks in parts.values():
                payload = b"".join(chunks)[-4 * self._log.dim :]
                if hashlib.sha256(payload).digest() == facts.adapter_sha256:
                    return _Adapter(facts.commit, np.frombuffer(payload, "<f4"))
            raise StateError(
                f"{self.name}: the adapter of commit {facts.commit} does not stand on `global` any more, "
                f"offsets {start} to {end}: the exchange's log was cut"
            )

    def _sign(self) -> list[Any]:
        effects: list[Any] = []
        seen = self._followed  # the mirror goes on in another thread
        for seq in sorted(self._proposed):
            if seq < self._writer.next_number:
                del self._proposed[seq]  # it crossed in an earlier life, and is read again
                continue
            try:
                derived = self._log.check(self._proposed[seq])
            except ProtocolError:
                if effects:
                    break  # what was signed before it must go out first; the next record finds this one again
                raise
            if derived is None or not self._may_state(seen, derived.base_commit):
                break
            del self._proposed[seq]
            if seq > self._writer.next_number:
                raise StateError(
                    f"{self.name}: delta {seq} is due to cross, and delta {self._writer.next_number} never did"
                )
            crossing = self._cross(derived, seen)
            *chunks, manifest = crossing.records
            effects += [
                crossing,
                note("bytes", direction="out", type="delta.chunk", bytes=_bytes(chunks), records=len(chunks)),
                note("bytes", direction="out", type="delta.manifest", bytes=_bytes([manifest]), records=1),
            ]
        if effects or (self._log.quiescent and not self._proposed and self._log.sealed):
            for seq in [seq for seq in self._log.sealed if seq < self._writer.next_number]:
                del self._log.sealed[seq]
        # What was derived and not proposed yet is in no snapshot, and would never be derived again.
        if effects and self._log.quiescent and not self._proposed and not self._log.sealed:
            effects.append(Save())
        return effects

    def _may_state(self, seen: Seen, base: int) -> bool:
        """Whether a delta may state what was read: its base is in it, it is no less than was stated before (after a
        restart `global` is read anew), and the run is not closed."""
        found = self._bases.get(base)
        return found is not None and found[0] < seen.size and seen.size >= self._said and not seen.closed

    def _cross(self, derived: RoundedDelta, seen: Seen) -> Cross:
        described = Payload.of(derived.payload, b"crossing %d %d" % (self._index, derived.seq))
        chunks = self._writer.chunks(derived.payload, described)
        manifest = Delta(
            run=self._log.manifest.run_id,
            boundary=self._index,
            seq=derived.seq,
            base_commit=derived.base_commit,
            base_sha256=self._bases[derived.base_commit][1],
            seen_size=seen.size,
            seen_root=seen.root,
            windows=derived.windows,
            codec=derived.codec,
            exponent=derived.exponent,
            sync_us=self._sync_us,
            spacing_us=seen.spacing_us,
            payload=described,
            prefix=self._writer.prefix,
        )
        self._signed[derived.seq] = self._clock()
        self._said = seen.size
        return Cross((*chunks, self._writer.manifest(manifest)))

    # ---- inward ----------------------------------------------------------------------------------

    async def _mirror(self) -> None:
        """Copy `global` inward, and tell the derivation what was decided. Returns when `close` was copied."""
        backoff = Backoff(f"{self.name} inward")
        copied = await self._copied()
        self._history = await end_of(self._exchange, GLOBAL, self.name)
        check_end(GLOBAL, copied, self._history)
        reader = self._exchange.reader({GLOBAL: 0})
        try:
            while not self._closed:
                try:
                    records = await reader.next()
                except ConnectionLost:
                    await backoff.wait()
                    continue
                except OffsetOutOfRange as error:
                    raise LogLost(f"the exchange's {error}") from error
                fresh = []
                news: list[_Commit | _Refused] = []
                now = self._clock()
                for record in records:
                    news += self._learn(record, now)
                    if record.offset >= copied:
                        source = (SOURCE_HEADER, record.offset.to_bytes(8, "big"))
                        fresh.append(Outgoing("global", record.value, record.key, (*record.headers, source)))
                for batch in _batches(fresh):
                    await self._copy(batch, backoff)
                    self._count(batch)
                # Not before it was copied: an event of an earlier record must not end the gate meanwhile.
                self._closed = self._closing
                self._events.put_nowait(_Learned(tuple(news)))
        finally:
            await reader.aclose()

    async def _copy(self, batch: list[Outgoing], backoff: Backoff) -> None:
        while True:
            try:
                await self.bus.publish_many(batch)
            except ConnectionLost:
                await backoff.wait()
            else:
                backoff.reset()
                return

    def _count(self, batch: list[Outgoing]) -> None:
        """Tell the metrics what came in."""
        for record in batch:
            kind = dict(record.headers).get("kind", b"").decode(errors="replace")
            self._origin = {"genesis": "genesis", "commit": "commit"}.get(kind, self._origin)
            if kind == "chunk":
                kind = "commit.chunk" if self._origin else "genesis.chunk"
            elif kind == "commit":
                kind = "commit.manifest"
            fact = note("bytes", direction="in", type=kind, bytes=_bytes([record]), records=1)
            self.services.sink(self.name, self._now(), fact)

    async def _copied(self) -> int:
        """The exchange offset after the last record that stands mirrored in the boundary."""
        copied = 0
        async for record in read_to_end(self.bus, GLOBAL, 0, self.name):
            for header, value in record.headers:
                if header == SOURCE_HEADER:
                    copied = max(copied, int.from_bytes(value, "big") + 1)
        return copied

    def _learn(self, record: Record, now: float) -> list[_Commit | _Refused]:
        """What a record of `global`, which arrived at this time, says to the derivation."""
        step = self._global.read(record)
        for fault in reportable_faults(step):
            self.services.log.warning(
                "%s does not believe global@%d: %s", self.name, record.offset, fault.detail
            )
        if step.entry is None:
            return []
        told = [] if step.entry.refusal is not None else self._follow(step.entry, record, now)
        tree, spacing_us = self._global.tree, self._followed.spacing_us
        if isinstance(step.entry.message, Commit):
            spacing_us = self._spacing(record.offset, now)
        self._followed = Seen(tree.size, tree.root(), spacing_us, self._closing)
        return told

    def _follow(self, entry: Entry, record: Record, now: float) -> list[_Commit | _Refused]:
        start, self._before = self._before, record.next_offset
        payload, message = entry.payload or b"", entry.message
        place = self._global.tree.size - 1
        match message:
            case Genesis():
                if message.manifest_sha256 != self._pinned:
                    raise StateError(f"{self.name}: genesis carries another run manifest than the pinned one")
                self._places[0] = start, record.offset
                self._bases[0] = place, entry.sha256
                return [self._commit(CommitFacts(0, (), message.adapter_sha256), payload)]
            case Commit():
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self._index)
                for seq in mine:
                    self._measure(seq, now)
                if message.payload.sha256 != message.adapter_sha256 or len(payload) != 4 * self._log.dim:
                    self.services.log.warning(
                        "%s does not believe global@%d: commit %d without the adapter that it names",
                        self.name, record.offset, message.commit,
                    )  # fmt: skip
                    return []
                self._places[message.commit] = start, record.offset
                self._bases[message.commit] = place, entry.sha256
                return [self._commit(CommitFacts(message.commit, mine, message.adapter_sha256), payload)]
            case Refusal() if message.boundary == self._index and message.reason not in OTHER_RECORD:
                self._signed.pop(message.seq, None)
                return [_Refused(message.seq, message.reason is RefusalReason.STALE)]
            case Close():
                self._closing = True
            case _:
                pass
        return []

    def _spacing(self, offset: int, now: float) -> int:
        """Microseconds since the commit before arrived; 0 if one of them came at no known time, or both at once."""
        before = self._commit_arrived
        self._commit_arrived = now if offset >= self._history else None
        if before is None or self._commit_arrived is None or now <= before:
            return 0
        return max(1, round((now - before) * MICROSECONDS))

    def _commit(self, facts: CommitFacts, payload: bytes) -> _Commit:
        """What the derivation is told of a commit (0 is genesis), whose adapter is the end of its payload.

        The adapter goes along unless some wait to be taken already: a gate that is behind asks for it later.
        """
        if self._unread >= MAX_ADAPTERS:
            return _Commit(facts, None)
        self._unread += 1
        return _Commit(facts, np.frombuffer(payload[-4 * self._log.dim :], "<f4"))

    def _measure(self, seq: int, now: float) -> None:
        """A commit that merged the boundary's delta has arrived: how long the sync took."""
        signed = self._signed.pop(seq, None)
        if signed is not None:
            self._sync_us = max(1, round((now - signed) * MICROSECONDS))


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gate had read of `global`: manifests and the root over them, microseconds between the arrivals of the
    two newest commits (0: not known), and whether the run was closed."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    spacing_us: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class _Commit:
    """A commit was read on `global`; its adapter, float32[d], if it is not to be read again later."""

    facts: CommitFacts
    adapter: NDArray[np.float32] | None

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.learn(self.facts, self.adapter)


@dataclass(frozen=True, slots=True)
class _Refused:
    """A refusal of one of the boundary's deltas was read on `global`."""

    seq: int
    stale: bool

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.refuse(self.seq, self.stale)


@dataclass(frozen=True, slots=True)
class _Learned:
    """Something was read on `global`; steps of the derivation may run in a thread, so it is told as an event."""

    news: tuple[_Commit | _Refused, ...]


@dataclass(frozen=True, slots=True)
class _ReadAgain:
    """An effect: the derivation has come to a commit whose adapter was not kept."""

    facts: CommitFacts


@dataclass(frozen=True, slots=True)
class _Adapter:
    """The adapter of a commit was read again: float32[d]."""

    commit: int
    adapter: NDArray[np.float32]


def _bytes(records: Sequence[Outgoing]) -> int:
    """Bytes of keys, values and headers, without the mark that mirroring adds."""
    return sum(
        len(record.key)
        + len(record.value)
        + sum(len(name) + len(value) for name, value in record.headers if name != SOURCE_HEADER)
        for record in records
    )


def _batches(records: list[Outgoing]) -> Iterable[list[Outgoing]]:
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
