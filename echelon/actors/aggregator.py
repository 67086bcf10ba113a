"""The aggregator as a service: the boundary's windows and ledger, and what the exchange decided."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.exchange import reason_of, serious
from echelon.actors.runtime import read_to_end
from echelon.audit.log import Entry, TopicLog
from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import ChunkError
from echelon.errors import ProtocolError, StateError
from echelon.laws.lengths import genesis_length
from echelon.messages.boundary import (
    Adopt,
    Base,
    Cohort,
    Leave,
    Model,
    Ready,
    Released,
    SealedDelta,
    Version,
    Window,
    WindowOpen,
)
from echelon.messages.exchange import Close, Commit, Genesis, Refusal, RefusalReason
from echelon.messages.split import Assignment
from echelon.messages.stored import stored
from echelon.messages.wire import DeviceId, Message, Refused
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.aggregator.recovery import History
from echelon.rounds.effects import Effect, Incoming, TimerFired
from echelon.rounds.gate.derivation import INPUTS, BoundaryLog, CommitFacts
from echelon.secagg.faults import InputRefused

GLOBAL = TopicPartition("global")
CONTROL = TopicPartition("control")


class Aggregator(BoundaryActor):
    """The shell around `AggregatorCore`.

    Args:
        core: the state machine.
        manifest_sha256: the pinned digest of the signed run manifest.
        index: the boundary's index in the run manifest.
    """

    def __init__(
        self,
        name: str,
        *,
        core: AggregatorCore,
        manifest_sha256: bytes,
        index: int,
        **shared: Any,
    ) -> None:
        super().__init__(name, **shared)
        self.core = core
        self._pinned, self._index = manifest_sha256, index
        # Genesis names the key, and is pinned.
        self._global = TopicLog("global", largest=genesis_length(core.dim))

    def inputs(self) -> Iterable[TopicPartition]:
        """Check-ins, rounds, masked updates, edges' parts, and the exchange's decisions as the gate mirrored them."""
        boundary = ("checkin", "handshake", "masked", "parts", "behaviour", "versions")
        return (*(TopicPartition(topic) for topic in boundary), GLOBAL)

    async def last_words(self, pump: asyncio.Task[None]) -> None:
        """The end of the run is for the devices to hear, whenever their broker is there again."""
        await self.publisher.said_everything(pump, lambda: self.halted)

    def snapshot(self) -> bytes:
        """How far `global` was read, then the core's state."""
        log = self._global.snapshot()
        return len(log).to_bytes(8, "big") + log + self.core.snapshot()

    async def recover(self) -> list[Effect]:
        """Restore the snapshot, then adopt what this aggregator decided after it."""
        await self.publisher_settled()
        snapshot = self.store.snapshot()
        if snapshot is not None:
            end = 8 + int.from_bytes(snapshot[:8], "big")
            with stored(f"{self.name}: its stored state"):
                self._global.restore(snapshot[8:end])
                self.core.restore(snapshot[end:])
        decisions = [message async for message in self._decisions()]
        effects: list[Effect] = []
        # Devices that came and went before genesis were answered, and nothing was decided yet.
        if snapshot is None and any(not isinstance(message, Released) for message in decisions):
            self.services.log.warning(
                "%s: no state file; rebuilding it from the boundary's topics", self.name
            )
            effects = self.core.rebuild(await self._history())
        self.core.recover(decisions)
        return [*effects, *self.core.start()]

    async def _history(self) -> History:
        """Derive the boundary's state from its topics, as the gate does."""
        self.forget_repeats()
        log = BoundaryLog(self.core.manifest, self.core.roster, self.core.dim)
        commits: list[BoundaryCommit] = []
        refused: dict[int, bool] = {}
        closed: int | None = None
        async for record in read_to_end(self.bus, GLOBAL, 0, self.name):
            step = self._global.read(without_source(record))
            self._positions[GLOBAL] = record.next_offset
            event = None if step.entry is None or step.entry.refusal is not None else self._event(step.entry)
            if isinstance(event, BoundaryCommit):
                commits.append(event)
                digest = hashlib.sha256(event.adapter.data).digest()
                log.learn(CommitFacts(event.commit, event.merged, digest), event.adapter)
            elif isinstance(event, RefusedDelta):
                refused[event.seq] = event.stale
                log.refuse(event.seq, event.stale)
            elif isinstance(event, Closed):
                closed = event.commit
        inputs = {topic: read_to_end(self.bus, TopicPartition(topic), 0, self.name) for topic in INPUTS}
        adapters = {commit.commit: commit.adapter for commit in commits}
        version, versioned, opened, used = 0, -1, -1, dict[str, tuple[int, int]]()
        served: dict[DeviceId, int] = {}
        assignment: Assignment | None = None
        async for decision in self._opened(read_to_end(self.bus, CONTROL, 0, self.name)):
            log.feed(decision)
            while log.blocked:
                if log.wanted is not None:
                    log.adapters[log.wanted.commit] = adapters[log.wanted.commit]
                    log.progress()
                    continue
                due = next((topic for topic in INPUTS if topic in log.wants and topic in inputs), None)
                if due is None:
                    break
                try:
                    record = await anext(inputs[due])
                except StopAsyncIteration:
                    del inputs[due]
                    continue
                self._positions[record.at] = record.next_offset
                found = self._tolerant(record)
                if found is not None:
                    self._feed(log, record, found)
            match decision.message:
                case Window() | Adopt():
                    version = max(version, decision.message.version)
                case Version():
                    versioned = max(versioned, decision.message.version)
                case WindowOpen():
                    opened = decision.message.window
                case Assignment():
                    assignment = decision.message
                case Cohort():
                    served |= {
                        DeviceId(member.device): decision.message.window
                        for member in decision.message.members
                    }
                    used |= {
                        member.device: (member.offer, decision.message.inputs)
                        for member in decision.message.members
                    }
        for source in inputs.values():
            await source.aclose()
        bases = [
            Base(version=found.message.version, sha256=found.message.sha256)
            async for found in self._opened(read_to_end(self.bus, TopicPartition("model"), 0, self.name))
            if isinstance(found.message, Model)
        ]
        ready: dict[str, tuple[DeviceId, int, Ready]] = {}
        async for found in self._opened(read_to_end(self.bus, TopicPartition("checkin"), 0, self.name)):
            self._positions[TopicPartition("checkin")] = found.offset + 1
            offer, until = used.get(found.sender, (-1, 0))
            if isinstance(found.message, Ready) and (found.message.offer > offer or found.offset >= until):
                ready[found.sender] = (DeviceId(found.sender), found.offset, found.message)
            elif isinstance(found.message, Leave):
                ready.pop(found.sender, None)
        sent = {
            found.message.seq
            async for found in self._opened(read_to_end(self.bus, TopicPartition("delta"), 0, self.name))
            if isinstance(found.message, SealedDelta)
        }
        return History(
            ledger=log.ledger,
            window=log.window,
            version=version,
            versioned=versioned,
            opened=opened == log.window,
            commits=tuple(commits),
            refused=refused,
            bases=tuple(bases[-len(self.core.manifest.secure.staleness) :]),
            ready=tuple(ready.values()),
            served=tuple(sorted(served.items())),
            unsent=tuple(delta for seq, delta in sorted(log.sealed.items()) if seq not in sent),
            closed=closed,
            assignment=assignment,
        )

    def _feed(self, log: BoundaryLog, record: Record, found: Incoming) -> None:
        """Give the derivation an input; one that came too early is passed over, as it was before."""
        try:
            log.feed(found)
        except InputRefused as error:
            self.services.log.warning(
                "%s passes over %s@%d: %s", self.name, record.topic, record.offset, error
            )

    async def _opened(self, records: AsyncIterator[Record]) -> AsyncIterator[Incoming]:
        async for record in records:
            found = self._tolerant(record)
            if found is not None:
                yield found

    def _tolerant(self, record: Record) -> Incoming | None:
        """Open a record that is read again at a start; garbage was refused before and must not stop a restart."""
        try:
            return self.open(record)
        except (Refused, ChunkError, ProtocolError) as error:
            self.services.log.warning(
                "%s passes over %s@%d: %s", self.name, record.topic, record.offset, error
            )
            return None

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """Input offsets, and how far `control` is known to hold what this aggregator decided."""
        known = self.store.offsets().get(CONTROL, 0)
        return {**super().stored_offsets(), CONTROL: self.publisher.acked.get(CONTROL, known)}

    async def publisher_settled(self) -> None:
        """Send what the last life left in the outbox, so that `control` holds every decision."""
        await self.publisher.drained(3600.0)

    async def _decisions(self) -> AsyncIterator[Message]:
        start = self.store.offsets().get(CONTROL, 0)
        async for incoming in self._opened(read_to_end(self.bus, CONTROL, start, self.name)):
            yield incoming.message

    def take(self, event: object) -> list[Effect]:
        """Hand an event to the core."""
        raise_if_failed(event)
        if not isinstance(event, Incoming | TimerFired | BoundaryCommit | RefusedDelta | Closed):
            raise TypeError(f"{self.name}: {event!r} is not an event of an aggregator")
        return self.core.handle(event)

    async def _record(self, record: Record) -> list[Effect]:
        if record.topic != GLOBAL.topic:
            return await super()._record(record)
        effects: list[Effect] = []
        step = self._global.read(without_source(record))
        for fault in serious(step):
            effects.append(self.refuse(record, reason_of(fault), fault.detail))
        if step.entry is not None and step.entry.refusal is None and not effects:
            event = self._event(step.entry)
            if event is not None:
                effects += self.take(event)
        return effects

    def _event(self, entry: Entry) -> BoundaryCommit | RefusedDelta | Closed | None:
        message, payload = entry.message, entry.payload or b""
        match message:
            case Genesis():
                if message.manifest_sha256 != self._pinned:
                    raise StateError(f"{self.name}: genesis carries another run manifest than the pinned one")
                adapter = np.frombuffer(payload[message.manifest_length :], "<f4")
                return BoundaryCommit(0, adapter, (), self.core.manifest.pace, 0, entry.value)
            case Commit():
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self._index)
                adapter = np.frombuffer(payload, "<f4")
                return BoundaryCommit(
                    message.commit, adapter, mine, message.pace, message.tokens, entry.value
                )
            case Refusal() if message.boundary == self._index and message.reason not in OTHER_RECORD:
                return RefusedDelta(message.seq, message.reason is RefusalReason.STALE)
            case Close():
                return Closed(message.commits)
            case _:
                return None


OTHER_RECORD = frozenset({RefusalReason.FORK, RefusalReason.BAD_SEQUENCE})
"""Refusals of a record whose number belongs, or will belong, to another delta: that one is not decided by them."""
SOURCE_HEADER = "source-offset"


def without_source(record: Record) -> Record:
    """A mirrored record as it stood on the exchange."""
    headers = tuple(header for header in record.headers if header[0] != SOURCE_HEADER)
    return Record(
        record.topic, record.partition, record.offset, record.key, record.value, headers, record.timestamp_ms
    )
