"""What paired seeds say: means, intervals, verdicts, and a correction for many comparisons. SciPy has the quantiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

LEVEL = 0.95
TIED = 0.003
"""An interval within ± this share of the baseline's mean means "tied"."""


class PairedVerdict(StrEnum):
    """What an interval of a difference says; smaller is better for every figure that is compared."""

    BETTER = "better"
    WORSE = "worse"
    TIED = "tied"
    UNRESOLVED = "unresolved"


@dataclass(frozen=True)
class MeanAndSd:
    """Mean and sample standard deviation (None for one value) of so many values."""

    mean: float
    sd: float | None
    count: int


@dataclass(frozen=True)
class Paired:
    """A paired comparison: mean difference, its interval (None for fewer than two pairs), p, as shares of the baseline.

    `p` is of the two-sided paired t test, NaN where it is not defined; `difference`, `low` and `high` are relative to
    the baseline's mean.
    """

    difference: float
    low: float | None
    high: float | None
    p: float
    count: int

    @property
    def verdict(self) -> PairedVerdict:
        """Tied: the interval lies within ±0.3 %; else better or worse if it leaves 0 out; else unresolved."""
        if self.low is None or self.high is None:
            return PairedVerdict.UNRESOLVED
        if self.low >= -TIED and self.high <= TIED:
            return PairedVerdict.TIED
        if self.high < 0:
            return PairedVerdict.BETTER
        return PairedVerdict.WORSE if self.low > 0 else PairedVerdict.UNRESOLVED


def summary(values: Sequence[float]) -> MeanAndSd:
    """Mean and sd of at least one value."""
    sd = statistics.stdev(values) if len(values) > 1 else None
    return MeanAndSd(statistics.fmean(values), sd, len(values))


def paired(values: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Compare two lists, pair by pair (the same seed at the same place).

    The interval is d̄ ± t(0.975, n − 1) · s_d / √n (Student 1908), divided by the baseline's mean.

    Raises:
        ValueError: the lists are empty or of different lengths.
    """
    if len(values) != len(baseline) or not values:
        raise ValueError(f"{len(values)} values cannot be paired with {len(baseline)}")
    scale = abs(statistics.fmean(baseline)) or 1.0
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean = statistics.fmean(differences) / scale
    count = len(differences)
    if count < 2:
        return Paired(mean, None, None, math.nan, count)
    error = statistics.stdev(differences) / math.sqrt(count) / scale
    student = _student()
    half = float(student.ppf(0.5 + LEVEL / 2, count - 1)) * error
    p = 2 * float(student.sf(abs(mean) / error, count - 1)) if error > 0 else (1.0 if mean == 0 else 0.0)
    return Paired(mean, mean - half, mean + half, p, count)


def _student() -> Any:
    """Student's t, imported when an interval is asked for: it takes a while."""
    from scipy import stats

    return stats.t


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): step-down, monotone, at most 1; NaN stays NaN and counts not."""
    known = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    corrected = [math.nan] * len(ps)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected
