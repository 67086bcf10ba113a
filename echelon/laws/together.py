"""Work in parts that do not depend on one another: in order, or in more than one thread where a caller has given one.

What the parts return never depends on where they run: each computes its own result, and results are in the order of the
parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

LEAST_SHARED = 1 << 16
"""Coordinates below which a vector is not divided: a thread would cost more than it saves."""


class PartRunner(Protocol):
    """Whoever runs parts in more than one thread."""

    def run(self, parts: Sequence[Callable[[], Any]]) -> list[Any]:
        """Run every part, and return their results in order; raises what the first failed part has raised."""


_RUNNER: ContextVar[PartRunner | None] = ContextVar("runner", default=None)


@contextmanager
def helped_by(runner: PartRunner | None) -> Iterator[None]:
    """Have `together` of this context run its parts by `runner`; None: in order."""
    token = _RUNNER.set(runner)
    try:
        yield
    finally:
        _RUNNER.reset(token)


def together(parts: Sequence[Callable[[], T]]) -> list[T]:
    """Run parts that do not depend on one another, and return their results in order."""
    runner = _RUNNER.get()
    if runner is None or len(parts) < 2:
        return [part() for part in parts]
    return runner.run(parts)


def ranges(size: int, block: int) -> list[range]:
    """The starts of the blocks of a vector, in one range, or in two where `together` has somebody to share with."""
    if _RUNNER.get() is None or size < LEAST_SHARED:
        return [range(0, size, block)]
    middle = -(-size // (2 * block)) * block
    return [range(0, middle, block), range(middle, size, block)]
