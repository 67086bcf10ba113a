"""A training job and an evaluation: what a device's core asks for, and what it gets back. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from echelon.messages.adapter import WHOLE, Factor, Held, Vector
from echelon.messages.behaviour import Behaviour
from echelon.messages.manifest import METRIC_BITS


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitJob:
    """How a job is trained together with an edge.

    Attributes:
        job: its number on this device.
        edge: with whom.
        version: of the adapter that it trains from.
        after: the job whose moments it goes on from, 0 for none.
        on_top: earlier jobs whose middle updates, which the edge holds, its start contains.
    """

    job: int
    edge: str
    version: int
    after: int
    on_top: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """H local steps of one device on f(w) + μ/2 ‖w - base‖², where f is the mean loss per token.

    Attributes:
        data: whose training data is read: the device's name, or that of a data shard. A device's core names the
            device; who computes it knows what the shard `shard` is called.
        base: w_base of the proximal term, float32[d].
        start: the point to begin from, float32[d].
        steps: H.
        mu: μ.
        progress: committed share of the budget, in [0, 1]; the learning rate is a function of it.
        state: the device's AdamW moments, as its last job returned them; None at the very first one. They also say
            where a device's own data goes on, and hold what is trained and never leaves the device.
        shard: number of the data shard that is trained on; None for data of the device's own.
        position: where the shard's data goes on; None: `state` says it.
        factor: the factor of the adapter that is trained, if only one is: weights and moments of the other come back
            with the very bits that they had.
        split: how an edge trains the middle blocks; None: the device trains the whole model.
        rank: rows of A and columns of B from this one on stay as they are, weights and moments, to the bit; 0: all of
            them are trained.
    """

    data: str
    base: Vector
    start: Vector
    steps: int
    mu: float
    progress: float
    state: bytes | None = field(default=None, repr=False)
    shard: int | None = None
    position: int | None = None
    factor: Factor | None = None
    split: SplitJob | None = None
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOutcome:
    """What came of a `TrainJob`.

    Attributes:
        weights: the adapter after the steps, float32[d].
        tokens: tokens that were read, without padding.
        loss_sum: Σ loss in nats before each step, without the proximal term.
        loss_tokens: tokens that the loss counts: fewer for conversations; rows for a classifier.
        state: the moments for the next job, with what stays on the device. Nothing of it is ever sent.
        position: where the data that was read goes on.
        seconds: how long it was computed, without waits for a core; 0 where that is not measured.
        behaviour: what the model did on public probes afterwards, if it was asked.
        cut: (p, q) of the next job with an edge, if what this one measured moved it.
        held: blocks that the job moved on the device itself: those below the first number and from the second on.
        encodings: what was chosen for each stream to and from the edge, if that changed since the last job.
    """

    weights: Vector
    tokens: int
    loss_sum: float
    loss_tokens: int
    state: bytes = field(repr=False)
    position: int = 0
    seconds: float = 0.0
    behaviour: Behaviour | None = None
    cut: tuple[int, int] | None = None
    held: Held = WHOLE
    encodings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A training job was given up half-way: weights, moments and data position are as before it."""

    job: int
    why: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the device's validation slice, or those of its data shards, with the adapter of a commit.

    A device that holds a part of the model does it with its edge, under a number of its jobs. `state` is what its last
    job returned, where the adapter has a part that stays on the device.
    """

    commit: int
    weights: Vector
    shards: tuple[int, ...] = ()
    edge: str = ""
    job: int = 0
    state: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class MeasuredMetric:
    """What a metric of the user's own came to: the sum of its values in units of 2**-16, and how many they are."""

    total: int
    count: int

    def __add__(self, other: MeasuredMetric) -> MeasuredMetric:
        """The same over both sets of values."""
        return MeasuredMetric(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float | None:
        """The mean value; None without values."""
        return self.total / (self.count << METRIC_BITS) if self.count else None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation slice was evaluated with the adapter of a commit; or it could not be with that edge, and why.

    `metrics` are the user's own, by name, over the same batches.
    """

    commit: int
    loss_sum: float
    tokens: int
    lost: str = ""
    metrics: Mapping[str, MeasuredMetric] = field(default_factory=dict)
