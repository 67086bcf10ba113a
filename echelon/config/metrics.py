"""Settings of metrics of the user's own that devices compute."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, StringConstraints

from echelon.config.training import Settings
from echelon.config.values import RuleName
from echelon.messages.exchange import MAX_WINDOWS, most_windows
from echelon.messages.manifest import MAX_METRIC_VALUES, METRIC_BITS, METRIC_NAME

if TYPE_CHECKING:
    from echelon.config.run import RunSettings

LARGEST = 1 << 20


class MetricSettings(Settings):
    """One metric: a function of an evaluated batch, and the bounds of one of its values."""

    name: Annotated[str, StringConstraints(pattern=METRIC_NAME)] = Field(
        description="Its name in all figures."
    )
    rule: RuleName = Field(
        description="Its function, `package.module:function`, in a file beside the run file (docs/python.md). It runs "
        "on devices, on their data."
    )
    low: float = Field(
        ge=-LARGEST, le=LARGEST, allow_inf_nan=False, description="Least that one value can be."
    )
    high: float = Field(
        ge=-LARGEST, le=LARGEST, allow_inf_nan=False, description="Most that one value can be."
    )

    def bounds(self) -> tuple[int, int]:
        """Low and high in units of 2**-16, rounded outwards."""
        unit = 1 << METRIC_BITS
        return math.floor(Fraction(self.low) * unit), math.ceil(Fraction(self.high) * unit)


def check_metrics(run: RunSettings) -> None:
    """Check that the run's devices can compute its metrics, and that their sums fit every message and every integer.

    Args:
        run: the run file.

    Raises:
        ValueError: the first sentence that does not hold, and what to change.
    """
    if not run.metrics:
        return
    names = [metric.name for metric in run.metrics]
    twice = sorted(name for name in set(names) if names.count(name) > 1)
    if twice:
        raise ValueError(f"two metrics are called {twice[0]!r}: give each a name of its own")
    if not run.sync.report_loss:
        raise ValueError(
            "metrics are computed in the evaluations whose losses are reported: set sync.report_loss, or leave metrics "
            "out"
        )
    if run.learner.kind != "lora":
        raise ValueError(f"metrics are of models, and a {run.learner.kind} learner has none: leave them out")
    for boundary in run.boundaries:
        if boundary.split is not None:
            raise ValueError(
                f"boundary {boundary.name!r}: split: metrics are computed by devices that hold the whole model: leave "
                "metrics or split out"
            )
    _check_bounds(run)
    _check_room(run)


def _check_bounds(run: RunSettings) -> None:
    for metric in run.metrics:
        low, high = metric.bounds()
        if metric.low >= metric.high:
            raise ValueError(
                f"metric {metric.name}: low is {metric.low:g}, and high is {metric.high:g}: swap them"
            )
        width = ((1 << 63) - 1) // (MAX_METRIC_VALUES * run.cohort_max())
        if high - low > width:
            raise ValueError(
                f"metric {metric.name}: with cohorts of {run.cohort_max()} devices, high less low may be "
                f"{width / (1 << METRIC_BITS):.0f} at most, so that no sum overflows: scale its values, or lower "
                "secure.cohort_max"
            )


def _check_room(run: RunSettings) -> None:
    """What a boundary has under way has to fit one delta: its manifest is of 8 KiB at most."""
    windows, most = (
        run.windows_max() * (run.sync.pending_max + 1),
        most_windows(len(run.metrics), len(run.adapter.rank_blocks)),
    )
    if min(windows, MAX_WINDOWS) > most:
        raise ValueError(
            f"{len(run.metrics)} metrics leave room for {most} windows in a delta, and sync.windows_max × "
            f"(sync.pending_max + 1) = {windows}: lower these, or list fewer metrics"
        )
