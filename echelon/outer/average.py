"""Average: the adapter moves by the weighted mean of the deltas, θ' = θ + lr·g."""

from __future__ import annotations

import numpy as np

from echelon.messages.adapter import F64
from echelon.messages.manifest import OuterKind
from echelon.outer.base import CommitInputs, Move, OuterOptimiser, Plan

_NOTHING: F64 = np.zeros(0, np.float64)


class Average(OuterOptimiser):
    """The weighted mean of the deltas, without a memory."""

    kind = OuterKind.AVERAGE
    carries_arrays = False

    def plan(self, inputs: CommitInputs) -> Plan:
        """Move along g."""
        return Plan(lambda _, g: Move(g, _NOTHING, _NOTHING), self.lr, inputs.factors)
