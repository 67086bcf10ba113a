"""Metrics of the user's own that devices compute: their values as integers of the secure sum, and what a sum may be.

A device adds two integers for each metric that the manifest lists: Σ (value - low) in units of 2**-16, and how many
values that is of. They stand beside the evaluation's loss in the masked update, and go where it goes: a device that
adds no evaluation adds zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from echelon.errors import TrainingError
from echelon.jobs.training import MeasuredMetric
from echelon.laws.rules import Allowed, AllowedRule, RuleRefused
from echelon.messages.manifest import MAX_METRIC_VALUES, METRIC_BITS, MetricTerms

UNIT = 1 << METRIC_BITS


def contribution(
    device: str, terms: Sequence[MetricTerms], measured: Mapping[str, MeasuredMetric]
) -> tuple[int, ...]:
    """What a device adds to a sum: two integers for each metric of the manifest.

    Args:
        device: its name, for the message.
        terms: the manifest's metrics.
        measured: by name, what the evaluation gave.

    Raises:
        TrainingError: a metric is missing, or what it gave is no sum of so many values within its bounds.
    """
    found: list[int] = []
    for metric in terms:
        one = measured.get(metric.name)
        if one is None:
            raise TrainingError(f"device {device}: its evaluation did not compute the metric {metric.name}")
        value = one.total - metric.low * one.count
        if not 0 <= one.count <= MAX_METRIC_VALUES or not 0 <= value <= metric.width * one.count:
            raise TrainingError(
                f"device {device}: the metric {metric.name} ({metric.rule}) came to {one.total / UNIT:g} for "
                f"{one.count} values. At most {MAX_METRIC_VALUES} are taken, each from {metric.low / UNIT:g} "
                f"to {metric.high / UNIT:g}: correct the function, or lower sync.eval_tokens"
            )
        found += [value, one.count]
    return tuple(found)


def possible(terms: Sequence[MetricTerms], sums: Sequence[int], heads: int) -> bool:
    """Whether these can be the sums of a window: two for each metric, each within its bounds.

    Args:
        terms: the manifest's metrics.
        sums: two integers for each.
        heads: devices in the window.
    """
    if len(sums) != 2 * len(terms):
        return False
    return all(
        count <= heads * MAX_METRIC_VALUES and value <= metric.width * count
        for metric, value, count in zip(terms, sums[::2], sums[1::2], strict=True)
    )


def released(
    terms: Sequence[MetricTerms], sums: Sequence[int], *, heads: int, evaluated: bool
) -> tuple[int, ...]:
    """The sums of a window as its summary has them.

    What one device says hides in the sum. So a sum that honest devices cannot have is no reason to lose the window: the
    metric is 0 of 0 values then, and so is every metric of a window without evaluations.

    Args:
        terms: the manifest's metrics.
        sums: two integers for each.
        heads: devices in the window.
        evaluated: whether its sum has evaluations.
    """
    found: list[int] = []
    for place, metric in enumerate(terms):
        pair = tuple(sums[2 * place : 2 * place + 2])
        found += pair if evaluated and possible((metric,), pair, heads) else (0, 0)
    return tuple(found)


def means(terms: Sequence[MetricTerms], sums: Sequence[int]) -> dict[str, tuple[float, int]]:
    """The mean value of each metric that has values, and of how many it is, by name."""
    return {
        metric.name: ((value / count + metric.low) / UNIT, count)
        for metric, value, count in zip(terms, sums[::2], sums[1::2], strict=True)
        if count
    }


def allowed_metrics(terms: Sequence[MetricTerms], allowed: Allowed) -> tuple[AllowedRule, ...]:
    """The code of each metric, for a device whose owner allowed it.

    Args:
        terms: the manifest's metrics.
        allowed: the code that may run on the device, by name.

    Raises:
        RuleRefused: a metric's code was not allowed, or in another version.
    """
    found: list[AllowedRule] = []
    for metric in terms:
        code = allowed.get(metric.rule)
        said = (
            f"the run's metric {metric.name} is {metric.rule}, code with SHA-256 {metric.sha256} on devices"
        )
        if code is None:
            raise RuleRefused(
                f"{said}, and it was not allowed here: read the file, then allow it by name and digest under `metrics` "
                f"of the device's configuration, or take no part in the run"
            )
        if code.sha256.hex() != metric.sha256:
            raise RuleRefused(
                f"{said}; the version that was allowed here has SHA-256 {code.sha256.hex()}: read the run's version "
                f"and allow that, or take no part in the run"
            )
        found.append(code)
    return tuple(found)
