"""Topics that are kept: whether one still has what it had, and where one begins that may be trimmed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from echelon.backoff import Backoff
from echelon.bus.base import Bus, TopicPartition
from echelon.errors import ConnectionLost, LogLost
from echelon.topics import load_catalogue


def check_end(at: TopicPartition, known: int, end: int) -> None:
    """Check that a partition still reaches as far as it was known to; one of a transient topic may not.

    Args:
        at: topic and partition.
        known: offset behind a record that stood there once.
        end: offset behind the last record that stands there now.

    Raises:
        LogLost: it ends before.
    """
    topic = load_catalogue().entry(at.topic)
    if end < known and not (topic is not None and topic.transient):
        raise LogLost(
            f"{at.topic}/{at.partition} had records up to offset {known - 1}, and ends at {end} now"
        )


async def when_connected(ask: Callable[[], Awaitable[int]], name: str) -> int:
    """A broker's answer, however often the connection is lost.

    Args:
        ask: asks once.
        name: of the actor; its random waits between attempts differ from those of others.
    """
    backoff = Backoff(name)
    while True:
        try:
            return await ask()
        except ConnectionLost:
            await backoff.wait()


async def first_of(bus: Bus, at: TopicPartition, name: str) -> int:
    """The first offset that is kept, however often the connection is lost.

    Args:
        bus: the broker.
        at: topic and partition.
        name: of the actor; its random waits between attempts differ from those of others.
    """
    return await when_connected(lambda: bus.first_offset(at), name)


async def readable_from(bus: Bus, at: TopicPartition, start: int, name: str) -> int:
    """Where reading can begin: at `start`, or behind what was trimmed of a topic that may be.

    Args:
        bus: the broker.
        at: topic and partition.
        start: offset of the first record that is wanted.
        name: of the actor, for its waits.
    """
    if at.topic not in load_catalogue().boundary.trimmable:
        return start
    return max(start, await first_of(bus, at, name))
