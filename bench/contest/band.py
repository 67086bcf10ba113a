"""How far simulated seconds are from seconds on sockets: a band beside every figure in seconds, where that is far."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.harness.tables import seconds, spread

ACCEPTED = 0.15
"""Largest error of a validation, either way, that needs no band."""


@dataclass(frozen=True)
class Band:
    """From which to which share more (or, below 0, less) time the validated runs took than was predicted."""

    low: float
    high: float

    @property
    def of_a_ratio(self) -> float:
        """By which share the ratio of two times may be off, when each is off by an error of the band."""
        return (1 + self.high) / (1 + self.low) - 1

    def around(self, value: float) -> str:
        """What a simulated time would be with these errors, in brackets."""
        return f"[{seconds(value * (1 + self.low))}, {seconds(value * (1 + self.high))}]"


def errors(validation: Mapping[str, Any]) -> list[float]:
    """Error of each case, as a share of what was predicted with the rate that the machine's cores have together.

    Validations of before that rate was measured have the prediction of the cost model alone.
    """
    return [row["measured_s"] / row.get("busy_s", row["predicted_s"]) - 1 for row in validation["rows"]]


def band_of(validation: Mapping[str, Any] | None) -> Band | None:
    """The band that a validation asks for; None if there is no validation, or no error above `ACCEPTED`."""
    found = [] if validation is None else errors(validation)
    if all(abs(error) <= ACCEPTED for error in found):
        return None
    return Band(min(found), max(found))


def timed(values: Sequence[float], band: Band | None) -> str:
    """Mean ± sd of simulated seconds, with the band around the mean."""
    text = spread(values, seconds)
    return text if band is None or not values else f"{text} {band.around(statistics.fmean(values))}"
