"""The pauses between attempts at something that fails for a while: a broker that is away, a process that ends."""

from __future__ import annotations

import asyncio
import random

BOUNDS = (0.05, 5.0)
"""Seconds before jitter: the first pause, and the longest."""


class Backoff:
    """Pauses that double from one failed attempt to the next. Jitter shortens each by at most a half.

    Args:
        name: seeds the jitter, so that a simulation repeats; None: every instance has jitter of its own.
        bounds: seconds before jitter: the first pause, and the longest.
    """

    def __init__(self, name: str | None = None, bounds: tuple[float, float] = BOUNDS) -> None:
        self._random = random.Random(name)
        self._first, self._longest = bounds
        self._next = self._first

    async def wait(self) -> None:
        """Sleep for the next pause."""
        await asyncio.sleep(self._next * (0.5 + 0.5 * self._random.random()))
        self._next = min(self._longest, self._next * 2)

    def reset(self) -> None:
        """Begin again with the first pause, after a success."""
        self._next = self._first
