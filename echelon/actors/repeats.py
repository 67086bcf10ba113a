"""Lines of a log that would stand there again and again: they are counted, and said at each power of ten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

MAX_KEYS = 4096
"""Kinds that are told apart; whoever makes more begins anew with all of them."""


class Repeats:
    """How often each kind of thing has happened."""

    def __init__(self) -> None:
        self._counts: Counter[Hashable] = Counter()

    def again(self, kind: Hashable) -> str | None:
        """Count one more; what to add to its line ("", " (100 times by now)"), or None for no line."""
        if len(self._counts) >= MAX_KEYS and kind not in self._counts:
            self._counts.clear()
        self._counts[kind] += 1
        number = self._counts[kind]
        if str(number).strip("0") != "1":
            return None
        return "" if number == 1 else f" ({number} times by now; others are not listed)"
