"""Alternating factors: of W + s·B·A one factor moves at a time (RoLoRA, arXiv 2409.02346), read off commit numbers.

The mean of products B_i·A_i is not the product of the means, so averaging both factors mixes what no device trained.
While all devices hold one A and train B alone, or the other way round, averaging is exact. Which factor that is must
be the same for everybody and derivable later, so it follows from a commit's number: what is trained from commit c
moves B if c is even and A if c is odd (B first: it starts at zero, and while it is zero A has no gradient).

Late updates come from the other phase. They are neither dropped nor sent where they do not belong:

- A boundary delta that departs from commit c carries the coordinates of c's factor alone; all others are exactly
  zero. What its windows moved the other factor by (updates of devices that had trained from a commit of the other
  phase) stays in the remainder r, as rounding residues do, and is in the boundary's next delta of that phase.
- A commit may merge deltas that departed from commits of both phases. Each factor has an outer optimiser of its own
  and takes the deltas of its phase, weighted by their staleness; a factor without deltas does not move at all,
  neither do its momentum and its counter. So a late delta moves the factor that it was trained on, damped, and only
  then is a product averaged that no device held.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError, ProtocolError
from echelon.messages.adapter import F32, Factor, factor_mask
from echelon.messages.manifest import FactorRule, RunManifest
from echelon.outer.base import EncodableState, Outer, WeightedDelta

Mask = NDArray[np.bool_]


def factor_of(commit: int) -> Factor:
    """What is trained from this commit: B if it is even, A if it is odd."""
    return Factor.A if commit % 2 else Factor.B


class Factors:
    """Which coordinates belong to which factor, for a run; without alternation everything moves always."""

    def __init__(self, manifest: RunManifest) -> None:
        """Read the manifest's rule.

        Raises:
            ProtocolError: factors are to alternate, and the layout does not have both.
        """
        self.masks: dict[Factor, Mask] = {}
        if manifest.factors is FactorRule.ALTERNATING:
            layout = manifest.adapter_layout()
            self.masks = {factor: factor_mask(layout, factor) for factor in Factor}
            missing = [factor.value for factor, mask in self.masks.items() if not mask.any()]
            if missing:
                raise ProtocolError(f"factors cannot alternate: the adapter has no factor {missing[0]}")

    def trained(self, commit: int) -> Factor | None:
        """The one factor that is trained from a commit; None: both."""
        return factor_of(commit) if self.masks else None

    def moving(self, commit: int) -> Mask | None:
        """bool[d]: coordinates that a delta which departs from this commit may move; None: all."""
        return self.masks[factor_of(commit)] if self.masks else None

    def allowed(self, commit: int, values: NDArray[Any]) -> bool:
        """Whether a delta that departs from this commit is zero wherever it must be."""
        mask = self.moving(commit)
        return mask is None or not values[~mask].any()


@dataclass(frozen=True, slots=True)
class PairState:
    """The states of both factors' outer optimisers."""

    states: tuple[EncodableState, EncodableState]

    def encode(self) -> bytes:
        """A header, then the state of A with its length before it, and that of B."""
        first, second = (state.encode() for state in self.states)
        return b"echelon factors v1\x00" + len(first).to_bytes(8, "big") + first + second

    def brief(self) -> bytes:
        """SHA-256 of what both states say briefly, 32 bytes."""
        parts = b"".join(state.brief() for state in self.states)
        return hashlib.sha256(b"echelon brief factors v1\x00" + parts).digest()

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


@dataclass(frozen=True)
class Alternating:
    """An outer step for each factor: `inner` is used for both, with a state each."""

    inner: Outer
    factors: Factors

    def _sizes(self) -> list[int]:
        return [int(np.count_nonzero(self.factors.masks[factor])) for factor in Factor]

    def initial(self, dim: int) -> PairState:
        """Both initial states."""
        first, second = (self.inner.initial(size) for size in self._sizes())
        return PairState((first, second))

    def decode(self, data: bytes, dim: int) -> PairState:
        """Read what `encode` wrote. Raises `CodecError` for anything else."""
        head = b"echelon factors v1\x00"
        at = len(head) + 8
        cut = at + int.from_bytes(data[len(head) : at], "big")
        if data[: len(head)] != head or len(data) < cut:
            raise CodecError("an outer state that is not one of alternating factors")
        first, second = self._sizes()
        return PairState((self.inner.decode(data[at:cut], first), self.inner.decode(data[cut:], second)))

    def step(
        self, theta: F32, state: Any, deltas: Sequence[WeightedDelta], octaves: int
    ) -> tuple[F32, PairState]:
        """Make one commit: each factor takes the deltas that departed from a commit of its phase.

        Args:
            theta: float32[d], the newest adapter.
            state: of both factors.
            deltas: at least one, ascending by (boundary, seq).
            octaves: log2 of the interval that the deltas were trained at over the first one, rounded.

        Returns:
            θ', float32[d], and the state of both factors after the commit.

        Raises:
            ProtocolError: no deltas, or as the inner step.
        """
        if not isinstance(state, PairState) or not deltas:
            raise ProtocolError("a commit of alternating factors needs deltas and a state of both factors")
        after = theta.copy()
        states = list(state.states)
        for place, factor in enumerate(Factor):
            mine = [delta for delta in deltas if factor_of(delta.base) is factor]
            if not mine:
                continue
            mask = self.factors.masks[factor]
            parts = [replace(delta, values=delta.values[mask]) for delta in mine]
            after[mask], states[place] = self.inner.step(theta[mask], states[place], parts, octaves)
        return after, PairState((states[0], states[1]))
