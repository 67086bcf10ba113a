"""What boundaries measured of each commit, and which bound of the budget is reached."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from echelon.messages.exchange import CloseReason, Delta
from echelon.messages.manifest import Budget


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


class EvaluationSums:
    """What boundaries say that their devices measured, from merged deltas alone.

    Attributes:
        sums: Σ loss and Σ tokens of each boundary, by the commit that they evaluated.
    """

    def __init__(self, boundaries: int) -> None:
        self._boundaries = boundaries
        self.sums: dict[int, list[tuple[int, int]]] = {}

    def add(self, delta: Delta) -> None:
        """Add the evaluations in a merged delta's windows."""
        for window in delta.windows:
            if window.eval_tokens:
                sums = self.sums.setdefault(window.eval_commit, [(0, 0)] * self._boundaries)
                loss, tokens = sums[delta.boundary]
                sums[delta.boundary] = (loss + window.eval_loss, tokens + window.eval_tokens)

    def complete(self) -> tuple[Evaluation, ...]:
        """Commits (genesis is 0) that every boundary has evaluated, ascending."""
        return tuple(
            Evaluation(commit, sum(loss for loss, _ in sums), sum(tokens for _, tokens in sums))
            for commit, sums in sorted(self.sums.items())
            if all(tokens for _, tokens in sums)
        )

    def best(self) -> Evaluation | None:
        """The commit with the lowest validation loss so far, the earliest of equals."""
        return min(self.complete(), key=lambda found: (found.mean, found.commit), default=None)


def bound_reached(
    budget: Budget, evaluations: EvaluationSums, *, commits: int, tokens: int, elapsed_s: int
) -> CloseReason | None:
    """Which bound of the budget is reached, if one is.

    Args:
        budget: the bounds.
        evaluations: what was measured of each commit.
        commits: commits that were made.
        tokens: tokens that were trained on.
        elapsed_s: seconds since genesis.

    Returns:
        The first bound that is reached, in the order commits, tokens, seconds, patience.
    """
    if budget.commits and commits >= budget.commits:
        return CloseReason.COMMITS
    if budget.tokens and tokens >= budget.tokens:
        return CloseReason.TOKENS
    if budget.seconds and elapsed_s >= budget.seconds:
        return CloseReason.SECONDS
    if budget.patience:
        complete, best = evaluations.complete(), evaluations.best()
        if best is not None and complete[-1].commit - best.commit >= budget.patience:
            return CloseReason.PATIENCE
    return None
