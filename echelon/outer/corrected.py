"""Direction correction: what a delta says against the direction of travel is damped, before deltas are summed.

Boundaries that fell behind, or that drifted apart, send deltas that partly undo what the others achieved. Methods
for heterogeneous low-communication training (HeLoCo) correct such a delta towards the momentum; gradient surgery
(Yu et al. 2020, "Gradient Surgery for Multi-Task Learning") takes the conflicting component out of it. What is here
is our own reconstruction of that idea, in a form that every machine computes alike; it is nobody's published
algorithm.

For delta i with integers k_i, reference u_i and strength γ in [0, 1]:

    p_i  = ⟨k_i, u_i⟩ / ⟨u_i, u_i⟩
    k_i' = k_i − γ·p_i·u_i   if p_i < 0,   else k_i

so the part of k_i that points against u_i shrinks by γ, and everything orthogonal to u_i stays. u_i is the outer
momentum, rounded to int32 times a power of two (`delta_codec.rounded`, one vector has one rounding); while there
is no momentum it is the weighted sum of the other deltas of the commit, Σ_{j≠i} w_j·2**e_j·k_j. Both dot products are
exact integers (`exact`), and their quotient is one correctly rounded division of integers.

With c_i as in `base`, g = Σ c_i·k_i' is then again a weighted sum of integer vectors, Σ c'_j·k_j + c'·u: the step
itself needs no other operation than before. γ = 0 changes no factor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import Integers, rounded
from echelon.laws.exact import dots
from echelon.messages.adapter import F64
from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import MILLION, OuterKind, OuterTerms
from echelon.outer.base import Block, CommitInputs, Plan, Scale
from echelon.outer.nesterov import Nesterov


@dataclass(frozen=True, slots=True)
class Correctable:
    """What the correction needs of a delta: its integers k, its exponent e, its integer weight w."""

    values: Integers
    exponent: int
    weight: int


class Corrected(Nesterov):
    """Nesterov's momentum over corrected deltas."""

    kind = OuterKind.CORRECTED

    def __init__(self, terms: OuterTerms, scale: Scale) -> None:
        """Read γ from the terms, too."""
        super().__init__(terms, scale)
        self._strength = np.float64(terms.correction_ppm) / np.float64(MILLION)

    def plan(self, inputs: CommitInputs) -> Plan:
        """Correct the factors of the deltas, then plan as Nesterov does."""
        items = [Correctable(delta.values, delta.exponent, delta.weight) for delta in inputs.deltas]
        factors, reference, along = corrected(items, inputs.factors, inputs.state.first, self._strength)
        plan = super().plan(replace(inputs, factors=factors))
        if reference is None:
            return plan
        towards, inner = reference, plan.move

        def move(block: Block) -> F64:
            np.copyto(block.spare, towards[block.at])
            block.g[:] += np.multiply(block.spare, along, out=block.spare)
            return inner(block)

        return replace(plan, move=move)


def corrected(
    deltas: Sequence[Correctable], factors: Sequence[np.float64], momentum: F64, strength: np.float64
) -> tuple[list[np.float64], Integers | None, np.float64]:
    """The factors c' of the module's docstring.

    Args:
        deltas: of one commit, in its order.
        factors: c_i, one for each delta.
        momentum: float64[d]; zeros: the others are the reference.
        strength: γ.

    Returns:
        c'_j for each delta; the rounded momentum, int32[d], if it is the reference; its factor c'.

    Raises:
        ProtocolError: the momentum is not finite, or too large to be rounded.
    """
    try:
        reference, _ = rounded(momentum, DeltaCodec.INT32)
    except CodecError as error:
        raise ProtocolError(f"the outer momentum is no direction: {error}") from error
    if reference.any():
        return _against_momentum(deltas, factors, reference, strength)
    return _against_the_others(deltas, factors, strength), None, np.float64(0.0)


def _against_momentum(
    deltas: Sequence[Correctable],
    factors: Sequence[np.float64],
    reference: Integers,
    strength: np.float64,
) -> tuple[list[np.float64], Integers | None, np.float64]:
    along = np.float64(0.0)
    length, *products = dots(reference, [reference, *(delta.values for delta in deltas)])
    for product, factor in zip(products, factors, strict=True):
        if product < 0:
            # Integers divided by integers: Python rounds the quotient once, correctly, on every machine.
            along = along - (factor * strength) * np.float64(product / length)
    return list(factors), (reference if along else None), along


def _against_the_others(
    deltas: Sequence[Correctable], factors: Sequence[np.float64], strength: np.float64
) -> list[np.float64]:
    finest = min(delta.exponent for delta in deltas)
    scales = [delta.weight << (delta.exponent - finest) for delta in deltas]
    count = len(deltas)
    products = [[0] * count for _ in deltas]
    for i in range(count):
        row = dots(deltas[i].values, [other.values for other in deltas[i:]])
        for j, value in enumerate(row, i):
            products[i][j] = products[j][i] = value
    after = list(factors)
    for i in range(count):
        others = [j for j in range(count) if j != i]
        product = sum(scales[j] * products[i][j] for j in others)
        if product >= 0:
            continue
        length = sum(scales[j] * scales[k] * products[j][k] for j in others for k in others)
        # p_i is per unit of u_i, whose integers carry the scales; length > 0, or the product would be 0.
        share = (factors[i] * strength) * np.float64(product / length)
        for j in others:
            scale = np.float64(math.ldexp(float(deltas[j].weight), deltas[j].exponent - finest))
            after[j] = after[j] - share * scale
    return after
