"""When something that happens again and again happened last, and how long it usually takes: what alerts compare."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import pairwise
from statistics import median

from prometheus_client import CollectorRegistry, Gauge

REMEMBERED = 17
"""Times that are kept: the usual interval is the median of the sixteen between them."""


class Recurring:
    """Two gauges: `echelon_last_NAME_timestamp_seconds` and `echelon_NAME_interval_seconds`.

    Args:
        name: what happens, in one word.
        registry: where both are shown; None: nowhere.
        now: seconds since the epoch, which stand for the last time before the first one.
        expected: seconds between two of them, as the run's settings say; they count until there are two.
    """

    def __init__(self, name: str, registry: CollectorRegistry | None, *, now: float, expected: float) -> None:
        self._last = Gauge(
            f"echelon_last_{name}_timestamp_seconds",
            f"When the last {name} was, in seconds since the epoch; before the first: when this process began.",
            registry=registry,
        )
        self._interval = Gauge(
            f"echelon_{name}_interval_seconds",
            f"Usual seconds from one {name} to the next: a median of {REMEMBERED - 1}; before that, the run's terms.",
            registry=registry,
        )
        self._times: deque[float] = deque(maxlen=REMEMBERED)
        self._last.set(now)
        self._interval.set(expected)

    def happened(self, *times: float) -> None:
        """It happened at these times, in seconds since the epoch, ascending; those that are known count once."""
        self._times.extend(_later(times, self._times[-1] if self._times else None))
        if self._times:
            self._last.set(self._times[-1])
        if len(self._times) > 1:
            self._interval.set(median(later - earlier for earlier, later in pairwise(self._times)))


def _later(times: Iterable[float], than: float | None) -> list[float]:
    return [time for time in times if than is None or time > than]
