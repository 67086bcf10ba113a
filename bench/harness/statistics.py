"""What paired seeds say: means, intervals, verdicts, and a correction for many comparisons.

The t test is SciPy's. It has no correction of Holm's, so that one is written here.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

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
    from scipy.stats import ttest_rel  # here, for it takes a while to import

    scale = abs(statistics.fmean(baseline)) or 1.0
    differences = [a - b for a, b in zip(values, baseline, strict=True)]
    mean, count = statistics.fmean(differences) / scale, len(differences)
    if count < 2:
        return Paired(mean, None, None, math.nan, count)
    if statistics.stdev(differences) == 0:  # no distribution: SciPy gives NaN
        return Paired(mean, mean, mean, 1.0 if mean == 0 else 0.0, count)
    test = ttest_rel(values, baseline)
    low, high = test.confidence_interval(LEVEL)
    return Paired(mean, float(low) / scale, float(high) / scale, float(test.pvalue), count)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): step-down, monotone, at most 1; NaN stays NaN and counts not."""
    known = sorted((p, place) for place, p in enumerate(ps) if not math.isnan(p))
    corrected = [math.nan] * len(ps)
    least = 0.0
    for rank, (p, place) in enumerate(known):
        least = max(least, min(1.0, (len(known) - rank) * p))
        corrected[place] = least
    return corrected
