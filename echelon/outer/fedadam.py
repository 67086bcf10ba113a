"""FedAdam: Adam over the mean of the deltas (Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2).

    m = β1·m + (1 − β1)·g
    v = β2·v + (1 − β2)·g·g
    θ' = θ + lr·(m / (√v + ε))

v starts at 0, and no bias is corrected.
"""

from __future__ import annotations

import numpy as np

from echelon.messages.adapter import F64
from echelon.messages.manifest import MILLION, OuterKind, OuterTerms
from echelon.outer.base import Block, CommitInputs, OuterOptimiser, Plan, Scale

_BILLION = 1_000_000_000


class FedAdam(OuterOptimiser):
    """Adam over the mean of the deltas. Of the state, `first` is m and `second` is v."""

    kind = OuterKind.FEDADAM

    def __init__(self, terms: OuterTerms, scale: Scale) -> None:
        """Read β1, β2 and ε from the terms."""
        super().__init__(terms, scale)
        self._beta1 = np.float64(terms.momentum_ppm) / np.float64(MILLION)
        self._beta2 = np.float64(terms.beta2_ppm) / np.float64(MILLION)
        self._epsilon = np.float64(terms.epsilon_ppb) / np.float64(_BILLION)

    def plan(self, inputs: CommitInputs) -> Plan:
        """Update both moments, and move along their quotient."""
        one, state = np.float64(1.0), inputs.state

        def move(block: Block) -> F64:
            g, spare, first, second = block.g, block.spare, block.first, block.second
            np.multiply(state.first[block.at], self._beta1, out=first)
            first += np.multiply(g, one - self._beta1, out=spare)
            np.multiply(state.second[block.at], self._beta2, out=second)
            np.multiply(g, one - self._beta2, out=spare)
            second += np.multiply(spare, g, out=spare)
            denominator = np.add(np.sqrt(second, out=spare), self._epsilon, out=spare)
            if self._epsilon > 0.0:
                return np.divide(first, denominator, out=g)
            # 0/0 where nothing ever moved and ε is 0: no step there.
            g.fill(0.0)
            return np.divide(first, denominator, out=g, where=denominator != 0.0)

        return Plan(move, self.lr, inputs.factors)
