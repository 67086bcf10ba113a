"""Where split training computes: threads in real time, inline on the virtual clock.

What a micro-batch leaves behind between its passes stays in this process, so a device and its work cannot move between
worker processes as whole jobs do. torch lets go of the interpreter while it computes, so threads are enough.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar, TypeVarTuple

import numpy as np

from echelon.clock import is_virtual
from echelon.compute.planning import replanner, shape_of
from echelon.compute.pool import evaluated_on, evaluation_tokens, spec_of
from echelon.compute.probing import CLASSES, DIM, POSITIONS, SEED, probe_terms
from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings
from echelon.elsa.fingerprint import fingerprint
from echelon.elsa.predictions import quantise, vocabulary_classes
from echelon.elsa.replanning import Measured, Replanner
from echelon.elsa.shapes import ModelShape
from echelon.errors import CodecError, LimitExceeded, ProtocolError, StateError, TrainingError
from echelon.jobs.device_part import (
    Back,
    DeviceDone,
    DeviceTask,
    FinishPart,
    Front,
    FrontBackward,
    JudgeBatch,
    Placed,
    ReadEvaluation,
    ReadStep,
    ShowBatch,
    StartEvaluation,
    StartTraining,
    TakeStep,
)
from echelon.messages.behaviour import Behaviour
from echelon.messages.frames import Backward, Decline, Forward, Look
from echelon.rounds.effects import EdgeDone, EdgeTask, Evaluate, Evaluated, SplitJob, TrainJob, TrainOutcome
from echelon.training.model import limit_threads
from echelon.training.split.cut import Cut
from echelon.training.split.device_worker import DeviceStart, DeviceWorker
from echelon.training.split.edge_worker import MAX_CUTS, EdgeWorker
from echelon.training.split.shared_modules import SharedModules

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
FORWARD, BACKWARD = 1 / 3, 2 / 3
"""Shares of a training step's cost: a backward pass is twice a forward pass (gradients by inputs and by weights)."""
THREADS = 8


class SplitCompute:
    """Every half of this process.

    Args:
        settings: the run file.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        limit_threads(settings.compute.threads)
        self._shared = SharedModules(spec_of(settings))
        self._executor = None if settings.clock == "virtual" else ThreadPoolExecutor(THREADS, "echelon-split")
        self._cost = settings.cost.seconds_per_token
        self._speed = {
            device.id: device.speed for boundary in settings.boundaries for device in boundary.device_list()
        }
        self._edge_speed = {
            boundary.edge_name(edge): edge.speed
            for boundary in settings.boundaries
            if boundary.split is not None
            for edge in boundary.split.edge_list()
        }
        self._split = {
            boundary.edge_name(edge): boundary.split
            for boundary in settings.boundaries
            if boundary.split is not None
            for edge in boundary.split.edge_list()
        }
        self._middles: dict[str, EdgeWorker] = {}

    @cached_property
    def _shape(self) -> ModelShape:
        return shape_of(self.settings)

    @property
    def blocks(self) -> int:
        """Blocks of the model."""
        return self._shared.blocks

    @property
    def layout(self) -> str:
        """Canonical JSON of the whole adapter's layout."""
        return self._shared.layout.json.decode()

    def fits(self, front: int, back: int) -> bool:
        """Whether a cut leaves a middle."""
        return self._shared.fits(front, back)

    def half(self, boundary: str, device: str) -> SplitHalf:
        """The device's half.

        Raises:
            ConfigError: the boundary's cut does not fit the model.
        """
        settings = next(one for one in self.settings.boundaries if one.name == boundary)
        split = settings.split
        if split is None:
            raise TrainingError(f"boundary {boundary} is not split")
        cut = Cut(*split.cut_of(device))
        cut.middle(self.blocks)
        micro = split.micro_of(device)
        half = DeviceWorker(
            self._shared, device, cut, micro, split.encodings, rank=split.perturbation, probes=split.probes
        )
        mover = replanner(self.settings, settings, device, lambda: self._shape)
        return SplitHalf(
            self,
            half,
            boundary=settings,
            speed=self._speed[device],
            in_flight=split.in_flight_of(device),
            mover=mover,
        )

    async def call(self, seconds: float, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """Call a function that computes: off the loop in real time, inline on the virtual clock.

        Args:
            seconds: that pass before on the virtual clock.
            fn: what computes.
            args: what it is called with.

        Returns:
            What it gives.
        """
        if self._executor is None or is_virtual():
            await asyncio.sleep(seconds)
            return fn(*args)
        return await asyncio.get_running_loop().run_in_executor(self._executor, fn, *args)

    def seconds(self, tokens: int, blocks: int, share: float, speed: float) -> float:
        """What a pass costs on the virtual clock.

        Args:
            tokens: how many go through.
            blocks: through how many blocks.
            share: which share of a training step's cost the pass is.
            speed: of whoever computes.

        Returns:
            Seconds.
        """
        return tokens * self._cost * share * blocks / self.blocks / speed

    # ---- edges -----------------------------------------------------------------------------------

    async def part(self, edge: str, task: EdgeTask) -> EdgeDone:
        """See `EdgeSide.part`."""
        if edge not in self._middles:
            split = self._split[edge]
            training = self.settings.training
            micro = split.micro_max(training.batch_size * training.accumulation)
            cuts = max(MAX_CUTS, len(split.cuts))
            self._middles[edge] = EdgeWorker(self._shared, split.encodings, split.perturbation, micro, cuts)
        try:
            return await self.call(self._middle_cost(edge, task), self._middles[edge].part, task)
        except (CodecError, LimitExceeded) as error:
            return EdgeDone(task=task, fault=Decline.BAD_TENSOR, detail=str(error))
        except ProtocolError as error:
            return EdgeDone(task=task, fault=Decline.BAD_FRAME, detail=str(error))
        except (TrainingError, StateError) as error:
            return EdgeDone(task=task, fault=Decline.NOT_TRAINED, detail=str(error))

    def _middle_cost(self, edge: str, task: EdgeTask) -> float:
        """Seconds that a pass through the middle takes on the virtual clock; everything else takes none."""
        share = {Forward: FORWARD, Look: FORWARD, Backward: BACKWARD}.get(type(task.head))
        if share is None:
            return 0.0
        middles = self._middles[edge]
        tokens, blocks = middles.tokens_of(task.tensor), middles.depth(task.device)
        return self.seconds(tokens, blocks, share, self._edge_speed[edge])

    async def drop(self, edge: str, device: str) -> None:
        """See `EdgeSide.drop`."""
        if edge in self._middles:
            await self.call(0.0, self._middles[edge].close, device)

    def forget(self, edge: str) -> None:
        """An edge's process has ended: what it had in memory is gone."""
        self._middles.pop(edge, None)

    def close(self) -> None:
        """End the threads."""
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)


class SplitHalf:
    """One device's half, off the loop; see `echelon.actors.splitting.DeviceSide`."""

    def __init__(
        self,
        compute: SplitCompute,
        half: DeviceWorker,
        *,
        boundary: BoundarySettings,
        speed: float,
        in_flight: int,
        mover: Replanner | None = None,
    ) -> None:
        self._compute, self._half, self._boundary, self._speed = compute, half, boundary, speed
        self._in_flight, self._mover = in_flight, mover
        self._commit, self._assessing = -1, False
        self._busy, self._trips = 0.0, list[float]()
        self._turn = asyncio.Lock()
        self._job: SplitJob | None = None
        self._chosen: dict[str, str] = {}

    async def part(self, task: DeviceTask) -> DeviceDone:
        """See `DeviceSide.part`."""
        match task:
            case StartTraining():
                opening = await self._start(task.train, task.secret)
                return DeviceDone(task=task, tensor=opening, placed=self._placed)
            case StartEvaluation():
                opening = await self._assess(task.evaluate, task.secret)
                return DeviceDone(task=task, tensor=opening, placed=self._placed)
            case ReadStep():
                return DeviceDone(task=task, count=await self._begin_step())
            case ReadEvaluation():
                return DeviceDone(task=task, count=await self._validation(task.evaluate))
            case TakeStep():
                return DeviceDone(task=task, scale=await self._step(task.norm2))
            case FinishPart():
                return DeviceDone(task=task, outcome=await self._finish())
            case _:
                return DeviceDone(task=task, tensor=await self._pass(task))

    @property
    def _placed(self) -> Placed:
        """How this job is cut and paced; the next one may be cut elsewhere."""
        half = self._half
        return Placed(front=half.cut.p, back=half.cut.q, in_flight=self._in_flight, probes=half.probes)

    async def _start(self, job: TrainJob, secret: bytes) -> bytes:
        """Put weights, moments and data in place."""
        shard, position = None, None
        if job.shard is not None and self._boundary.shards is not None:
            shard, position = self._boundary.shard_name(job.shard), job.position
        self._job = job.split
        self._busy, self._trips, self._assessing = 0.0, [], False
        number = 0 if job.split is None else job.split.job
        task = DeviceStart(
            base=job.base, start=job.start, mu=job.mu, progress=job.progress, state=job.state,
            job=number, secret=secret, shard=shard, position=position,
        )  # fmt: skip
        return await self._compute.call(0.0, self._half.start, task)

    async def _begin_step(self) -> int:
        """Read the step's data."""
        return await self._compute.call(0.0, self._half.begin_step)

    async def _turned(self, seconds: float, fn: Callable[[*Ts], T], *args: *Ts) -> T:
        """One pass that costs so many seconds on the virtual clock, when no other one computes."""
        loop = asyncio.get_running_loop()
        async with self._turn:
            begun = loop.time()
            answer = await self._compute.call(seconds, fn, *args)
            self._busy += loop.time() - begun
            return answer

    async def _pass(self, task: Front | Back | FrontBackward | ShowBatch | JudgeBatch) -> bytes:
        """A pass through the first blocks or the last ones; what goes to the edge, nothing where nothing does."""
        half, micro, cost = self._half, task.micro, self._cost(task)
        match task:
            case Front():
                return await self._turned(cost, half.front, micro)
            case Back():
                return await self._turned(cost, half.back, micro, task.hidden)
            case FrontBackward():
                self._trips.append(task.waited)
                await self._turned(cost, half.front_backward, micro, task.gradient)
            case ShowBatch() if self._assessing:
                return await self._turned(cost, half.shown, micro)
            case ShowBatch():
                async with self._turn:
                    return await self._compute.call(cost, half.look, micro)
            case JudgeBatch() if self._assessing:
                await self._turned(cost, half.judged, micro, task.hidden)
            case JudgeBatch():
                async with self._turn:
                    await self._compute.call(cost, half.looked, micro, task.hidden, POSITIONS)
        return b""

    def _cost(self, task: Front | Back | FrontBackward | ShowBatch | JudgeBatch) -> float:
        """Seconds that a pass takes on the virtual clock; those of probes take none."""
        half = self._half
        if isinstance(task, ShowBatch | JudgeBatch) and not self._assessing:
            return 0.0
        tokens = half.tokens_shown(task.micro) if self._assessing else half.tokens_of(task.micro)
        blocks = half.cut.q if isinstance(task, Back | JudgeBatch) else half.cut.p
        share = {Back: 1.0, FrontBackward: BACKWARD}.get(type(task), FORWARD)
        return self._compute.seconds(tokens, blocks, share, self._speed)

    async def _validation(self, job: Evaluate) -> int:
        """Read what the device evaluates."""
        most = evaluation_tokens(self._compute.settings)
        names, tokens = evaluated_on(self._half.device, job, self._boundary, most)
        return await self._compute.call(0.0, self._half.validation, names, tokens)

    async def _assess(self, job: Evaluate, secret: bytes) -> bytes:
        """Put the weights to be evaluated in place."""
        self._commit, self._assessing = job.commit, True
        return await self._compute.call(0.0, self._half.assess, job.weights, job.job, secret)

    def _behaviour(self, job: int, version: int) -> Behaviour | None:
        """What the job's probes showed, as it goes to the aggregator."""
        seen = self._half.seen
        if seen is None:
            return None
        pooled, rows = seen
        print_ = fingerprint(_grouped(pooled), DIM, SEED)
        length = self._compute.settings.training.sequence_length
        return Behaviour.of(
            number=job, version=version, terms=probe_terms(self._half.probes, length),
            mean=print_.mean, covariance=print_.covariance, counts=quantise(_padded(_grouped(rows))),
        )  # fmt: skip

    async def _step(self, norm2: float) -> float:
        """The optimiser's step."""
        return await self._compute.call(0.0, self._half.step, norm2)

    async def _finish(self) -> TrainOutcome | Evaluated:
        """What the job or the evaluation came to."""
        if self._assessing:
            loss, counted = self._half.assessed()
            return Evaluated(self._commit, loss, counted)
        done = await self._compute.call(0.0, self._half.finish)
        behaviour = None
        if self._job is not None:
            behaviour = await self._compute.call(0.0, self._behaviour, self._job.job, self._job.version)
        chosen, before = self._half.chosen, self._chosen
        self._chosen = chosen
        middle = self._half.cut.middle(self._compute.blocks)  # of this job: the next one may be cut elsewhere
        return replace(
            done,
            behaviour=behaviour,
            cut=await self._moved(),
            held=(middle.start, middle.stop),
            encodings=chosen if chosen != before else {},
        )

    async def _moved(self) -> tuple[int, int] | None:
        """Where the next job is cut, if what this one measured says elsewhere."""
        if self._mover is None or not self._trips:
            return None
        measured = Measured(self._busy / len(self._trips), min(self._trips))
        self._mover, split = await self._compute.call(0.0, self._mover.observe, measured)
        if split is None:
            return None
        cut = Cut(split.front, split.back)
        await self._compute.call(0.0, self._half.move, cut, split.micro_batch)
        self._in_flight = split.in_flight
        return split.front, split.back


def _grouped(rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows summed over a public partition of their columns into `CLASSES`; those of fewer columns as they are."""
    width = rows.shape[1]
    if width < CLASSES:
        return rows
    classes = vocabulary_classes(width, CLASSES, SEED)
    return np.stack([np.bincount(classes, weights=row, minlength=CLASSES) for row in rows])


def _padded(rows: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Distributions over `CLASSES`: what fewer columns leave has no mass. So every record of a run has one shape."""
    return np.pad(rows, ((0, 0), (0, CLASSES - rows.shape[1])))
