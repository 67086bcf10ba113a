"""What a metric's function gives for a batch is a sum of finite values within its bounds, or an error that names it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from echelon.jobs.training import MeasuredMetric
from echelon.messages.manifest import METRIC_BITS, MetricTerms
from echelon.training.metrics import IGNORED, EvaluatedBatch, MetricFault, MetricTally, value_of

UNIT = 1 << METRIC_BITS
TERMS = MetricTerms(name="exact", rule="scores:exact", sha256="ab" * 32, low=0, high=UNIT)
LOGITS = np.array([[[3, 1], [0, 2], [5, 4]], [[1, 2], [9, 0], [0, 1]]], np.float32)
TARGETS = np.array([[0, 1, 1], [1, IGNORED, IGNORED]], np.int64)
BATCH = EvaluatedBatch(LOGITS, TARGETS)


def exact(logits: np.ndarray, targets: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    right = (logits.argmax(-1) == targets) & mask
    return float(right.sum()), int(mask.sum())


def test_values_of_counted_places_add_up_over_batches() -> None:
    assert value_of(TERMS, exact, BATCH) == MeasuredMetric(3 * UNIT, 4)
    tally = MetricTally([(TERMS, exact)])
    assert tally.found == {"exact": MeasuredMetric(0, 0)}
    tally.add(BATCH)
    tally.add(BATCH)
    assert tally.found == {"exact": MeasuredMetric(6 * UNIT, 8)}
    assert tally.found["exact"].mean == 0.75


def test_numbers_of_numpy_are_numbers() -> None:
    assert value_of(TERMS, lambda **_: (np.float32(0.5), np.int64(1)), BATCH) == MeasuredMetric(UNIT // 2, 1)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda **_: 1.0, "gave float, and no pair"),
        (lambda **_: (1.0, 1, 1), "gave tuple, and no pair"),
        (lambda **_: (float("nan"), 1), "gave nan as its sum, which is no finite number"),
        (lambda **_: (float("inf"), 1), "gave inf as its sum"),
        (lambda **_: (10**400, 1), "gave int as its sum, which is no finite number"),
        (lambda **_: ("1", 1), "gave str as its sum"),
        (lambda **_: (1.5, 1), "gave the sum 1.5 for 1 values, and each lies from 0 to 1 by the run's terms"),
        (lambda **_: (-0.5, 1), "gave the sum -0.5"),
        (lambda **_: (0.5, 0), "gave the sum 0.5 for 0 values"),
        (lambda **_: (1.0, 7), "gave 7 as its number of values; it is an integer from 0 to the 6 targets"),
        (lambda **_: (0.0, -1), "gave -1 as its number"),
        (lambda **_: (1.0, True), "gave True as its number"),
        (lambda **_: (1.0, 1.0), r"gave 1\.0 as its number"),
        (lambda logits, labels: (0.0, 0), "failed, called with logits, targets and mask: TypeError"),
        (lambda logits, targets, mask: targets.fill(0), "failed.*read-only"),
        (lambda **_: 1 / 0, "failed.*ZeroDivisionError"),
    ],
)
def test_anything_else_is_an_error_that_names_the_metric(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(MetricFault, match=rf"the metric exact \(scores:exact\) {said}"):
        value_of(TERMS, function, BATCH)
    assert (BATCH.targets == TARGETS).all()
