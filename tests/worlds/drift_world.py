"""Boundaries of devices that descend quadratics with noise, without actors: what a pace controller would see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from echelon.laws.delta_codec import decode, encode, integers
from echelon.laws.timing import CONTROLLER
from echelon.messages.adapter import F64
from echelon.messages.exchange import Delta, DeltaCodec, Pace, Payload, WindowSummary
from echelon.pace.base import MergedDelta, PaceController, PaceInputs

UNIT = 256


def window(number: int, updates: Sequence[F64], weights: Sequence[int]) -> tuple[WindowSummary, F64]:
    """What a window of these updates adds up to: its summary and its mean."""
    total = sum((w * update for w, update in zip(weights, updates, strict=True)), np.zeros_like(updates[0]))
    weight = sum(weights)
    mean = total / weight
    summary = WindowSummary(
        window=number, heads=len(updates), n=weight // UNIT, weight=weight,
        weight2=sum(w * w for w in weights), roster_root=bytes(32),
        norm2=round(sum(w * float(u @ u) for w, u in zip(weights, updates, strict=True)) * 2**32),
        mean2=int(float(mean @ mean) * 2**32),
        tokens=1024, loss=0, loss_tokens=0, eval_commit=0, eval_loss=0, eval_tokens=0,
    )  # fmt: skip
    return summary, mean


def merged(
    boundary: int,
    vector: F64,
    windows: Sequence[WindowSummary],
    *,
    base: int = 0,
    sync_us: int = 0,
    spacing_us: int = 0,
    codec: DeltaCodec = DeltaCodec.INT16,
) -> MergedDelta:
    """A delta as a commit takes it."""
    payload, exponent = encode(vector, codec)
    delta = Delta(
        run=bytes(16), boundary=boundary, seq=0, base_commit=base, base_sha256=bytes(32), seen_size=1,
        seen_root=bytes(32), windows=tuple(windows), codec=codec, exponent=exponent, sync_us=sync_us,
        spacing_us=spacing_us, payload=Payload.of(payload, b""), prefix=bytes(32),
    )  # fmt: skip
    return MergedDelta(delta, integers(payload, exponent, codec), 0, UNIT, seen_commit=base)


@dataclass
class World:
    """M boundaries with their devices' optima; one commit at a time.

    Args:
        optima: of each boundary, of each of its devices.
        noise: standard deviation of the gradient noise of one step, per coordinate.
        rate: learning rate of a step.
        step_us: what a step costs.
        sync_us: what a sync costs, by boundary.
        silent: boundaries that send nothing.
        curvature: of each optimum, float64[d]; 1 everywhere if None. With one curvature for all, what devices have in
            common does not depend on the number of steps.
        far: whether commits leave θ where it is, as if the optimum were far away.
    """

    optima: Mapping[int, Sequence[F64]]
    noise: float = 0.0
    rate: float = 0.05
    step_us: int = 1000
    sync_us: int = 0
    silent: frozenset[int] = frozenset()
    curvature: Mapping[int, Sequence[F64]] | None = None
    far: bool = False
    seed: int = 0
    theta: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(self.seed)
        self.theta = np.zeros(next(iter(self.optima.values()))[0].size)
        self.commit = 0
        self.history: list[Pace] = []
        self.spacing_us = 0
        self.lies: Callable[[int, int, int], tuple[int, int]] = lambda _, sync_us, spacing_us: (
            sync_us,
            spacing_us,
        )
        """What a reporter (a boundary; -1: the controller, whose spacing it is alone) states, given what is true."""

    def _train(self, start: F64, optimum: F64, curvature: F64 | float, steps: int) -> F64:
        weights = start
        for _ in range(steps):
            gradient = curvature * (weights - optimum) + self.noise * self.random.standard_normal(start.size)
            weights = weights - self.rate * gradient
        return weights - start

    def deltas(self, pace: Pace) -> list[MergedDelta]:
        """What the boundaries send at this pace, in order."""
        found = []
        for boundary, optima in sorted(self.optima.items()):
            if boundary in self.silent:
                continue
            local, windows = self.theta, []
            for number in range(pace.windows):
                bends = [1.0] * len(optima) if self.curvature is None else self.curvature[boundary]
                updates = [
                    self._train(local, optimum, bend, pace.steps)
                    for optimum, bend in zip(optima, bends, strict=True)
                ]
                summary, mean = window(number, updates, [4 * UNIT] * len(updates))
                windows.append(summary)
                local = local + mean
            sync_us, spacing_us = self.lies(boundary, self.sync_us or 1, self.spacing_us)
            found.append(
                merged(
                    boundary,
                    local - self.theta,
                    windows,
                    base=self.commit,
                    sync_us=sync_us,
                    spacing_us=spacing_us,
                )
            )
        return found

    def run(self, controller: PaceController, pace: Pace, commits: int) -> tuple[PaceController, Pace]:
        """Let the controller decide for so many commits."""
        for _ in range(commits):
            deltas = self.deltas(pace)
            spacing = max(self.step_us * pace.steps * pace.windows, self.sync_us)
            self.commit += 1
            for item in deltas:
                value = decode(item.values.tobytes(), item.delta.exponent, item.delta.codec)
                if not self.far:
                    self.theta = self.theta + value / len(self.optima)
            self.spacing_us = spacing
            stated = self.lies(CONTROLLER, 0, spacing)[1]
            controller, pace = controller.observe(PaceInputs(self.commit, deltas, (stated,)))
            self.history.append(pace)
        return controller, pace


def drifting(seed: int, count: int, dim: int = 64) -> tuple[list[F64], list[F64]]:
    """Optima and curvatures that agree on the gradient at 0 and on nothing else: the longer the steps go, the more
    they part."""
    random = np.random.default_rng(seed)
    curvature = [np.exp(1.2 * random.standard_normal(dim)) for _ in range(count)]
    return [1.0 / bend for bend in curvature], curvature


def cluster(seed: int, count: int, spread: float, centre: F64 | float = 0.0, dim: int = 64) -> list[F64]:
    """Optima of devices around a centre."""
    random = np.random.default_rng(seed)
    return [centre + spread * random.standard_normal(dim) for _ in range(count)]
