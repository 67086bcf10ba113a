"""What goes into a state machine and what comes out: events and effects, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.messages.adapter import Factor
from echelon.messages.wire import Message

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Incoming:
    """A verified record of a boundary topic: who sent it, for which window, what it says, and its payload if any."""

    topic: str
    offset: int
    sender: str
    window: int
    message: Message
    payload: bytes | None = None


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer ran out that was started under this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Trained:
    """A training job ended: weights are where it arrived, float32[d]; losses are Σ nats."""

    weights: F32
    tokens: int
    loss_sum: float
    loss_tokens: int
    state: bytes
    position: int = 0
    """Where the job's data shard goes on, if it was trained on one."""


@dataclass(frozen=True, slots=True)
class ShardsGained:
    """Data shards are this device's from now on: (shard, where its data goes on), each."""

    shards: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ShardsLost:
    """Data shards are to be given up: no job may begin on them, and `ShardReleased` says when none runs."""

    shards: frozenset[int]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The validation slice was evaluated with the adapter of a commit."""

    commit: int
    loss_sum: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a message, after its payload in chunks if it has one.

    `payload_of` builds nothing: the message already names the payload by transfer id, length and digest.
    """

    topic: str
    message: Message
    window: int
    payload: bytes | None = None
    partition: int = 0


@dataclass(frozen=True, slots=True)
class StartTimer:
    """Fire `name` after `seconds`; a running timer of that name is replaced."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True)
class StopTimer:
    """Forget the timer."""

    name: str


@dataclass(frozen=True, slots=True)
class Train:
    """Train `steps` local steps from `start` with the proximal term anchored at `base` (float32[d] both).

    `state` holds the device's moments. The data is the device's own, read on from where `state` says, or if `shard`
    is given that shard's, read on from `position`. If `factor` is given, the other factor stays as it is.
    """

    base: F32
    start: F32
    steps: int
    mu: float
    progress: float
    state: bytes | None
    shard: int | None = None
    position: int = 0
    factor: Factor | None = None


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the device's validation slice, or those of its data shards, with the adapter of a commit."""

    commit: int
    weights: F32
    shards: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class ShardRead:
    """A data shard was read on: `position` is what a later owner goes on from."""

    shard: int
    position: int


@dataclass(frozen=True, slots=True)
class ShardReleased:
    """No job of this device runs on the data shard, and none will begin; `position` is where it was left."""

    shard: int
    position: int


@dataclass(frozen=True, slots=True)
class Save:
    """Store a snapshot in the same transaction as what is published by this step."""


@dataclass(frozen=True, slots=True)
class Note:
    """A fact for logs and metrics; nothing depends on it."""

    kind: str
    facts: tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """The actor's work is done."""


Event = Incoming | TimerFired | Trained | Evaluated | ShardsGained | ShardsLost
Effect = Publish | StartTimer | StopTimer | Train | Evaluate | ShardRead | ShardReleased | Save | Note | Stop


def note(kind: str, **facts: object) -> Note:
    """A `Note` from keywords."""
    return Note(kind, tuple(facts.items()))
