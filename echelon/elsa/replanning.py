"""Moving a device's cut while it trains: what it measured of itself, and whether another cut pays.

Two things are measured: how long the device computes for a micro-batch, and how long a micro-batch's two trips to the
edge and back take when nothing queues. The profile is scaled by how far they are from the estimates for the cut in
effect; memory, and how fast the edge computes, stay as declared. This rule is our own; ELSA's is not public.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace

from echelon.elsa.costs import Load
from echelon.elsa.plan import DeviceProfile, EdgeProfile, PlanRules, Processor, Split, estimate, plan, replan
from echelon.elsa.shapes import ModelShape
from echelon.errors import ConfigError

JOBS = 3
"""Jobs of one cut that are measured before another is thought of."""
MOST = 1024.0
"""A profile is scaled by so much at most, either way."""
NEWS = 0.05
"""Relative change of a measurement since the last plan that is worth another one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one job measured, in seconds of one micro-batch.

    Attributes:
        device_s: of computing, the mean of all.
        trip_s: from sending to the answer, forward and backward together, the least: others may have queued.
    """

    device_s: float
    trip_s: float


@dataclass(frozen=True, slots=True)
class Replanner:
    """The profile of one device, the cut in effect, and what was measured with it; a value.

    Attributes:
        shape: of the model.
        load: of one sequence.
        device: the profile as declared.
        edge: as declared.
        rules: what may be planned; the whole model on the device is not: its devices train with an edge.
        gain: share of the step time that another cut must save to be taken.
        current: the cut in effect, as the declared profile has it.
        seen: the newest measurements with it.
        planned: factors of the newest plan.
    """

    shape: ModelShape
    load: Load
    device: DeviceProfile
    edge: EdgeProfile
    rules: PlanRules
    gain: float
    current: Split
    seen: tuple[Measured, ...] = ()
    planned: tuple[float, float] = (1.0, 1.0)

    @classmethod
    def of(
        cls, shape: ModelShape, load: Load, device: DeviceProfile, edge: EdgeProfile, rules: PlanRules,
        *, gain: float, cut: tuple[int, int], micro: int, in_flight: int,
    ) -> Replanner:  # fmt: skip
        """For a device that starts with this cut.

        Args:
            shape: sizes of the model.
            load: sequence length, bytes of an element, rank and targets.
            device: the device's profile as it is known at the start.
            edge: the profile of its edge.
            rules: what may be chosen from; the whole model on the device is not.
            gain: share of the step time that a move must save.
            cut: blocks before and after the middle, p and q.
            micro: sequences of a micro-batch.
            in_flight: micro-batches on their way at once.
        """
        front, back = cut
        current = estimate(
            shape, load, device, edge, rules, front=front, back=back, micro=micro, in_flight=in_flight
        )
        return cls(shape, load, device, edge, replace(rules, whole=False), gain, current)

    def observe(self, measured: Measured) -> tuple[Replanner, Split | None]:
        """Take a job's measurements; and the split to go on with, None for the one in effect."""
        seen = (*self.seen, measured)[-JOBS:]
        core = replace(self, seen=seen)
        if len(seen) < JOBS:
            return core, None
        factors = core._factors()
        if all(abs(now / then - 1) <= NEWS for now, then in zip(factors, self.planned, strict=True)):
            return core, None
        core = replace(core, planned=factors)
        device = _scaled(self.device, *factors)
        try:
            fresh = plan(self.shape, self.load, device, self.edge, self.rules)
        except ConfigError:
            # No cut that it may have fits the declared memory; the one in effect was given so.
            return core, None
        chosen = replan(self.current, fresh, gain=self.gain)
        now = core._estimate(device, self.current)
        if chosen.step_s > (1 - self.gain) * now.step_s and self._fits(now):
            return core, None
        if _terms(chosen) == _terms(now):
            return core, None
        return replace(core, current=core._estimate(self.device, chosen), seen=()), chosen

    def _factors(self) -> tuple[float, float]:
        """How many times as long as declared the device computes, and the link takes."""
        computing = statistics.median(one.device_s for one in self.seen) / self.current.device_s
        link = self.current.latency_s - self.current.device_s - self.current.edge_s
        trip = statistics.median(one.trip_s for one in self.seen) - self.current.edge_s
        return _bounded(computing), _bounded(trip / link)

    def _estimate(self, device: DeviceProfile, split: Split) -> Split:
        return estimate(
            self.shape, self.load, device, self.edge, self.rules,
            front=split.front, back=split.back, micro=split.micro_batch, in_flight=split.in_flight,
        )  # fmt: skip

    def _fits(self, split: Split) -> bool:
        return split.memory.total <= self.rules.usable(self.device.memory)


def _terms(split: Split) -> tuple[int, int, int, int]:
    return split.front, split.back, split.micro_batch, split.in_flight


def _bounded(factor: float) -> float:
    return min(max(factor, 1 / MOST), MOST)


def _scaled(device: DeviceProfile, computing: float, link: float) -> DeviceProfile:
    """The profile of a device that computes so many times as long, behind a link that takes so many times as long."""
    own = device.processor
    bandwidth = own.bandwidth if math.isinf(own.bandwidth) else own.bandwidth / computing
    return replace(
        device,
        processor=Processor(own.flops / computing, bandwidth, own.overhead * computing),
        uplink=device.uplink / link,
        downlink=device.downlink / link,
        rtt=device.rtt * link,
    )
