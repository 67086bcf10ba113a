"""What a derivation knows of `global`: an adoption counts only as far as the controller's own records go."""

from __future__ import annotations

from collections.abc import Container

from echelon.errors import ProtocolError
from echelon.messages.adapter import F32
from echelon.messages.boundary import Adopt
from echelon.rounds.gate.facts import CommitFacts, RefusedFacts

MAX_ADAPTERS = 4
"""Adapters of newer commits that are kept for adoptions to come; those that an adoption wants later are read again."""


class GlobalFacts:
    """Commits and refusals of `global`, as far as this boundary still needs them.

    Attributes:
        commits: commits from the anchor on, by number.
        refusals: refused deltas of the boundary, by seq.
        adapters: adapters of commits that may become the anchor, at most `MAX_ADAPTERS`.
    """

    def __init__(self) -> None:
        self.commits: dict[int, CommitFacts] = {}
        self.refusals: dict[int, RefusedFacts] = {}
        self.adapters: dict[int, F32] = {}

    def learn(self, facts: CommitFacts, adapter: F32 | None, *, anchor: int, started: bool) -> None:
        """Take a verified commit; commits come in order, genesis first.

        Args:
            facts: the commit.
            adapter: float32[d], its adapter; None if it was not read.
            anchor: the commit that the boundary stands on.
            started: whether the boundary has a version.
        """
        if facts.commit < anchor:
            return
        self.commits[facts.commit] = facts
        if adapter is not None and (facts.commit > anchor or not started):
            self.adapters[facts.commit] = adapter
            if len(self.adapters) > MAX_ADAPTERS:
                del self.adapters[max(self.adapters)]  # far ahead of the derivation: it asks for it again

    def refuse(self, seq: int, stale: bool) -> None:
        """Take a verified refusal of one of the boundary's deltas; it stands behind the newest commit learned."""
        self.refusals.setdefault(seq, RefusedFacts(stale, max(self.commits, default=0)))

    def confirms(self, message: Adopt, anchor: int, pending: Container[int]) -> bool:
        """Hold an adoption against the controller's records: what it says is not believed.

        Args:
            message: the adoption.
            anchor: the commit that the boundary stands on.
            pending: deltas that are not decided.

        Returns:
            Whether everything that it names was read. What does not exist stops the derivation for good.

        Raises:
            ProtocolError: the records say something else.
        """
        if message.commit not in self.commits:
            return False
        self._check_merged(message, anchor)
        if not self._refusals_read(message):
            return False
        self._check_told(message, pending)
        return True

    def _check_merged(self, message: Adopt, anchor: int) -> None:
        """Refuse an adoption that takes other deltas as merged than the commits up to its own merged.

        Raises:
            ProtocolError: it does; `anchor` is the commit that the boundary stands on.
        """
        # They are read in order: one that is missing before this one was believed by nobody here.
        merged = {
            seq
            for number, facts in self.commits.items()
            if anchor < number <= message.commit
            for seq in facts.merged
        }
        if set(message.merged) != merged:
            raise ProtocolError(
                f"{_adoption(message)} takes deltas {sorted(message.merged)} as merged; by `global` they are "
                f"{sorted(merged)}"
            )

    def _refusals_read(self, message: Adopt) -> bool:
        """Whether every refusal that an adoption names was read.

        Raises:
            ProtocolError: one is not of the kind that it is told as.
        """
        for seqs, stale in ((message.returned, True), (message.dropped, False)):
            for seq in seqs:
                if seq not in self.refusals:
                    return False
                if self.refusals[seq].stale is not stale:
                    raise ProtocolError(f"the boundary says of delta {seq} what the exchange did not say")
        return True

    def _check_told(self, message: Adopt, pending: Container[int]) -> None:
        """Refuse an adoption that is silent about a refusal which stands before its commit.

        Raises:
            ProtocolError: it is; `pending` has the deltas that are not decided.
        """
        due = {
            seq for seq, refusal in self.refusals.items() if refusal.after < message.commit and seq in pending
        }
        told = {*message.returned, *message.dropped}
        if due - told:
            raise ProtocolError(f"{_adoption(message)} passes over the refusal of delta {min(due - told)}")

    def forget(self, commit: int, pending: Container[int], next_seq: int) -> None:
        """Let go of what no adoption after this commit's can need.

        Args:
            commit: the anchor.
            pending: deltas that are not decided.
            next_seq: of the delta that is sealed next.
        """
        self.commits = {number: facts for number, facts in self.commits.items() if number >= commit}
        self.adapters = {number: adapter for number, adapter in self.adapters.items() if number > commit}
        self.refusals = {seq: one for seq, one in self.refusals.items() if seq in pending or seq >= next_seq}


def _adoption(message: Adopt) -> str:
    return f"the adoption of commit {message.commit}"
