"""What evaluations of all boundaries give for the summary of a run."""

from __future__ import annotations

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


def _together(results: dict[str, EvalResult]) -> EvalResult:
    total = EvalResult(0.0, 0)
    for one in results.values():
        total += one
    return total
