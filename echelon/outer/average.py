"""Average: the adapter moves by the weighted mean of the deltas, θ' = θ + lr·g."""

from __future__ import annotations

from echelon.messages.manifest import OuterKind
from echelon.outer.base import CommitInputs, OuterOptimiser, Plan


class Average(OuterOptimiser):
    """The weighted mean of the deltas, without a memory."""

    kind = OuterKind.AVERAGE
    carries_arrays = False

    def plan(self, inputs: CommitInputs) -> Plan:
        """Move along g."""
        return Plan(lambda block: block.g, self.lr, inputs.factors)
