"""A device as a service: its core, its learner, and its place in the boundary."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgpack

from echelon.actors.boundary import BoundaryActor, raise_if_failed
from echelon.actors.runtime import end_of
from echelon.bus.base import TopicPartition
from echelon.rounds.device import DeviceCore
from echelon.rounds.effects import Effect, Evaluate, Evaluated, Incoming, Publish, TimerFired, Train, Trained


class Compute(Protocol):
    """Where training runs. Both calls take as long as they take, off the event loop."""

    async def train(self, device: str, job: Train) -> Trained:
        """Run the job on the device's own data."""
        ...

    async def evaluate(self, device: str, job: Evaluate) -> Evaluated:
        """Evaluate the device's own validation slice."""
        ...


Interceptor = Callable[[str, Effect], bool]
"""Asked with (device, effect) before an effect is carried out; False makes the device vanish at this point."""


class Device(BoundaryActor):
    """The shell around `DeviceCore`.

    Args:
        core: the state machine.
        compute: where training runs.
        slot: the partition of `inbox` that is this device's.
        interceptor: for fault injection; None lets everything pass.
    """

    def __init__(
        self,
        *,
        core: DeviceCore,
        compute: Compute,
        slot: int,
        interceptor: Interceptor | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(core.me, **shared)
        self.core, self.compute, self.slot, self.interceptor = core, compute, slot, interceptor
        self._stored: tuple[object, ...] = (self,) * 4  # nothing is stored yet

    def inputs(self) -> Iterable[TopicPartition]:
        """Decisions, adapters, and what is sealed to this device."""
        return (TopicPartition("control"), TopicPartition("model"), TopicPartition("inbox", self.slot))

    async def recover(self) -> list[Effect]:
        """Restore the snapshot; rounds that were under way died with their keys."""
        snapshot = self.store.snapshot()
        vectors = self.store.vectors()
        if snapshot is not None and vectors is not None:
            self.core.restore(bytes(msgpack.packb([snapshot, vectors])))
            self._stored = self.core.held()
        self.core.live_from = await end_of(self.bus, TopicPartition("control"), self.name)
        return [*self.core.start(), *self.core.resume()]

    def snapshot(self) -> bytes:
        """The core's state, without its vectors."""
        return self.core.facts()

    def vectors(self) -> bytes | None:
        """The core's vectors, if one of them was replaced since they were stored."""
        held = self.core.held()
        if all(now is before for now, before in zip(held, self._stored, strict=True)):
            return None
        self._stored = held
        return self.core.vectors()

    def take(self, event: object) -> list[Effect]:
        """Hand an event to the core."""
        raise_if_failed(event)
        if not isinstance(event, Incoming | TimerFired | Trained | Evaluated):
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
            case Train():
                self.start_job(self.compute.train(self.name, effect), "training")
            case Evaluate():
                self.start_job(self.compute.evaluate(self.name, effect), "evaluation")
            case _:
                await super().perform(effect)


class Vanished(Exception):
    """A device left without a word, because a fault schedule said so."""


async def run_device(device: Device) -> None:
    """Run a device; one that vanishes on schedule simply ends."""
    try:
        await device.run()
    except Vanished:
        await asyncio.sleep(0)
