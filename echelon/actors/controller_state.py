"""The controller's snapshot: how long the run took so far, how far each delta log was read, and the core's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgpack

from echelon.audit.log import TopicLog


def put_together(
    elapsed: float, logs: Mapping[str, TopicLog], core: Iterable[bytes | memoryview]
) -> list[bytes | memoryview]:
    """The snapshot in parts: a head that says how long they are, each delta log's, the core's.

    Args:
        elapsed: seconds that the run has taken.
        logs: the delta logs by topic.
        core: the core's snapshot, in parts.
    """
    states = [log.snapshot() for log in logs.values()]
    lengths = [[topic, len(state)] for topic, state in zip(logs, states, strict=True)]
    head = msgpack.packb([elapsed, lengths])
    return [len(head).to_bytes(4, "big"), head, *states, *core]


def taken_apart(snapshot: bytes) -> tuple[float, list[tuple[str, bytes]], bytes]:
    """Of a stored snapshot: seconds that the run had taken, the delta logs' states by topic, and the core's."""
    at = 4 + int.from_bytes(snapshot[:4], "big")
    elapsed, lengths = msgpack.unpackb(snapshot[4:at])
    logs = []
    for topic, length in lengths:
        logs.append((topic, snapshot[at : at + length]))
        at += length
    return elapsed, logs, snapshot[at:]
