"""A training job and an evaluation: what a device's core asks for, and what it gets back. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from echelon.messages.adapter import WHOLE, Factor, Held, Vector
from echelon.messages.behaviour import Behaviour


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
class Train:
    """Train `steps` local steps from `start` with the proximal term anchored at `base` (float32[d] both).

    `state` holds the device's moments. The data is the device's own, read on from where `state` says, or if `shard`
    is given that shard's, read on from `position`. If `factor` is given, the other factor stays as it is. With `split`,
    an edge trains the middle blocks.
    """

    base: Vector
    start: Vector
    steps: int
    mu: float
    progress: float
    state: bytes | None
    shard: int | None = None
    position: int = 0
    factor: Factor | None = None
    split: SplitJob | None = None


@dataclass(frozen=True, slots=True)
class Trained:
    """A training job ended: weights are where it arrived, float32[d]; losses are Σ nats."""

    weights: Vector
    tokens: int
    loss_sum: float
    loss_tokens: int
    state: bytes
    position: int = 0
    """Where the job's data shard goes on, if it was trained on one."""
    behaviour: Behaviour | None = None
    """What the model did on public probes afterwards, if it was asked."""
    cut: tuple[int, int] | None = None
    """(p, q) of the next job with an edge, if what this one measured moved it."""
    held: Held = WHOLE
    """Blocks that the job moved on the device itself: those below the first number and from the second on."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """What was chosen for each stream to and from the edge, if that changed since the last job."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A training job was given up half-way: weights, moments and data position are as before it."""

    job: int
    why: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the device's validation slice, or those of its data shards, with the adapter of a commit.

    A device that holds a part of the model does it with its edge, under a number of its jobs.
    """

    commit: int
    weights: Vector
    shards: tuple[int, ...] = ()
    edge: str = ""
    job: int = 0


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation slice was evaluated with the adapter of a commit; or it could not be with that edge, and why."""

    commit: int
    loss_sum: float
    tokens: int
    lost: str = ""
