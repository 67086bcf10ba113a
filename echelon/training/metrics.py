"""Metrics of the user's own: what a function gives for an evaluated batch, checked before it is added. No torch here.

A metric is a function `f(logits, targets, mask)` that gives the sum of its values and how many they are. All are numpy
arrays that it cannot change:

- logits: float32[b, l, vocabulary], or float32[b, classes] of a classifier.
- targets: int64[b, l], each the token that the logits of its place are to predict; or int64[b], the row's class.
- mask: bool of the shape of `targets`: whether the place counts. Where it does not, the target is -100.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from echelon.errors import EchelonError, TrainingError
from echelon.jobs.training import MeasuredMetric
from echelon.messages.manifest import METRIC_BITS, MetricTerms

IGNORED = -100
"""The target of a place that does not count."""
Function = Callable[..., object]


class MetricFault(TrainingError):
    """A metric of the user's own failed, or gave what is no sum of values within its bounds."""


@dataclass(frozen=True)
class EvaluatedBatch:
    """One batch of an evaluation; shapes as in the module's docstring."""

    logits: NDArray[np.float32]
    targets: NDArray[np.int64]

    def arguments(self) -> dict[str, NDArray[np.generic]]:
        """What a function is called with, by name."""
        arrays = {"logits": self.logits, "targets": self.targets, "mask": self.targets != IGNORED}
        views = {name: array.view() for name, array in arrays.items()}
        for view in views.values():
            view.flags.writeable = False
        return views


@dataclass(frozen=True)
class MetricCode:
    """A metric that may run here.

    Attributes:
        terms: its name, and the bounds of a value.
        make: gives the function. Only those whose digest is the manifest's are here.
    """

    terms: MetricTerms
    make: Callable[[], Function]


def value_of(terms: MetricTerms, function: Function, batch: EvaluatedBatch) -> MeasuredMetric:
    """Call a metric's function with one batch.

    Args:
        terms: the metric's.
        function: the user's.
        batch: what was evaluated.

    Raises:
        MetricFault: it failed, or gave no pair of a finite sum and a count that fit the metric's bounds.
    """
    where = f"the metric {terms.name} ({terms.rule})"
    try:
        given = function(**batch.arguments())
    except EchelonError:
        raise
    except Exception as error:  # it is somebody's code, and may raise anything
        raise MetricFault(
            f"{where} failed, called with logits, targets and mask: {type(error).__name__}: {error}"
        ) from error
    if not (isinstance(given, tuple) and len(given) == 2):
        raise MetricFault(
            f"{where} gave {type(given).__name__}, and no pair (sum of values, number of values)"
        )
    total, count = _number(given[0]), given[1]
    # A bool is an int, and no number of values.
    if isinstance(count, bool) or not isinstance(count, int | np.integer):
        count = -1
    if not 0 <= count <= batch.targets.size:
        raise MetricFault(
            f"{where} gave {_shown(given[1])} as its number of values; it is an integer from 0 to the "
            f"{batch.targets.size} targets of the batch"
        )
    if not math.isfinite(total):
        raise MetricFault(
            f"{where} gave {_shown(given[0])} as its sum, which is no finite number: leave out what has no value"
        )
    units, count = round(Fraction(total) * (1 << METRIC_BITS)), int(count)
    if not terms.low * count <= units <= terms.high * count:
        low, high = (bound / (1 << METRIC_BITS) for bound in (terms.low, terms.high))
        raise MetricFault(
            f"{where} gave the sum {total:g} for {count} values, and each lies from {low:g} to {high:g} by the run's "
            "terms: correct the function, or low and high in the run file"
        )
    return MeasuredMetric(units, count)


def _shown(given: object) -> str:
    """A number as it is, unless it is an endless one; of anything else its type."""
    small = isinstance(given, int) and abs(given) < 1 << 64
    return str(given) if small or isinstance(given, float | np.number) else type(given).__name__


def _number(given: object) -> float:
    """What was given as a float; infinite where it is none."""
    try:
        return float(given) if isinstance(given, int | float | np.integer | np.floating) else math.inf
    except (OverflowError, TypeError):
        return math.inf


class MetricTally:
    """Adds up what metrics give for the batches of one evaluation.

    Args:
        functions: the terms and the function of each metric.
    """

    def __init__(self, functions: Iterable[tuple[MetricTerms, Function]]) -> None:
        self._functions = tuple(functions)
        self.found = {terms.name: MeasuredMetric(0, 0) for terms, _ in self._functions}

    def add(self, batch: EvaluatedBatch) -> None:
        """Call every function with one batch.

        Raises:
            MetricFault: as `value_of`.
        """
        for terms, function in self._functions:
            self.found[terms.name] += value_of(terms, function, batch)
