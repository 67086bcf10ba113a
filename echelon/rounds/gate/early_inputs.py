"""Inputs of windows that were read before the decisions which say what counts of them."""

from __future__ import annotations

from collections import Counter

from echelon.messages.wire import Reason
from echelon.rounds.effects import Incoming
from echelon.secagg.faults import InputRefused

MAX_EARLY_WINDOWS = 1024
"""Inputs are kept for at most so many windows ahead of the decisions that were read."""
RECORD_COST = 64 * 1024
"""What a record counts as besides its payload: the largest that one without payload can have."""
EARLY_INPUTS = 16
"""Inputs of the largest kind that one sender may have kept before their decisions were read: those of a few windows."""


class EarlyInputs:
    """Inputs by window, within a bound for each sender.

    Args:
        length: bytes of the longest payload of an input.
    """

    def __init__(self, length: int) -> None:
        self._most = EARLY_INPUTS * (RECORD_COST + length)
        self._inputs: dict[int, list[Incoming]] = {}
        self._bytes: Counter[str] = Counter()

    def __bool__(self) -> bool:
        return bool(self._inputs)

    @property
    def bytes(self) -> int:
        """Bytes that are kept, as they are counted."""
        return self._bytes.total()

    def clear(self) -> None:
        """Let go of everything."""
        self._inputs.clear()
        self._bytes.clear()

    def keep(self, incoming: Incoming, *, due: int, wants: frozenset[str]) -> None:
        """Keep an input until its window is closed.

        A window's inputs stand on their topic before those of any later one: its decision was made when they had been
        read, and nobody has anything to send for a later window before that. So what stands between them was sent by
        somebody who does not keep to the protocol, and the aggregator has not taken it.

        Args:
            incoming: the input, of the window that is due or of a later one.
            due: number of the window that is due.
            wants: topics of which that window still lacks something.

        Raises:
            InputRefused: it came too early; nothing has changed.
        """
        early, where = f"an input of window {incoming.window}", f"window {due} is due"
        if incoming.window - due > MAX_EARLY_WINDOWS:
            raise InputRefused(Reason.OUT_OF_ORDER, f"{early} while {where}")
        if incoming.window > due and incoming.topic in wants:
            raise InputRefused(
                Reason.OUT_OF_ORDER, f"{early} before the last one of its topic that {where} with"
            )
        size = _cost(incoming)
        if self._bytes[incoming.sender] + size > self._most:
            raise InputRefused(
                Reason.OUT_OF_ORDER,
                f"{early} while {where}: {self._most} bytes that came early are kept of {incoming.sender} already",
            )
        self._bytes[incoming.sender] += size
        self._inputs.setdefault(incoming.window, []).append(incoming)

    def take(self, window: int) -> list[Incoming]:
        """The inputs of a window that were kept; they count no longer."""
        inputs = self._inputs.pop(window, [])
        for incoming in inputs:
            self._bytes[incoming.sender] -= _cost(incoming)
            if not self._bytes[incoming.sender]:
                del self._bytes[incoming.sender]
        return inputs


def _cost(incoming: Incoming) -> int:
    """What an input counts as while it is kept."""
    return RECORD_COST + len(incoming.payload or b"")
