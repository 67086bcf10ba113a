"""Times that several parties state, and what is taken of them: one that lies moves nothing.

The controller states how long ago the commit before was; each gate states how far apart the two newest commits arrived,
and how long its newest sync took. All of them look at the same commits, so their middle is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CONTROLLER = -1
"""Stands for the controller where reporters are named by the index of their boundary."""
KEPT = 5
"""Newest values of one reporter that its own middle is taken of."""
QUORUM = 3
"""Reporters of which one may say what it likes: the middle of three is no farther out than an honest one."""
AGREE = 2
"""Two reporters are believed if neither says more than twice what the other says: nobody can tell which one lies."""


@dataclass(frozen=True, slots=True)
class Spacing:
    """What one reporter says of the time between commit `commit` and the one before it, in microseconds."""

    reporter: int
    commit: int
    microseconds: int


def median(values: Sequence[int]) -> int:
    """The lower median; 0 of nothing."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0


def middle(values: Sequence[int]) -> int:
    """What is believed of one value for each reporter; 0: nothing.

    Of three and more the lower median, of two that agree the larger one (it asks for the shorter interval); one alone
    is never believed.
    """
    if len(values) >= QUORUM:
        return median(values)
    if len(values) == 2 and max(values) <= AGREE * min(values):
        return max(values)
    return 0


def second_smallest(values: Sequence[int]) -> int:
    """The smallest but one of three and more values; the smallest of two; 0 of nothing.

    A sync that did not wait for others is the shortest one, and one reporter may say that it had a shorter one.
    """
    if len(values) >= QUORUM:
        return sorted(values)[1]
    return min(values, default=0)


@dataclass(frozen=True, slots=True)
class Reports:
    """The newest values of each reporter; a value."""

    by: tuple[tuple[int, tuple[int, ...]], ...] = ()

    def add(self, reporter: int, value: int) -> Reports:
        """With one more value."""
        newest = dict(self.by)
        newest[reporter] = (*newest.get(reporter, ()), value)[-KEPT:]
        return Reports(tuple(sorted(newest.items())))

    @property
    def medians(self) -> tuple[int, ...]:
        """One value for each reporter, in their order."""
        return tuple(median(values) for _, values in self.by)

    def plain(self) -> list[object]:
        """For canonical encodings."""
        return [[reporter, list(values)] for reporter, values in self.by]

    @classmethod
    def of(cls, plain: Sequence[tuple[int, Sequence[int]]]) -> Reports:
        """What `plain` wrote."""
        return cls(tuple((reporter, tuple(values)) for reporter, values in plain))


NOTHING = Reports()
"""Before anybody said anything."""
