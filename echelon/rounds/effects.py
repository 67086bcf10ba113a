"""What goes into a state machine and what comes out: events and effects, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echelon.jobs.edge_part import EdgeDone, EdgeDrop, EdgeStart, EdgeTask
from echelon.jobs.training import Abandoned, Evaluate, Evaluated, SplitJob, TrainJob, TrainOutcome
from echelon.messages.wire import Message, Reason

__all__ = [
    "Abandoned",
    "EdgeDone",
    "EdgeDrop",
    "EdgeStart",
    "EdgeTask",
    "Effect",
    "Evaluate",
    "Evaluated",
    "Event",
    "Incoming",
    "MeasureTrips",
    "Note",
    "Publish",
    "Refuse",
    "Save",
    "ShardRead",
    "ShardReleased",
    "ShardsGained",
    "ShardsLost",
    "SplitJob",
    "StartTimer",
    "Stop",
    "StopTimer",
    "TimerFired",
    "TrainJob",
    "TrainOutcome",
    "TripsMeasured",
    "note",
]  # fmt: skip


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
class ShardsGained:
    """Data shards are this device's from now on: (shard, where its data goes on), each."""

    shards: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class ShardsLost:
    """Data shards are to be given up: no job may begin on them, and `ShardReleased` says when none runs."""

    shards: frozenset[int]


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
    payload: bytes | memoryview | None = None
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
class Refuse:
    """The record that led here is refused: it goes to `deadletter`."""

    reason: Reason
    detail: str


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


Event = (
    Incoming | TimerFired | TrainOutcome | Abandoned | Evaluated | TripsMeasured | ShardsGained | ShardsLost
)
Effect = (
    Publish
    | StartTimer
    | StopTimer
    | TrainJob
    | Evaluate
    | MeasureTrips
    | ShardRead
    | ShardReleased
    | EdgeTask
    | EdgeDrop
    | Refuse
    | Save
    | Note
    | Stop
)


def note(kind: str, **facts: object) -> Note:
    """A `Note` from keywords."""
    return Note(kind, tuple(facts.items()))
