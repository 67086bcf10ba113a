"""A learner without torch: each device has a quadratic with a known optimum, and trains by gradient descent on it.

f_i(w) = ½ ‖w − x_i‖² / d with x_i = x + boundary offset + device offset, all drawn from the seed. It has the
interface of the real learner, costs nothing, and lets everything else be tested at speed. The vector may be cut into
blocks; what a step does to one does not depend on the others, so edges can train them
(`echelon.compute.quadratic_halves`).

Of a long vector nothing is held, and what comes of a job is its only array: all steps are taken with one stretch of it
after the other, and what is drawn is drawn a stretch at a time. Every number is the one that whole arrays would give.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import AdapterLayout, Vector, factor_mask, rank_rows
from echelon.training.learner import DataFacts, EvalResult, LearnerSpec

TOKENS_PER_STEP = 1024
RATE = 0.1
NOISE = 0.01
STRETCH = 1 << 16
"""Coordinates that are worked on at a time; what is drawn for shorter vectors is kept."""
KEY = "base_model.model.quadratic.lora_A.weight"


F64 = np.ndarray[tuple[int], np.dtype[np.float64]]


def gradient(weights: F64, optimum: F64, noise: F64, mu: float, base: Vector | F64) -> F64:
    """What a step goes against, with noise, of any part of the vector: float64 of that part.

    Args:
        weights: where the step starts, float64[n].
        optimum: minimum of the device's quadratic, float64[n].
        noise: a standard normal draw, float64[n].
        mu: proximal coefficient μ; it pulls back to `base`.
        base: the vector that training started from, [n].
    """
    return weights - optimum + mu * (weights - base) + NOISE * noise


Draw = Callable[[int], F64]
"""Gives the next so many numbers of a vector, float64[n]."""


def _noise(device: str, step: int) -> str:
    return f"step {device} {step}"


def _stretches(size: int, start: int = 0) -> Iterator[slice]:
    """The vector cut as `numpy.add.reduce` cuts it before it adds: halves, down to `STRETCH` at most."""
    if size <= STRETCH:
        yield slice(start, start + size)
        return
    half = _half(size)
    yield from _stretches(half, start)
    yield from _stretches(size - half, start + half)


def _half(size: int) -> int:
    return size // 2 - size // 2 % 8


def _total(sums: Iterator[float], size: int) -> float:
    """The sum of a vector of so many numbers, given those of its stretches in order, as numpy adds them up."""
    if size <= STRETCH:
        return next(sums)
    half = _half(size)
    first = _total(sums, half)
    return first + _total(sums, size - half)


def _slices(whole: F64) -> Draw:
    place = 0

    def take(count: int) -> F64:
        nonlocal place
        place += count
        return whole[place - count : place]

    return take


def _shapes(dim: int, blocks: int, *, alternating: bool, rank: int = 0) -> dict[str, tuple[int, ...]]:
    if rank:
        # Rows of A and columns of B, of as many numbers each as fit: devices of lower rank move the first ones.
        wide, left = divmod(dim, rank)
        if left or wide < 2:
            raise ConfigError(
                f"learner.dim {dim} has no A and B of rank {rank}: with adapter.rank_blocks it is a multiple of "
                "adapter.rank, two times that at least"
            )
        return {KEY: (rank, wide - wide // 2), KEY.replace("lora_A", "lora_B"): (wide // 2, rank)}
    if blocks:
        # Of equal length, but for the last one, which has what is left over.
        sizes = [dim // blocks] * (blocks - 1) + [dim - dim // blocks * (blocks - 1)]
        keys = (KEY.replace("quadratic", f"layers.{number}.quadratic") for number in range(blocks))
        return {key: (size,) for key, size in zip(keys, sizes, strict=True)}
    if not alternating:
        return {KEY: (dim,)}
    # Where factors alternate there are two of them: the first coordinates are A, the rest B.
    half = dim // 2
    if not half:
        return {KEY: (dim,)}
    return {KEY: (half,), KEY.replace("lora_A", "lora_B"): (dim - half,)}


class QuadraticLearner:
    """See the module's docstring.

    Args:
        spec: devices and boundaries, and the seed.
        dim: d.
        seconds: how long a training job takes in real time.
        blocks: equal blocks that the vector is cut into; 0: it is not cut.
    """

    def __init__(self, spec: LearnerSpec, dim: int, seconds: float = 0.0, blocks: int = 0) -> None:
        self.spec, self._seconds = spec, seconds
        self.layout = AdapterLayout.of(
            _shapes(
                dim,
                blocks,
                alternating=spec.adapter.factors == "alternating",
                rank=spec.adapter.rank if spec.adapter.rank_blocks else 0,
            )
        )
        self._boundary = {device: boundary.name for device, boundary in spec.boundary_of.items()}
        self._dim = dim
        self._optimum: dict[str, F64] = {}
        if dim <= STRETCH:
            common = self._draw("common")
            self._optimum = {
                device: common
                + 0.3 * self._draw("boundary " + boundary)
                + 0.1 * self._draw("device " + device)
                for device, boundary in self._boundary.items()
            }

    def _draw(self, name: str) -> F64:
        return self._dice(name).standard_normal(self._dim)

    def _dice(self, name: str) -> np.random.Generator:
        seed = hashlib.sha256(f"{self.spec.seed} {name}".encode()).digest()
        return np.random.default_rng(np.frombuffer(seed, np.uint32))

    def _drawn(self, name: str) -> Draw:
        """`_draw` from its start on; of a long vector only what is asked for is drawn."""
        return _slices(self._draw(name)) if self._dim <= STRETCH else self._dice(name).standard_normal

    def _optimum_of(self, device: str) -> Draw:
        """`optimum` from its start on."""
        if device in self._optimum:
            return _slices(self._optimum[device])
        common = self._drawn("common")
        boundary, own = self._drawn("boundary " + self._boundary[device]), self._drawn("device " + device)
        return lambda count: common(count) + 0.3 * boundary(count) + 0.1 * own(count)

    @property
    def layers(self) -> None:
        """None: there are no layers."""

    def data_facts(self, boundary: str) -> DataFacts | None:
        """None: there is no data."""
        return None

    @property
    def dim(self) -> int:
        """d."""
        return self._dim

    def optimum(self, device: str) -> F64:
        """Where the device's own quadratic is least, float64[d]."""
        return self._optimum_of(device)(self._dim)

    def initial_adapter(self) -> Vector:
        """Zeros: float32[d]."""
        return np.zeros(self._dim, np.float32)

    @property
    def adapter_config_json(self) -> bytes:
        """There is no model to attach it to."""
        return b'{"peft_type":"LORA"}'

    @property
    def adapter_terms(self) -> None:
        """None: the vector is of no kind."""

    @property
    def model_digest(self) -> bytes:
        """Digest of what the quadratics are drawn from."""
        return hashlib.sha256(f"quadratic {self.spec.seed} {self._dim}".encode()).digest()

    def tokens_of(self, job: TrainJob) -> int:
        """How many tokens a job is said to read: each step the same number."""
        return job.steps * TOKENS_PER_STEP

    def train(self, job: TrainJob) -> TrainOutcome:
        """H steps of gradient descent on f_i + μ/2 ‖w − base‖², with noise that depends on the step's number."""
        done = 0 if job.state is None else int.from_bytes(job.state, "big")
        if job.position is not None:
            done = job.position
        after = np.empty(self._dim, np.float32)
        optima = self._optimum_of(job.data)
        noises = [self._drawn(_noise(job.data, step)) for step in range(done, done + job.steps)]
        moving = None if job.factor is None else factor_mask(self.layout, job.factor)
        if job.rank:
            within = rank_rows(self.layout, self.spec.adapter.rank) < job.rank
            moving = within if moving is None else moving & within
        squares: list[list[float]] = [[] for _ in noises]
        for at in _stretches(self._dim):
            weights, base, size = job.start[at].astype(np.float64), job.base[at], at.stop - at.start
            optimum = optima(size)
            for drawn, sums in zip(noises, squares, strict=True):
                sums.append(float(np.add.reduce((weights - optimum) ** 2)))
                slope = gradient(weights, optimum, drawn(size), job.mu, base)
                weights = weights - RATE * np.where(True if moving is None else moving[at], slope, 0.0)
            after[at] = weights
        loss = 0.0
        for sums in squares:
            loss += self._loss(sums)
        if self._seconds:
            time.sleep(self._seconds)
        tokens = self.tokens_of(job)
        return TrainOutcome(
            weights=after,
            tokens=tokens,
            loss_sum=loss * TOKENS_PER_STEP,
            loss_tokens=tokens,
            seconds=self._seconds,
            state=(done + job.steps).to_bytes(8, "big"),
            position=done + job.steps,
        )

    def noise(self, device: str, step: int) -> F64:
        """Of a device's gradient at a step of that number, float64[d]."""
        return self._draw(_noise(device, step))

    def _loss(self, sums: list[float]) -> float:
        """A quadratic's value, from the sums of squares of the stretches."""
        return 0.5 * (_total(iter(sums), self._dim) / self._dim)

    @staticmethod
    def loss(weights: F64, optimum: F64) -> float:
        """A quadratic's value."""
        return float(0.5 * np.mean((weights - optimum) ** 2))

    def evaluate(
        self, device: str, weights: Vector, max_tokens: int | None = None, state: bytes | None = None
    ) -> EvalResult:
        """The device's own quadratic, as if it were the loss of so many tokens.

        Args:
            device: whose quadratic.
            weights: float32[d].
            max_tokens: not used: the loss is exact.
            state: not used: nothing stays on a device.
        """
        optima = self._optimum_of(device)
        sums = []
        for at in _stretches(self._dim):
            apart = weights[at].astype(np.float64) - optima(at.stop - at.start)
            sums.append(float(np.add.reduce(apart**2)))
        loss = self._loss(sums)
        return EvalResult(loss * TOKENS_PER_STEP, TOKENS_PER_STEP)

    def evaluate_boundary(
        self, boundary: str, weights: Vector, states: Mapping[str, bytes] | None = None
    ) -> EvalResult:
        """The sum over the boundary's devices.

        Args:
            boundary: its name.
            weights: float32[d].
            states: not used, as of `evaluate`.
        """
        total = EvalResult(0.0, 0)
        for device, name in self._boundary.items():
            if name == boundary:
                total += self.evaluate(device, weights)
        return total

    def generate(self, weights: Vector, prompt: str, max_new_tokens: int) -> str:
        """Nothing to say: the adapter's first numbers.

        Args:
            weights: float32[d].
            prompt: not used.
            max_new_tokens: most numbers that are written, up to 8.
        """
        return " ".join(f"{value:.2f}" for value in weights[: min(8, max_new_tokens)])
