"""What goes into a state machine and what comes out: events and effects, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from echelon.laws.blocks import WHOLE
from echelon.messages.adapter import Factor
from echelon.messages.behaviour import Behaviour
from echelon.messages.frames import Decline
from echelon.messages.wire import Message, Reason

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
    behaviour: Behaviour | None = None
    """What the model did on public probes afterwards, if it was asked."""
    cut: tuple[int, int] | None = None
    """(p, q) of the next job with an edge, if what this one measured moved it."""
    held: tuple[int, int] = WHOLE
    """Blocks that the job moved on the device itself: those below the first number and from the second on."""
    encodings: Mapping[str, str] = field(default_factory=dict)
    """What was chosen for each stream to and from the edge, if that changed since the last job."""


@dataclass(frozen=True, slots=True)
class Abandoned:
    """A training job was given up half-way: weights, moments and data position are as before it."""

    job: int
    why: str


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
    """The validation slice was evaluated with the adapter of a commit; or it could not be with that edge, and why."""

    commit: int
    loss_sum: float
    tokens: int
    lost: str = ""


@dataclass(frozen=True, slots=True)
class TripsMeasured:
    """How long edges took to answer, in microseconds; those that did not are not in it."""

    microseconds: Mapping[str, int]


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
    is given that shard's, read on from `position`. If `factor` is given, the other factor stays as it is. With `split`,
    an edge trains the middle blocks.
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
    split: SplitJob | None = None


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
class MiddleStart:
    """Where the middle of a job starts, float32[d] both; coordinates of the device's own blocks do not matter.

    `secret` is the session's, of 32 bytes; the task's tensor holds what the device says of its perturbation.
    """

    base: F32
    start: F32
    front: int
    back: int
    mu: float
    progress: float
    state: bytes | None
    secret: bytes


@dataclass(frozen=True, slots=True)
class Middle:
    """Work on the middle blocks of one device's job. Tasks of one device are done one after the other, in order.

    `head` says what: `Begin` or `Assess` (with `start`), `Forward`, `Backward`, `Look` (with the tensor's bytes), or
    `Finish`. `step` is whether the optimiser's step of the step before is due first, with `scale`; `last`, whether a
    backward pass is the last of its step.
    """

    device: str
    session: bytes
    job: int
    head: Message
    tensor: bytes = b""
    step: bool = False
    scale: float = 1.0
    last: bool = False
    start: MiddleStart | None = None


@dataclass(frozen=True, slots=True)
class MiddleDone:
    """What came of a `Middle`.

    Attributes:
        tensor: bytes of the output or gradient.
        norm2: ‖g‖² of the middle's gradient, after the last backward pass of a step.
        moved: where a finished job's middle moved, float32[d], 0 outside; and the moments.
        fault: why it could not be done.
    """

    task: Middle
    tensor: bytes = b""
    norm2: float = 0.0
    moved: F32 | None = None
    state: bytes | None = None
    fault: Decline | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class MiddleDrop:
    """A device's job was given up: let go of what is kept of it."""

    device: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The record that led here is refused: it goes to `deadletter`."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the device's validation slice, or those of its data shards, with the adapter of a commit.

    A device that holds a part of the model does it with its edge, under a number of its jobs.
    """

    commit: int
    weights: F32
    shards: tuple[int, ...] = ()
    edge: str = ""
    job: int = 0


@dataclass(frozen=True, slots=True)
class MeasureTrips:
    """Measure the round trips to all edges."""


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


Event = Incoming | TimerFired | Trained | Abandoned | Evaluated | TripsMeasured | ShardsGained | ShardsLost
Effect = (
    Publish
    | StartTimer
    | StopTimer
    | Train
    | Evaluate
    | MeasureTrips
    | ShardRead
    | ShardReleased
    | Middle
    | MiddleDrop
    | Refuse
    | Save
    | Note
    | Stop
)


def note(kind: str, **facts: object) -> Note:
    """A `Note` from keywords."""
    return Note(kind, tuple(facts.items()))
