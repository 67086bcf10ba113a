"""Training in a simulated run, watched: what is under the masks, and marks to search for elsewhere."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from typing import cast

import numpy as np
from numpy.typing import NDArray

from echelon.compute.pool import LearnerPool, spec_of
from echelon.compute.quadratic import QuadraticLearner
from echelon.compute.quadratic_halves import QuadraticHalf, QuadraticHalves
from echelon.config.run import RunSettings
from echelon.jobs.device_part import DeviceDone, DeviceTask, Front, StartTraining
from echelon.messages.frames import Finish
from echelon.rounds.effects import (
    EdgeDone,
    EdgeTask,
    Evaluate,
    Evaluated,
    TrainJob,
    TrainOutcome,
)
from echelon.sim.coverage import Coverage
from echelon.sim.outcome import SimOutcome

CANARY = 16
"""Bytes that are put into every device's optimiser state, to be searched for elsewhere."""


def optimum_of(settings: RunSettings) -> NDArray[np.float64]:
    """The mean of the devices' optima, float64[d]: each boundary counts alike."""
    learner = QuadraticLearner(spec_of(settings), settings.learner.dim)
    per_boundary = [
        np.mean([learner.optimum(name) for name in boundary.data_names()], axis=0)
        for boundary in settings.boundaries
    ]
    return cast(NDArray[np.float64], np.mean(per_boundary, axis=0))


class WatchedPool:
    """The learner's calls, with what leaves them kept for the search for device state; marks go into moments.

    Args:
        inner: the learner.
        outcome: where it is kept.
        begun: told of every job of a device.
    """

    def __init__(self, inner: LearnerPool, outcome: SimOutcome, begun: Callable[[str], None]) -> None:
        self._inner, self._outcome, self._begun = inner, outcome, begun

    async def train(self, device: str, job: TrainJob) -> TrainOutcome:
        """See `LearnerPool.train`."""
        self._begun(device)
        done = await self._inner.train(device, _unmarked(job))
        return _marked(done, job, device, self._outcome)

    async def evaluate(self, device: str, job: Evaluate) -> Evaluated:
        """See `LearnerPool.evaluate`."""
        return await self._inner.evaluate(device, job)


def _mark(seed: int, owner: str) -> bytes:
    return hashlib.sha256(f"canary {seed} {owner}".encode()).digest()[:CANARY]


def _unmarked(job: TrainJob) -> TrainJob:
    return job if job.state is None else dataclasses.replace(job, state=job.state[CANARY:])


def _marked(done: TrainOutcome, job: TrainJob, device: str, outcome: SimOutcome) -> TrainOutcome:
    moved = done.weights - job.start
    # Where nothing moved, an edge's middle, the weights are those of the boundary's adapter, which are on a topic.
    outcome.secrets += [np.where(moved != 0, done.weights, 0).astype("<f4").tobytes(), moved.tobytes()]
    return dataclasses.replace(done, state=_mark(outcome.schedule.seed, device) + done.state)


class WatchedHalf:
    """A device's half, likewise; what it says to its edge is kept, too."""

    def __init__(
        self, inner: QuadraticHalf, device: str, outcome: SimOutcome, begun: Callable[[str], None]
    ) -> None:
        self._inner, self._device, self._outcome, self._begun = inner, device, outcome, begun
        self._job: TrainJob | None = None

    async def part(self, task: DeviceTask) -> DeviceDone:
        """See `DeviceSide.part`."""
        if isinstance(task, StartTraining):
            self._begun(self._device)
            self._job = task.train
            task = dataclasses.replace(task, train=_unmarked(task.train))
        done = await self._inner.part(task)
        if isinstance(task, Front):
            self._outcome.secrets.append(done.tensor)
        if isinstance(done.outcome, TrainOutcome):
            assert self._job is not None
            done = dataclasses.replace(
                done, outcome=_marked(done.outcome, self._job, self._device, self._outcome)
            )
        return done


class WatchedMiddles:
    """The middles of edges, with where each job's moved to kept by device and job."""

    def __init__(self, inner: QuadraticHalves, outcome: SimOutcome) -> None:
        self._inner, self._outcome = inner, outcome
        self.moved: dict[tuple[str, int], NDArray[np.float32]] = {}

    async def part(self, edge: str, task: EdgeTask) -> EdgeDone:
        """See `EdgeSide.part`."""
        done = await self._inner.part(edge, task)
        if done.tensor:
            self._outcome.secrets.append(done.tensor)
        if isinstance(task.head, Finish) and done.moved is not None:
            self.moved[task.device, task.job] = done.moved
            self._outcome.secrets.append(done.moved.tobytes())
            mark = _mark(self._outcome.schedule.seed, f"{edge} {task.device}")
            done = dataclasses.replace(done, state=mark + (done.state or b""))
        return done

    async def drop(self, edge: str, device: str) -> None:
        """See `EdgeSide.drop`."""
        await self._inner.drop(edge, device)


class CoverageListener(logging.Handler):
    """Takes what actors log, for the states that only their words tell of."""

    def __init__(self, coverage: Coverage) -> None:
        super().__init__(logging.WARNING)
        self._coverage = coverage

    def emit(self, record: logging.LogRecord) -> None:
        """Look for a rebuild."""
        if "no state file; rebuilding" in str(record.msg):
            role = "controller" if str(record.msg).startswith("controller") else "aggregator"
            self._coverage.see(f"{role}: rebuilt from topics")
