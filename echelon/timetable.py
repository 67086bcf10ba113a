"""Values that change at set times, once or again and again: a link's bandwidth by time of day, a device's speed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from echelon.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Timetable:
    """A value over time, constant between two changes.

    Attributes:
        first: what holds before the first change; with a period, from the beginning of each period on.
        changes: (seconds, value), in order of time: from then on the value holds. With a period, seconds of the period.
        period: seconds after which everything repeats; None: nothing does, and the last value stays.
    """

    first: float
    changes: tuple[tuple[float, float], ...] = ()
    period: float | None = None

    def __post_init__(self) -> None:
        times = [when for when, _ in self.changes]
        if any(not 0 <= when < math.inf for when in times):
            raise ConfigError(f"timetable: changes at {times}; give seconds, at least 0 and finite")
        if any(later <= earlier for earlier, later in pairwise(times)):
            raise ConfigError(f"timetable: changes at {times}; each comes after the one before it")
        if self.period is not None and not 0 < self.period < math.inf:
            raise ConfigError(f"timetable: period is {self.period!r}; give seconds, more than 0 and finite")
        if self.period is not None and times and times[-1] >= self.period:
            raise ConfigError(
                f"timetable: a change at {times[-1]} s is not within the period of {self.period} s"
            )

    @property
    def least(self) -> float:
        """The smallest value."""
        return min(self._values)

    @property
    def _values(self) -> tuple[float, ...]:
        return (self.first, *(value for _, value in self.changes))

    def at(self, seconds: float) -> float:
        """The value that holds at a time, in seconds from the beginning."""
        return next(self._pieces(seconds))[0]

    def duration(self, begin: float, amount: float) -> float:
        """Seconds that an amount takes when the values are rates, in units of the amount per second.

        What is under way when the rate changes goes on at the new one.

        Args:
            begin: when it begins, in seconds from the beginning.
            amount: how much there is to do, at least 0.

        Raises:
            ConfigError: a value is no rate: it is not above 0.
        """
        if not self.least > 0:
            raise ConfigError(f"timetable: a rate of {self.least!r}; give one above 0")
        if not self.changes:
            return amount / self.first
        now, left = begin, amount
        if self.period is not None:
            # Whole periods at once: a large amount must not cost one turn for each of them.
            whole = self._of_a_period()
            skipped = math.floor(left / whole) - 1
            if skipped > 0:
                now, left = now + skipped * self.period, left - skipped * whole
        for rate, until in self._pieces(now):
            room = rate * (until - now) if until > now else 0.0
            if left <= room:
                return now + left / rate - begin
            left, now = left - room, until
        raise AssertionError("the last piece has no end")

    def _of_a_period(self) -> float:
        """How much is done in one period."""
        assert self.period is not None
        starts = (0.0, *(when for when, _ in self.changes))
        ends = (*starts[1:], self.period)
        return sum(
            value * (end - start)
            for value, start, end in zip(self._values, starts, ends, strict=True)
            if end > start
        )

    def _pieces(self, seconds: float) -> Iterator[tuple[float, float]]:
        """(value, until when it holds) from the piece on that a time lies in, for ever with a period."""
        times, period = [when for when, _ in self.changes], self.period or 0.0
        cycle = math.floor(seconds / period) if period else 0
        place = bisect_right(times, seconds - cycle * period)
        while True:
            if place < len(times):
                until = cycle * period + times[place]
            else:
                until = (cycle + 1) * period if period else math.inf
            yield self._values[place], until
            if until == math.inf:
                return
            place += 1
            if place > len(times):
                cycle, place = cycle + 1, 0
