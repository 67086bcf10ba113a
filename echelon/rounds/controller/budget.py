"""What boundaries measured of each commit, and which bound of the budget is reached."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Validation of one commit over all boundaries: Σ loss in nats × 2**16, Σ tokens."""

    commit: int
    loss: int
    tokens: int

    @property
    def mean(self) -> Fraction:
        """Nats per token, exact."""
        return Fraction(self.loss, self.tokens << 16)
