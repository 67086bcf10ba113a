"""An edge as a service: its core, the middle blocks, and its place in the boundary."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.device import Interceptor, Vanished
from echelon.actors.runtime import end_of
from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import is_chunk
from echelon.messages.boundary import DeadLetter
from echelon.messages.envelope import Envelope
from echelon.messages.frames import Decline
from echelon.messages.split import SplitFrame
from echelon.messages.stored import stored
from echelon.messages.wire import Reason, Refused
from echelon.rounds.edge.core import EdgeCore, changes
from echelon.rounds.effects import (
    EdgeDone,
    EdgeDrop,
    EdgeTask,
    Effect,
    Incoming,
    Publish,
    Refuse,
    TimerFired,
)

UP = "split.up"


class EdgeSide(Protocol):
    """Where the middle blocks are computed. Calls take as long as they take, off the event loop."""

    async def part(self, edge: str, task: EdgeTask) -> EdgeDone:
        """Do the work; a tensor that is none, or a step that cannot be taken, is a `fault` of what comes back."""
        ...

    async def drop(self, edge: str, device: str) -> None:
        """Let go of what is kept of a device's job that is under way."""
        ...


class Edge(BoundaryActor):
    """The shell around `EdgeCore`.

    Args:
        core: the state machine.
        compute: where the middle blocks are computed.
        slots: partitions of `split.up`.
        interceptor: for fault injection; None lets everything pass.
    """

    def __init__(
        self,
        *,
        core: EdgeCore,
        compute: EdgeSide,
        slots: int,
        interceptor: Interceptor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(core.name, **shared)
        self.core, self.compute, self._slots = core, compute, slots
        self.interceptor = interceptor
        self._turns: dict[str, asyncio.Lock] = {}
        self._digests: dict[tuple[str, int, int], tuple[Record, bytes]] = {}
        """The records behind work that is under way, by device, step and micro-batch."""
        self._stored: dict[str, object] = {}
        """What the store has of the core's large parts; the objects themselves."""

    def inputs(self) -> Iterable[TopicPartition]:
        """Decisions, adapters, and what devices send."""
        return (
            TopicPartition("control"),
            TopicPartition("model"),
            TopicPartition("versions"),
            *(TopicPartition(UP, slot) for slot in range(self._slots)),
        )

    def consumed(self) -> Iterable[TopicPartition]:
        """What the devices sent that have their session here."""
        return (
            TopicPartition(UP, entry.slot)
            for entry in self.core.roster.entries
            if self.core.sessions.serves(entry.device)
        )

    async def recover(self) -> list[Effect]:
        """Restore what was stored; sessions died with their keys, so devices' frames are read from their end."""
        snapshot = self.store.snapshot()
        if snapshot is not None:
            with stored(f"{self.name}: its stored state"):
                self.core.restore(snapshot, self.store.parts())
            self._stored = dict(self.core.held())
        for slot in range(self._slots):
            at = TopicPartition(UP, slot)
            self._positions[at] = await end_of(self.bus, at, self.name)
        return self.core.start()

    def snapshot(self) -> bytes:
        """The core's state, without its vectors."""
        return self.core.facts()

    def parts(self) -> dict[str, bytes | None]:
        """Adapters, middle updates and moments, as far as they are others than were stored before."""
        held, before = self.core.held(), self._stored
        self._stored = dict(held)
        return changes(before, held)

    def open(self, record: Record) -> Incoming | None:
        """As every actor, but for devices that are another edge's: their chunks and frames are passed over unread."""
        if record.topic == UP:
            if is_chunk(record):
                if not self.core.sessions.serves(record.key.decode(errors="replace")):
                    return None
            elif self._foreign(record):
                return None
        return super().open(record)

    def expects(self, topic: str, sender: str, scope: bytes) -> bool:
        """Frames belong to a device's session with this edge; what else has payloads belongs to none.

        Args:
            topic: where the transfer stands.
            sender: whose it is.
            scope: the session that it says it belongs to.

        Returns:
            Whether it is taken.
        """
        return (
            self.core.sessions.knows(sender, scope) if topic == UP else super().expects(topic, sender, scope)
        )

    def _foreign(self, record: Record) -> bool:
        try:
            envelope = Envelope.open(record.value)
            if envelope.type != SplitFrame.kind:
                return False
            return not self.core.sessions.knows(envelope.sender, SplitFrame.decode(envelope.body).session)
        except Refused:
            return False  # what it is, and that it is refused, is said where every record is opened

    async def _record(self, record: Record) -> list[Effect]:
        effects: list[Effect] = []
        for effect in await super()._record(record):
            if isinstance(effect, Refuse):
                effects.append(self.refuse(record, effect.reason, effect.detail))
                continue
            if isinstance(effect, EdgeTask):
                self._digests[_key(effect)] = (record, hashlib.sha256(record.value).digest())
            effects.append(effect)
        return effects

    def take(self, event: object) -> list[Effect]:
        """Hand an event to the core."""
        raise_if_failed(event)
        if event is None:
            return []
        if isinstance(event, EdgeDone):
            record, digest = self._digests.pop(_key(event.task), (None, b""))
            effects = self.core.handle(event)
            if event.fault is Decline.BAD_TENSOR and record is not None:
                effects.append(self._dead(record, digest, f"{event.task.device}: {event.detail}"))
            return effects
        if not isinstance(event, Incoming | TimerFired):
            raise TypeError(f"{self.name}: {event!r} is not an event of an edge")
        return self.core.handle(event)

    def _dead(self, record: Record, digest: bytes, detail: str) -> Publish:
        self.services.log.warning("%s refused %s@%d: %s", self.name, record.topic, record.offset, detail)
        letter = DeadLetter(
            topic=record.topic, partition=record.partition, offset=record.offset, reason=Reason.BAD_TENSOR,
            record_sha256=digest, detail=detail[:250],
        )  # fmt: skip
        return Publish("deadletter", letter, 0)

    async def carry_out(self, effects: Any) -> None:
        """As every actor, unless a fault makes the edge vanish: of that step nothing is stored or sent."""
        if self.interceptor is not None and not all(
            self.interceptor(self.name, effect) for effect in effects
        ):
            raise Vanished(self.name)
        await super().carry_out(effects)

    async def perform(self, effect: Effect) -> None:
        """Start work on the middle beside the loop: one device's in order, devices' beside each other."""
        match effect:
            case EdgeTask():
                self.start_job(partial(self._middle, effect), "middle")
            case EdgeDrop():
                self.start_job(partial(self._drop, effect.device), "drop")
            case _:
                await super().perform(effect)

    def _turn(self, device: str) -> asyncio.Lock:
        """Whoever waits for a device's turn gets it in the order of asking."""
        return self._turns.setdefault(device, asyncio.Lock())

    async def _middle(self, task: EdgeTask) -> EdgeDone:
        async with self._turn(task.device):
            return await self.compute.part(self.name, task)

    async def _drop(self, device: str) -> None:
        async with self._turn(device):
            await self.compute.drop(self.name, device)


def _key(task: EdgeTask) -> tuple[str, int, int]:
    return task.device, getattr(task.head, "step", -1), getattr(task.head, "micro", -1)
