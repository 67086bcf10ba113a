"""The aggregator as a service: the boundary's windows and ledger, and what the exchange decided."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Any

import numpy as np

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.exchange import reason_of, serious
from echelon.actors.runtime import read_to_end
from echelon.audit.log import Entry, TopicLog
from echelon.bus.base import Record, TopicPartition
from echelon.errors import StateError
from echelon.messages.exchange import Close, Commit, Genesis, Refusal, RefusalReason
from echelon.messages.wire import Message
from echelon.rounds.aggregator import AggregatorCore, Closed, Committed, RefusedDelta
from echelon.rounds.effects import Effect, Incoming, TimerFired

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
        self._global = TopicLog("global")  # genesis names the key, and is pinned

    def inputs(self) -> Iterable[TopicPartition]:
        """Check-ins, rounds, masked updates, and the exchange's decisions as the gate mirrored them."""
        return (TopicPartition("checkin"), TopicPartition("handshake"), TopicPartition("masked"), GLOBAL)

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
            self._global.restore(snapshot[8:end])
            self.core.restore(snapshot[end:])
        decisions = [message async for message in self._decisions()]
        if snapshot is None and decisions:
            raise StateError(
                f"{self.name}: its topics hold decisions and its state file is gone; "
                "rebuild it first (AggregatorCore.rebuild from the boundary's topics)"
            )
        self.core.recover(decisions)
        return self.core.start()

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """Input offsets, and how far `control` is known to hold what this aggregator decided."""
        known = self.store.offsets().get(CONTROL, 0)
        return {**super().stored_offsets(), CONTROL: self.publisher.acked.get(CONTROL, known)}

    async def publisher_settled(self) -> None:
        """Send what the last life left in the outbox, so that `control` holds every decision."""
        await self.publisher.drained(3600.0)

    async def _decisions(self) -> AsyncIterator[Message]:
        start = self.store.offsets().get(CONTROL, 0)
        async for record in read_to_end(self.bus, CONTROL, start, self.name):
            incoming = self.open(record)
            if incoming is not None:
                yield incoming.message

    def take(self, event: object) -> list[Effect]:
        """Hand an event to the core."""
        raise_if_failed(event)
        if not isinstance(event, Incoming | TimerFired | Committed | RefusedDelta | Closed):
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

    def _event(self, entry: Entry) -> Committed | RefusedDelta | Closed | None:
        message, payload = entry.message, entry.payload or b""
        match message:
            case Genesis():
                if message.manifest_sha256 != self._pinned:
                    raise StateError(f"{self.name}: genesis carries another run manifest than the pinned one")
                adapter = np.frombuffer(payload[message.manifest_length :], "<f4")
                return Committed(0, adapter, (), self.core.manifest.pace, 0)
            case Commit():
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self._index)
                return Committed(
                    message.commit, np.frombuffer(payload, "<f4"), mine, message.pace, message.tokens
                )
            case Refusal() if message.boundary == self._index:
                return RefusedDelta(message.seq, message.reason is RefusalReason.STALE)
            case Close():
                return Closed(message.commits)
            case _:
                return None


SOURCE_HEADER = "source-offset"


def without_source(record: Record) -> Record:
    """A mirrored record as it stood on the exchange."""
    headers = tuple(header for header in record.headers if header[0] != SOURCE_HEADER)
    return Record(
        record.topic, record.partition, record.offset, record.key, record.value, headers, record.timestamp_ms
    )
