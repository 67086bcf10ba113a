"""Topics that are kept whole: whether one still has what it had."""

from __future__ import annotations

from echelon.bus.base import TopicPartition
from echelon.errors import LogLost
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
