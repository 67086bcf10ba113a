"""The aggregator as a service: the boundary's windows and ledger, and what the exchange decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.exchange import reason_of, reportable_faults
from echelon.actors.runtime import read_to_end
from echelon.actors.snapshots import find_snapshot, kept_from, snapshot_opener, starts
from echelon.actors.state import State
from echelon.actors.verified_records import RecordOpener
from echelon.audit.log import Entry, Step, TopicLog
from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import ChunkError
from echelon.errors import ProtocolError, StateError
from echelon.laws.lengths import genesis_length
from echelon.laws.relay import relayed_commit
from echelon.messages.boundary import (
    INPUTS,
    Released,
)
from echelon.messages.exchange import (
    OTHER_RECORD,
    SOURCE_HEADER,
    Close,
    Commit,
    Genesis,
    Refusal,
    RefusalReason,
)
from echelon.messages.stored import stored
from echelon.messages.wire import Message, Refused
from echelon.rounds.aggregator.core import AggregatorCore
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.aggregator.recovery import History, HistoryReader
from echelon.rounds.effects import Effect, Incoming, TimerFired
from echelon.secagg.faults import InputRefused

GLOBAL = TopicPartition("global")
CONTROL = TopicPartition("control")
MODEL, CHECKIN, DELTA = TopicPartition("model"), TopicPartition("checkin"), TopicPartition("delta")


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
        self._global = TopicLog("global", largest=genesis_length(core.dim), inside=True)

    def inputs(self) -> Iterable[TopicPartition]:
        """Check-ins, rounds, masked updates, edges' parts, and the exchange's decisions as the gate mirrored them."""
        boundary = ("checkin", *INPUTS, "behaviour", "versions")
        return (*(TopicPartition(topic) for topic in boundary), GLOBAL)

    async def drain(self, pump: asyncio.Task[None]) -> None:
        """The end of the run is for the devices to hear, whenever their broker is there again."""
        await self.publisher.flush(pump, lambda: self.halted)

    def snapshot(self) -> State:
        """How far `global` was read, then the core's state."""
        log = self._global.snapshot()
        return chain((len(log).to_bytes(8, "big"), log), self.core.snapshot_parts())

    async def recover(self) -> list[Effect]:
        """Restore the snapshot, then adopt what this aggregator decided after it."""
        await self.publisher_settled()
        snapshot = self.store.snapshot()
        if snapshot is not None:
            end = 8 + int.from_bytes(snapshot[:8], "big")
            with stored(f"{self.name}: its stored state"):
                self._global.restore(snapshot[8:end])
                self._global.manifest = self.core.manifest
                self.core.restore(snapshot[end:])
            await self._pass_over_trimmed()
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

    async def _pass_over_trimmed(self) -> None:
        """A stored position may be that of an upload which nobody finished: it may be trimmed with its window."""
        firsts = await kept_from(self.bus, self.name)
        behind = {TopicPartition(topic): first for topic, first in firsts.items()}
        if any(self._positions[at] < first for at, first in behind.items()):
            await find_snapshot(self.bus, self._snapshot_opener(), firsts, self.name)
            self._positions |= {at: max(first, self._positions[at]) for at, first in behind.items()}

    def _snapshot_opener(self) -> RecordOpener:
        return snapshot_opener(self.core.manifest, self.membership, self.catalogue)

    async def _history(self) -> History:
        """Read the boundary's topics, and let its state be derived from them."""
        self.forget_repeats()
        reader = HistoryReader(self.core.manifest, self.core.roster, self.core.dim)
        begins = {TopicPartition(topic): 0 for topic in INPUTS}
        if firsts := await kept_from(self.bus, self.name):
            found, payload = await find_snapshot(self.bus, self._snapshot_opener(), firsts, self.name)
            with stored(f"{self.name}: the gate's snapshot of window {found.window}"):
                reader.restore(payload)
            begins = starts(found)
            self._positions |= begins
        async for record in read_to_end(self.bus, GLOBAL, 0, self.name):
            step = self._read_global(record)
            self._positions[GLOBAL] = record.next_offset
            event = None if step.entry is None or step.entry.refusal is not None else self._event(step.entry)
            if event is not None:
                reader.hear(event)
        inputs = {at.topic: read_to_end(self.bus, at, start, self.name) for at, start in begins.items()}
        async for decision in self._opened(read_to_end(self.bus, CONTROL, 0, self.name)):
            reader.decide(decision)
            await self._feed_due(reader, inputs)
        for source in inputs.values():
            await source.aclose()
        for topic in (MODEL, CHECKIN, DELTA):
            async for incoming in self._opened(read_to_end(self.bus, topic, 0, self.name)):
                if topic == CHECKIN:
                    self._positions[CHECKIN] = incoming.offset + 1
                reader.take(incoming)
        return reader.history()

    async def _feed_due(self, reader: HistoryReader, inputs: dict[str, AsyncGenerator[Record]]) -> None:
        """Feed inputs while they are due; one that came too early is passed over, as it was before."""
        while (due := next((topic for topic in inputs if topic in reader.due()), None)) is not None:
            record = await anext(inputs[due], None)
            if record is None:
                del inputs[due]
                continue
            self._positions[record.at] = record.next_offset
            incoming = self._tolerant(record)
            if incoming is None:
                continue
            try:
                reader.feed(incoming)
            except InputRefused as error:
                self.services.log.warning(
                    "%s passes over %s@%d: %s", self.name, record.topic, record.offset, error
                )

    async def _opened(self, records: AsyncIterator[Record]) -> AsyncIterator[Incoming]:
        async for record in records:
            incoming = self._tolerant(record)
            if incoming is not None:
                yield incoming

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
        step = self._read_global(record)
        for fault in reportable_faults(step):
            effects.append(self.refuse(record, reason_of(fault), fault.detail))
        if step.entry is not None and step.entry.refusal is None and not effects:
            event = self._event(step.entry)
            if event is not None:
                effects += self.take(event)
        return effects

    def _read_global(self, record: Record) -> Step:
        if relayed_commit(record.headers) is not None:
            return self._global.relay(replace(record, headers=record.headers[:-1]))
        return self._global.read(without_source(record))

    def _event(self, entry: Entry) -> BoundaryCommit | RefusedDelta | Closed | None:
        message, payload = entry.message, entry.payload or b""
        match message:
            case Genesis():
                if message.manifest_sha256 != self._pinned:
                    raise StateError(f"{self.name}: genesis carries another run manifest than the pinned one")
                adapter = self._global.take_initial()
                if adapter is None:
                    raise StateError(f"{self.name}: genesis was read before")
                return BoundaryCommit(
                    commit=0,
                    adapter=adapter,
                    merged=(),
                    pace=self.core.manifest.pace,
                    tokens=0,
                    signed=self._global.with_proofs(entry.value),
                )
            case Commit():
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self._index)
                adapter = np.frombuffer(payload, "<f4")
                return BoundaryCommit(
                    commit=message.commit,
                    adapter=adapter,
                    merged=mine,
                    pace=message.pace,
                    tokens=message.tokens,
                    signed=self._global.with_proofs(entry.value),
                )
            case Refusal() if message.boundary == self._index and message.reason not in OTHER_RECORD:
                return RefusedDelta(message.seq, message.reason is RefusalReason.STALE)
            case Close():
                return Closed(message.commits)
            case _:
                return None


def without_source(record: Record) -> Record:
    """A mirrored record as it stood on the exchange."""
    headers = tuple(header for header in record.headers if header[0] != SOURCE_HEADER)
    return replace(record, headers=headers)
