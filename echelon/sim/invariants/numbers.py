"""What must hold of numbers: nobody says two different things under one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.sim.left import RunRecords

_NUMBERS: dict[str, tuple[str, ...]] = {
    "control": ("window", "seq", "version"),
    "model": ("version",),
    "masked": ("window",),
    "handshake": ("window",),
    "delta": ("seq",),
    "versions": ("version",),
    "parts": ("window",),
}


def said_once(left: RunRecords) -> Iterator[str]:
    """Nobody says two different things under one number: no (boundary, seq) twice, nor window, version or commit."""
    for boundary in left.boundaries:
        for topic, names in _NUMBERS.items():
            bodies: dict[tuple[str, str, str, int], set[bytes]] = {}
            for one in left.said(boundary, topic):
                for name in names:
                    value = getattr(one.message, name, None)
                    if value is None or (
                        name == "version" and topic == "control" and one.message.kind != "adopt"
                    ):
                        continue
                    key = (one.sender, one.message.kind, name, value)
                    bodies.setdefault(key, set()).add(one.body)
            for (sender, kind, name, value), different in bodies.items():
                if len(different) > 1:
                    yield f"{boundary}/{topic}: {sender} said {len(different)} different {kind} for {name} {value}"
    for topic, messages in left.exchange.items():
        numbers: Counter[int] = Counter()
        for message in messages:
            if isinstance(message, Delta):
                numbers[message.seq] += 1
            elif isinstance(message, Genesis | Commit | Refusal | Close):
                numbers[message.index] += 1
        for number, times in numbers.items():
            if times > 1:
                yield f"{topic}: {times} different records with number {number}"
        if sorted(numbers) != list(range(len(numbers))):
            yield f"{topic}: its numbers are not 0 to {len(numbers) - 1}"
