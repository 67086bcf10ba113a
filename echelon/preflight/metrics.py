"""A run's own metrics, called once with a batch that is made up before anything begins."""

from __future__ import annotations

import numpy as np

from echelon.config.run import RunSettings
from echelon.errors import EchelonError
from echelon.preflight.findings import RunFault
from echelon.training.metrics import IGNORED, EvaluatedBatch, value_of
from echelon.wiring.metrics import own_metrics
from echelon.wiring.plugins import source_of

METRICS = "metrics"
VOCABULARY = 1 << 18
"""Tokens of the batch that a metric is tried with: as many as any vocabulary has."""


def check_own_metrics(settings: RunSettings, faults: list[RunFault]) -> dict[str, str]:
    """Find the function of every metric that a run file lists, load it, and call it once.

    Args:
        settings: the run file.
        faults: takes what is wrong.

    Returns:
        The source file of each, by the function's name.
    """
    found: dict[str, str] = {}
    if not settings.metrics:
        return found
    batch = made_up(settings)
    for place, metric in enumerate(settings.metrics):
        try:
            found[metric.rule] = str(source_of(metric.rule))
            (code,) = own_metrics(settings.model_copy(update={"metrics": (metric,)}))
            value_of(code.terms, code.make(), batch)
        except EchelonError as error:
            faults.append(RunFault(METRICS, f"metrics[{place}]: {error}"))
    return found


def made_up(settings: RunSettings) -> EvaluatedBatch:
    """A batch as the run's task gives it: two rows, or two sequences of four tokens, one of them counted."""
    dice = np.random.default_rng(settings.seed)
    classes = len(settings.model.labels)
    if settings.model.task == "classify":
        logits = dice.standard_normal((2, classes), np.float32)
        return EvaluatedBatch(logits, np.arange(2, dtype=np.int64) % classes)
    targets = dice.integers(0, 256, (2, 4))
    targets[0, :] = IGNORED
    return EvaluatedBatch(dice.standard_normal((2, 4, VOCABULARY), np.float32), targets)
