"""Split training without torch: devices and edges share the quadratic, whose blocks do not depend on one another.

An edge learns of a device's quadratic what the middle of it needs: the optimum there, and each step's noise. So a
split job takes the very steps that `QuadraticLearner` takes with the whole vector, and the frames between the two are
those of a model: two micro-batches to a step, a pass there and a pass back for each.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import numpy as np

from echelon.clock import is_virtual
from echelon.compute.pool import spec_of
from echelon.compute.quadratic import F64, RATE, TOKENS_PER_STEP, QuadraticLearner, gradient
from echelon.config.boundary import BoundarySettings
from echelon.config.run import RunSettings
from echelon.errors import CodecError, TrainingError
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
from echelon.laws.blocks import block_ranges
from echelon.messages.adapter import Vector
from echelon.messages.frames import Assess, Backward, Begin, Decline, Finish, Forward, Look
from echelon.rounds.effects import EdgeDone, EdgeTask, Evaluate, Evaluated, TrainJob, TrainOutcome

MICROS = 2
"""Micro-batches of a step: each has this share of its gradient, and the shares add up exactly."""
Places = np.ndarray[tuple[int], np.dtype[np.intp]]


@dataclass
class _QuadraticMiddle:
    """A device's middle at its edge; `places` are its coordinates, the vectors float64 of those."""

    start: Vector
    weights: F64
    base: F64
    places: Places
    mu: float
    seen: dict[int, tuple[F64, F64]] = field(default_factory=dict)
    slope: F64 | None = None


class QuadraticHalves:
    """Every half of this process; the interface of `echelon.compute.split.SplitCompute`.

    Args:
        settings: the run file.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        terms = settings.learner
        self.learner = QuadraticLearner(spec_of(settings), terms.dim, terms.seconds, terms.blocks)
        self.blocks = terms.blocks
        self.layout = self.learner.layout.json.decode()
        self._ranges = block_ranges(self.learner.layout)
        self._edge_speed = {
            boundary.edge_name(edge): edge.speed
            for boundary in settings.boundaries
            if boundary.split is not None
            for edge in boundary.split.edge_list()
        }
        self._copies: dict[str, dict[str, _QuadraticMiddle]] = {}

    def fits(self, front: int, back: int) -> bool:
        """Whether a cut leaves a middle."""
        return front + back < self.blocks

    def middle_of(self, front: int, back: int) -> Places:
        """The coordinates that a cut leaves to the edge."""
        middle = range(front, self.blocks - back)
        every = np.arange(self.learner.dim)
        return np.concatenate([every[place] for block in middle for place in self._ranges[block]])

    def half(self, boundary: str, device: str) -> QuadraticHalf:
        """The device's half.

        Raises:
            TrainingError: its boundary is not split.
        """
        settings = next(one for one in self.settings.boundaries if one.name == boundary)
        if settings.split is None:
            raise TrainingError(f"boundary {boundary} is not split")
        speed = next(one.speed for one in settings.device_list() if one.id == device)
        return QuadraticHalf(
            self,
            boundary=settings,
            device=device,
            cut=settings.split.cut_of(device),
            speed=speed,
            in_flight=settings.split.in_flight_of(device),
        )

    async def spend(self, blocks: int, speed: float, share: float = 1.0 / MICROS) -> None:
        """Let the time of a pass go by, on the virtual clock.

        Args:
            blocks: through how many blocks it goes.
            speed: of whoever computes.
            share: which share of a training step's cost it is.
        """
        if is_virtual():
            tokens = TOKENS_PER_STEP * share * blocks / self.blocks
            await asyncio.sleep(tokens * self.settings.cost.seconds_per_token / speed)

    # ---- edges -----------------------------------------------------------------------------------

    async def part(self, edge: str, task: EdgeTask) -> EdgeDone:
        """See `EdgeSide.part`."""
        copies = self._copies.setdefault(edge, {})
        try:
            return await self._middle(copies, task, self._edge_speed[edge])
        except CodecError as error:
            return EdgeDone(task=task, fault=Decline.BAD_TENSOR, detail=str(error))
        except TrainingError as error:
            return EdgeDone(task=task, fault=Decline.NOT_TRAINED, detail=str(error))

    async def _middle(self, copies: dict[str, _QuadraticMiddle], task: EdgeTask, speed: float) -> EdgeDone:
        head, start = task.head, task.start
        if isinstance(head, Begin | Assess) and start is not None:
            places = self.middle_of(start.front, start.back)
            copies[task.device] = _QuadraticMiddle(
                start.start,
                start.start[places].astype(np.float64),
                start.base[places].astype(np.float64),
                places,
                start.mu,
            )
            return EdgeDone(task=task)
        copy = copies.get(task.device)
        if copy is None:
            raise TrainingError(f"{task.device} has no job here")
        if task.step and copy.slope is not None:
            copy.weights, copy.slope = copy.weights - RATE * (task.scale * copy.slope), None
        depth = len(copy.places) * self.blocks // self.learner.dim
        match head:
            case Forward():
                pull = _unpacked(task.tensor, 2, copy.places.size)
                await self.spend(depth, speed, 1.0 / MICROS / 3)
                copy.seen[head.micro] = pull[0], pull[1]
                return EdgeDone(task=task, tensor=_packed(copy.weights))
            case Backward():
                share = _unpacked(task.tensor, 1, 1)[0, 0]
                await self.spend(depth, speed, 2.0 / MICROS / 3)
                optimum, noise = copy.seen.pop(head.micro)
                slope = share * gradient(copy.weights, optimum, noise, copy.mu, copy.base)
                copy.slope = slope if copy.slope is None else copy.slope + slope
                norm2 = float(np.dot(copy.slope, copy.slope)) if task.last else 0.0
                return EdgeDone(task=task, tensor=_packed(slope), norm2=norm2)
            case Look():
                _unpacked(task.tensor, 1, copy.places.size)
                return EdgeDone(task=task, tensor=_packed(copy.weights))
            case Finish():
                del copies[task.device]
                moved = np.zeros(self.learner.dim, np.float32)
                moved[copy.places] = copy.weights.astype(np.float32) - copy.start[copy.places]
                return EdgeDone(task=task, moved=moved, state=task.job.to_bytes(8, "big"))
            case _:
                return EdgeDone(
                    task=task, fault=Decline.BAD_FRAME, detail=f"{head.kind} is no work for the middle"
                )

    async def drop(self, edge: str, device: str) -> None:
        """See `EdgeSide.drop`."""
        self._copies.get(edge, {}).pop(device, None)

    def forget(self, edge: str) -> None:
        """An edge's process has ended: what it had in memory is gone."""
        self._copies.pop(edge, None)

    def close(self) -> None:
        """Nothing to close."""


class QuadraticHalf:
    """One device's half; see `echelon.actors.splitting.DeviceSide`."""

    def __init__(
        self,
        shared: QuadraticHalves,
        *,
        boundary: BoundarySettings,
        device: str,
        cut: tuple[int, int],
        speed: float,
        in_flight: int,
    ) -> None:
        self._shared, self._boundary, self._device, self._speed = shared, boundary, device, speed
        self._cut, self._in_flight = cut, in_flight
        self._places = shared.middle_of(*cut)
        self._job: TrainJob | None = None
        self._data = device
        self._at = self._done = 0
        self._weights = self._middle = self._base = np.zeros(0)
        self._loss = 0.0
        self._names: tuple[str, ...] = ()
        self._commit, self._assessing = -1, False

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
        """How the part is cut and paced; a quadratic does nothing that could be probed."""
        return Placed(front=self._cut[0], back=self._cut[1], in_flight=self._in_flight)

    async def _pass(self, task: Front | Back | FrontBackward | ShowBatch | JudgeBatch) -> bytes:
        """A pass through the first blocks or the last ones; what goes to the edge, nothing where nothing does."""
        match task:
            case Front():
                return await self._front()
            case Back():
                return await self._back(task.hidden)
            case FrontBackward():
                await self._front_backward(task.gradient)
            case ShowBatch():
                return _packed(np.zeros(self._places.size))  # a batch asks for the middle
            case JudgeBatch():
                self._judge(task.micro, task.hidden)
        return b""

    async def _start(self, job: TrainJob, _secret: bytes) -> bytes:
        """Put weights and data in place; there is nothing that the edge has to be told."""
        self._job, self._data, self._loss, self._done = job, self._device, 0.0, 0
        self._assessing = False
        self._at = 0 if job.state is None else int.from_bytes(job.state, "big")
        if job.shard is not None:
            self._data, self._at = self._boundary.shard_name(job.shard), job.position or 0
        self._weights, self._base = job.start.astype(np.float64), job.base.astype(np.float64)
        return b""

    async def _begin_step(self) -> int:
        """The number of a step's micro-batches."""
        return MICROS

    async def _front(self) -> bytes:
        """What the edge has to know: optimum and noise of the middle."""
        await self._shared.spend(self._cut[0], self._speed)
        learner = self._shared.learner
        noise = learner.noise(self._data, self._at)
        return _packed(learner.optimum(self._data)[self._places], noise[self._places])

    async def _back(self, hidden: bytes) -> bytes:
        """The loss, with the middle as the edge has it; the micro-batch's share of the gradient."""
        self._middle = _unpacked(hidden, 1, self._places.size)[0]
        await self._shared.spend(self._cut[1], self._speed)
        self._loss += self._loss_with(self._weights, self._middle, self._data) / MICROS
        return _packed(np.array([1.0 / MICROS]))

    def _loss_with(self, weights: F64, middle: F64, data: str) -> float:
        whole = weights.copy()
        whole[self._places] = middle
        return self._shared.learner.loss(whole, self._shared.learner.optimum(data))

    async def _front_backward(self, gradient_: bytes) -> None:
        """The blocks before the middle do not depend on it."""
        _unpacked(gradient_, 1, self._places.size)
        await self._shared.spend(self._cut[0], self._speed)

    async def _step(self, _norm2: float) -> float:
        """Take the step; the edge takes its own as it is."""
        if self._job is None:
            raise TrainingError(f"{self._device}: a step without a job")
        learner = self._shared.learner
        noise = learner.noise(self._data, self._at)
        slope = gradient(self._weights, learner.optimum(self._data), noise, self._job.mu, self._base)
        slope[self._places] = 0.0
        self._weights = self._weights - RATE * slope
        self._at, self._done = self._at + 1, self._done + 1
        return 1.0

    async def _finish(self) -> TrainOutcome | Evaluated:
        """Where the job arrived, 0 moved in the middle; or what the evaluation came to."""
        if self._assessing:
            return Evaluated(self._commit, self._loss * TOKENS_PER_STEP, len(self._names) * TOKENS_PER_STEP)
        if self._job is None:
            raise TrainingError(f"{self._device}: the end of a job that was not begun")
        weights = self._weights.astype(np.float32)
        weights[self._places] = self._job.start[self._places]
        tokens = self._done * TOKENS_PER_STEP
        return TrainOutcome(
            weights=weights, tokens=tokens, loss_sum=self._loss * TOKENS_PER_STEP, loss_tokens=tokens,
            state=self._at.to_bytes(8, "big"), position=self._at,
            held=(self._cut[0], self._shared.blocks - self._cut[1]),
        )  # fmt: skip

    async def _validation(self, job: Evaluate) -> int:
        """The number of batches: one for each device or data shard that is evaluated."""
        self._names = (self._device,)
        if self._boundary.shards is not None:
            self._names = tuple(self._boundary.shard_name(shard) for shard in job.shards)
        self._commit, self._loss = job.commit, 0.0
        return len(self._names)

    async def _assess(self, job: Evaluate, _secret: bytes) -> bytes:
        """Put the weights to be evaluated in place."""
        self._weights, self._assessing = job.weights.astype(np.float64), True
        return b""

    def _judge(self, micro: int, hidden: bytes) -> None:
        """The loss of a batch."""
        middle = _unpacked(hidden, 1, self._places.size)[0]
        self._loss += self._loss_with(self._weights, middle, self._names[micro])


def _packed(*rows: F64) -> bytes:
    """Rows of one length as little-endian float64."""
    return np.stack(rows).astype("<f8").tobytes()


def _unpacked(tensor: bytes, rows: int, length: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Those rows, float64[rows, length].

    Raises:
        CodecError: there are others.
    """
    if len(tensor) != 8 * rows * length:
        raise CodecError(f"a tensor of {len(tensor)} bytes, {rows} rows of {length} were due")
    array = np.frombuffer(tensor, "<f8").reshape(rows, length)
    if not np.isfinite(array).all():
        raise CodecError("a tensor holds what is no number")
    return array.astype(np.float64)
