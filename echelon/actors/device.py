"""A device as a service: its core, its learner, and its place in the boundary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import msgpack

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.runtime import DRAIN_SECONDS, end_of, read_to_end
from echelon.actors.splitting import DeviceSide, SplitDriver, TripMeter
from echelon.actors.state import State
from echelon.bus.base import Record, TopicPartition
from echelon.bus.chunks import is_chunk
from echelon.laws.channel import Parties
from echelon.messages.boundary import Cohort
from echelon.messages.handshake import Deliver, inbox_of
from echelon.messages.split import SplitPong
from echelon.messages.stored import stored
from echelon.messages.wire import Message, Refused
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.device.split_core import DeviceSplitCore
from echelon.rounds.effects import (
    Abandoned,
    Effect,
    Evaluate,
    Evaluated,
    Incoming,
    MeasureTrips,
    Publish,
    ShardRead,
    ShardReleased,
    ShardsGained,
    ShardsLost,
    TimerFired,
    TrainJob,
    TrainOutcome,
    TripsMeasured,
)


class Compute(Protocol):
    """Where training runs. Both calls take as long as they take, off the event loop."""

    async def train(self, device: str, job: TrainJob) -> TrainOutcome:
        """Run the job on the device's own data, or on the shard that it names."""
        ...

    async def evaluate(self, device: str, job: Evaluate) -> Evaluated:
        """Evaluate the device's own validation slice, or those of the shards that the job names."""
        ...


ShardChange = ShardsGained | ShardsLost


class ShardSource(Protocol):
    """Says which data shards are this device's, and keeps where their data goes on."""

    async def run(self, changed: Callable[[ShardChange], None]) -> None:
        """Tell every change, until cancelled or until nothing can change any more; then let go of the shards.

        Raises:
            EchelonError: the shards cannot be had; the device ends with it.
        """
        ...

    def read(self, shard: int, position: int) -> None:
        """The device read a shard up to `position` and still has it."""
        ...

    def released(self, shard: int, position: int) -> None:
        """No job of the device runs on a lost shard any more; it was read up to `position`."""
        ...


@dataclass(frozen=True, slots=True)
class Departure:
    """The device is asked to go, in order, within so many seconds."""

    within: float


DOWN = "split.down"
MODEL = TopicPartition("model")
EVENTS = Incoming | TimerFired | TrainOutcome | Abandoned | Evaluated | TripsMeasured | ShardChange

Interceptor = Callable[[str, Effect], bool]
"""Asked with (actor, effect) before a device or an edge carries an effect out; False makes it vanish at this point."""


class Device(BoundaryActor):
    """The shell around `DeviceCore`.

    Args:
        core: the state machine.
        compute: where training runs; None for a device that does not hold the whole model.
        slot: which partition of `inbox` has what is sealed to it, see `inbox_of`.
        inbox_shared_with: other devices that read that partition.
        shards: which data shards it trains; None for a device with data of its own.
        half: its part of the model, if an edge has the middle of it.
        timeout: seconds that an edge's answer may take.
        interceptor: for fault injection; None lets everything pass.
    """

    shares_opened = True

    def __init__(
        self,
        *,
        core: DeviceCore,
        compute: Compute | None,
        slot: int,
        inbox_shared_with: frozenset[str] = frozenset(),
        shards: ShardSource | None = None,
        half: DeviceSide | None = None,
        timeout: float = 60.0,
        interceptor: Interceptor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(core.me, **shared)
        self.core, self.compute, self.slot, self.interceptor = core, compute, slot, interceptor
        self.shards, self.half = shards, half
        self._inbox_shared_with = inbox_shared_with
        boundary = self.membership.boundary
        split = DeviceSplitCore(
            device=core.me, slot=slot, parties=lambda edge: Parties(self.membership.run, boundary, core.me, edge),
            entropy=core.entropy, timeout=timeout,
        )  # fmt: skip
        self.link = SplitDriver(core=split, side=half, send=self._send, log=self.services.log)
        self.trips = TripMeter(slot, core.entropy, self._send)
        self._ended = asyncio.Event()
        self._adapters: list[bytes] = []
        """Signatures of records of `model` that no stored state has taken yet."""
        self._stored: tuple[object, ...] = (self,) * 4  # nothing is stored yet

    def inputs(self) -> Iterable[TopicPartition]:
        """Decisions, adapters, and what is sealed to this device; of a split device also what its edge answers."""
        own = (
            TopicPartition("control"),
            MODEL,
            TopicPartition("versions"),
            TopicPartition("inbox", inbox_of(self.slot)),
        )
        return own if self.half is None else (*own, TopicPartition(DOWN, self.slot))

    def open(self, record: Record) -> Incoming | None:
        """As every actor, but what is sealed to another device on the same partition is passed over."""
        found = super().open(record)
        if found is not None and isinstance(found.message, Deliver):
            return None if found.message.to in self._inbox_shared_with else found
        return found

    def works_on(self, message: Message) -> bool:
        """Whether it has more to do about a costly decision than to see that it is about other devices."""
        return self.core.works_on(message)

    def consumed(self) -> Iterable[TopicPartition]:
        """What its edge sent."""
        return () if self.half is None else (TopicPartition(DOWN, self.slot),)

    def expects(self, topic: str, sender: str, scope: bytes) -> bool:
        """An edge's frames belong to the session that is open with it; what else has payloads belongs to none.

        Args:
            topic: where the transfer stands.
            sender: name of who sends it.
            scope: id of the session that it belongs to, or `NO_SCOPE`.
        """
        return self.link.core.knows(sender, scope) if topic == DOWN else super().expects(topic, sender, scope)

    def _send(self, frame: Publish) -> None:
        """Publish a record of a session: worthless after a restart, so it is not stored."""
        if self.interceptor is not None and not self.interceptor(self.name, frame):
            raise Vanished(self.name)
        self.publisher.put(list(self.seal(frame)))

    async def recover(self) -> list[Effect]:
        """Restore the snapshot; rounds that were under way died with their keys."""
        snapshot = self.store.snapshot()
        vectors = self.store.vectors()
        if snapshot is not None and vectors is not None:
            with stored(f"{self.name}: its stored state"):
                self.core.restore(bytes(msgpack.packb([snapshot, vectors])))
            self._stored = self.core.held()
        else:
            await self._recall()
        self._positions[MODEL] = min(self._positions[MODEL], self.core.adapters.model_from)
        self.core.live_from = await end_of(self.bus, TopicPartition("control"), self.name)
        if self.half is not None:
            at = TopicPartition(DOWN, self.slot)
            self._positions[at] = await end_of(self.bus, at, self.name)
        if self.shards is not None:
            watch = asyncio.create_task(self.shards.run(self._events.put_nowait), name=f"{self.name} shards")
            self._jobs.add(watch)
            watch.add_done_callback(self._job_done)
        return [*self.core.start(), *self.core.resume()]

    async def _recall(self) -> None:
        """Without a state: the numbers of an earlier life's updates, before there is a model to make another one from.

        Cohorts say them; `control` and `model` are read side by side, and a model may well come first.
        """
        async for record in read_to_end(self.bus, TopicPartition("control"), 0, self.name):
            if is_chunk(record):
                continue
            try:
                _, message = self._opener.verified(record)
            except Refused:
                continue  # it is refused when it is read in its turn
            if isinstance(message, Cohort):
                mine = [member.offer for member in message.members if member.device == self.core.me]
                self.core.state.offers = max(self.core.state.offers, *mine, 0)

    async def run(self) -> None:
        """As every actor; whoever waits for it to leave is told."""
        try:
            await super().run()
        finally:
            self._ended.set()

    async def leave(self, within: float) -> bool:
        """Ask the device to go, and wait until it has: it sees the window through that it is in, and trains no more.

        Args:
            within: seconds after which it stops whatever it is doing.

        Returns:
            Whether it has ended; it may then still be closing what it holds.
        """
        self._events.put_nowait(Departure(within))
        try:
            async with asyncio.timeout(within + DRAIN_SECONDS):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """The input offsets; of `model`, from behind the adapter that the stored state trains from."""
        offsets = super().stored_offsets()
        return {**offsets, MODEL: min(offsets[MODEL], self.core.adapters.model_from)}

    def _taken(self) -> dict[TopicPartition, list[bytes]]:
        """As every actor, but adapters that are not derived yet: no snapshot has them, so they are read again."""
        taken = super()._taken()
        self._adapters += taken.pop(MODEL, [])
        if not self.core.adapters.waiting:
            taken[MODEL], self._adapters = self._adapters, []
        return taken

    def snapshot(self) -> bytes:
        """The core's state, without its vectors."""
        return self.core.facts()

    def vectors(self) -> State | None:
        """The core's vectors, if one of them was replaced since they were stored."""
        held = self.core.held()
        if all(now is before for now, before in zip(held, self._stored, strict=True)):
            return None
        self._stored = held
        return self.core.vectors()

    def take(self, event: object) -> list[Effect]:
        """Hand an event to the core."""
        raise_if_failed(event)
        if isinstance(event, Departure):
            return self.core.leave(event.within)
        if isinstance(event, Incoming) and event.topic == DOWN:
            if not isinstance(event.message, SplitPong):
                self.link.take(event)
            elif event.message.device == self.core.me:
                self.trips.take(event.sender, event.message)
            return []
        if not isinstance(event, EVENTS):
            raise TypeError(f"{self.name}: {event!r} is not an event of a device")
        return self.core.handle(event)

    async def carry_out(self, effects: Any) -> None:
        """As every actor, unless a fault makes the device vanish."""
        if self.interceptor is not None:
            for place, effect in enumerate(effects):
                if not self.interceptor(self.name, effect):
                    await super().carry_out([kept for kept in effects[:place] if isinstance(kept, Publish)])
                    await self.publisher.drained(1.0)
                    raise Vanished(self.name)
        await super().carry_out(effects)

    async def perform(self, effect: Effect) -> None:
        """Start training or evaluation beside the loop."""
        match effect:
            case TrainJob() if effect.split is not None and self.half is not None:
                self.start_job(partial(self.link.run, effect), "training")
            case TrainJob() if self.compute is not None:
                self.start_job(partial(self.compute.train, self.name, effect), "training")
            case Evaluate() if effect.edge and self.half is not None:
                self.start_job(partial(self.link.run, effect), "evaluation")
            case MeasureTrips():
                self.start_job(self.trips.measure, "round trips")
            case Evaluate() if self.compute is not None:
                self.start_job(partial(self.compute.evaluate, self.name, effect), "evaluation")
            case ShardRead() if self.shards is not None:
                self.shards.read(effect.shard, effect.position)
            case ShardReleased() if self.shards is not None:
                self.shards.released(effect.shard, effect.position)
            case _:
                await super().perform(effect)


class Vanished(Exception):
    """A device or an edge left without a word, because a fault schedule said so."""


async def run_device(device: BoundaryActor) -> None:
    """Run a device, or an edge; one that vanishes on schedule simply ends."""
    try:
        await device.run()
    except Vanished:
        await asyncio.sleep(0)
