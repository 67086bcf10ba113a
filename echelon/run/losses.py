"""What evaluations of all boundaries give for the summary of a run."""

from __future__ import annotations

from typing import Any

from echelon.jobs.training import MeasuredMetric
from echelon.training.learner import EvalResult


def losses(results: dict[str, EvalResult]) -> dict[str, float | None]:
    """Each boundary's loss, and that of all together."""
    by_name: dict[str, float | None] = {name: one.loss for name, one in results.items()}
    return by_name | {"overall": _together(results).loss}


def accuracies(**results: dict[str, EvalResult]) -> dict[str, dict[str, float | None]]:
    """`base_accuracy` and `final_accuracy` of a classifier; nothing for a language model."""
    return {
        f"{what}_accuracy": {name: one.accuracy for name, one in by_name.items()}
        | {"overall": _together(by_name).accuracy}
        for what, by_name in results.items()
        if _together(by_name).correct is not None
    }


def device_metrics(**results: dict[str, EvalResult]) -> dict[str, dict[str, dict[str, float | None]]]:
    """`base_metrics` and `final_metrics`: of each metric that devices compute, its mean by boundary, and "overall"."""
    return {
        f"{what}_metrics": {
            metric: {name: one.metrics[metric].mean for name, one in by_name.items() if metric in one.metrics}
            | {"overall": overall.mean}
            for metric, overall in together.items()
        }
        for what, by_name in results.items()
        if (together := _together(by_name).metrics)
    }


def to_stored(result: EvalResult) -> list[Any]:
    """What a run's folder keeps of an evaluation."""
    found: list[Any] = [result.loss_sum, result.tokens]
    if result.correct is not None or result.metrics:
        found.append(result.correct)
    if result.metrics:
        found.append({name: [one.total, one.count] for name, one in result.metrics.items()})
    return found


def from_stored(found: list[Any]) -> EvalResult:
    """The evaluation again.

    Raises:
        TypeError, ValueError: it is not what `to_stored` gave.
    """
    loss_sum, tokens, *more = found
    metrics = more.pop() if more and isinstance(more[-1], dict) else {}
    correct = more.pop() if more else None
    return EvalResult(
        loss_sum, tokens, correct, metrics={name: MeasuredMetric(*pair) for name, pair in metrics.items()}
    )


def _together(results: dict[str, EvalResult]) -> EvalResult:
    total = EvalResult(0.0, 0)
    for one in results.values():
        total += one
    return total
