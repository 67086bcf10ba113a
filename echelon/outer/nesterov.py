"""Nesterov's momentum, advanced once in N deltas.

    buffer += g
    once N deltas were counted since the last time:  m = β·m + buffer, buffer = 0, θ' = θ + lr·(β·m + g)
    otherwise:                                       θ' = θ + lr·g

N is the delay of the terms, M if that is 0. With at least N deltas in every commit this is Nesterov's momentum as in
DiLoCo (Douillard et al. 2023). With fewer it is delayed Nesterov (Liu et al. 2024, "Asynchronous Local-SGD Training
for Language Modeling", c = 0). Deltas over N count towards the next time.

Momentum is a memory in steps of the outer loop. Where the interval R·H between those changes during a run, the memory
is kept as long in local steps as it was at the start: with an interval of 2**k times the first one, rounded to an
integer k ("octaves"),

    β_k  = β**(2**k)                                  by squaring or square roots
    lr_k = lr · (1 − β_k) / (1 − β)                   the same displacement per local step in a steady state
    m    = m · 2**(k − k') · (1 − β_k') / (1 − β_k)   when k' becomes k: what a steady state at k would have built up

so k = 0 changes nothing. (Adaptive intervals without such a correction were reported to be slightly worse than a
fixed one: AutoLoCo, 2026. The formulas are ours.)
"""

from __future__ import annotations

import math

import numpy as np

from echelon.messages.adapter import F64
from echelon.messages.manifest import MILLION, OuterKind, OuterTerms
from echelon.outer.base import MOST_OCTAVES, Block, CommitInputs, OuterOptimiser, Plan, Scale


class Nesterov(OuterOptimiser):
    """Nesterov's momentum. Of the state, `first` is m and `second` is the buffer."""

    kind = OuterKind.NESTEROV

    def __init__(self, terms: OuterTerms, scale: Scale) -> None:
        """Read β and N from the terms."""
        super().__init__(terms, scale)
        self.delay = terms.delay or scale.boundaries
        self._beta = np.float64(terms.momentum_ppm) / np.float64(MILLION)

    def plan(self, inputs: CommitInputs) -> Plan:
        """Advance the momentum if N deltas were counted, and collect g otherwise."""
        state = inputs.state
        counted = state.counted + len(inputs.deltas)
        advance = counted >= self.delay
        octaves = max(-MOST_OCTAVES, min(MOST_OCTAVES, inputs.octaves))
        beta, rate, rescale = self._at_interval(octaves, state.octaves)

        def move(block: Block) -> F64:
            g, momentum, buffer = block.g, block.first, block.second
            np.add(state.second[block.at], g, out=buffer)
            built_up = state.first[block.at]
            if rescale is not None:
                built_up = np.multiply(built_up, rescale, out=momentum)
            if not advance:
                momentum[:] = built_up
                return g
            np.multiply(built_up, beta, out=momentum)
            momentum += buffer
            buffer.fill(0.0)
            return np.add(np.multiply(momentum, beta, out=block.spare), g, out=g)

        return Plan(move, rate, inputs.factors, counted=counted % self.delay, octaves=octaves)

    def _at_interval(self, octaves: int, before: int) -> tuple[np.float64, np.float64, np.float64 | None]:
        """β_k, lr_k and the factor that m is carried over by; None: m stays as it is."""
        if not (octaves or before):
            return self._beta, self.lr, None
        one = np.float64(1.0)
        beta = self._memory(octaves)
        rate = self.lr * ((one - beta) / (one - self._beta))
        built = (one - self._memory(before)) / (one - beta)
        return beta, rate, built * np.float64(math.ldexp(1.0, octaves - before))

    def _memory(self, octaves: int) -> np.float64:
        """β_k."""
        beta = self._beta
        for _ in range(abs(octaves)):
            beta = beta * beta if octaves > 0 else np.sqrt(beta)
        return np.float64(beta)
