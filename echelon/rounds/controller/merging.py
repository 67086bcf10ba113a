"""What one commit computes: how the deltas that it merges are weighed, and the adapter that they give.

The controller and every auditor derive commits by it (`core.py`), and gates the adapters of relayed commits
(`rounds/gate/relayed.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from echelon.laws.delta_form import DeltaForm
from echelon.laws.hashing import Sha256
from echelon.laws.rules import Allowed
from echelon.messages.adapter import F32
from echelon.messages.manifest import RunManifest, Weighting
from echelon.outer.alternating import Alternating, Factors
from echelon.outer.base import EncodableState, Outer
from echelon.outer.registry import outer_of
from echelon.rounds.controller.deltas import TakenDelta, WaitingDelta


class Merging:
    """The outer step of a run, and how it weighs deltas. It has no state of its own.

    Attributes:
        form: of the run's deltas.
        table: s(τ) as integers, by τ in commits; a delta as old as the table is long is too stale.
        factors: which coordinates move after which commit.
        optimiser: the outer step.
    """

    def __init__(
        self,
        manifest: RunManifest,
        dim: int,
        *,
        rules: Allowed | None = None,
        sha256: Sha256 | None = None,
    ) -> None:
        """Build it from a run's terms.

        Args:
            manifest: the run's terms.
            dim: d, coordinates of the adapter.
            rules: users' own classes that may run, by name.
            sha256: who computes the digests of states; None: everything in this thread.

        Raises:
            RuleRefused: the manifest names a class that is not among them.
            ProtocolError: the terms allow no step.
        """
        self.form = DeltaForm.of(manifest.exchange, dim)
        self.table = manifest.exchange.staleness
        self.factors = Factors(manifest)
        self._by_tokens = manifest.outer.weighting is Weighting.TOKENS
        # With alternating factors the state's digest is over two states, and none of a single one is asked for.
        whole = not self.factors.masks and not manifest.outer.brief_state
        ahead = (sha256 or hashlib.sha256) if whole else None
        self.optimiser: Outer = outer_of(manifest, self.table[0], rules or {}, ahead)
        if self.factors.masks:
            self.optimiser = Alternating(self.optimiser, self.factors)

    def taken(self, waiting: WaitingDelta, newest: int) -> TakenDelta:
        """Weigh a delta that is not too stale.

        Args:
            waiting: the delta.
            newest: number of the commit that stands before the one that merges it.
        """
        staleness = newest - waiting.delta.base_commit
        count = sum(window.n for window in waiting.delta.windows) if self._by_tokens else 1
        return TakenDelta(waiting, staleness, count, count * self.table[staleness])

    def step(
        self, adapter: F32, state: EncodableState, taken: Sequence[TakenDelta], octaves: int
    ) -> tuple[F32, EncodableState]:
        """Make the next adapter.

        Args:
            adapter: float32[d], the newest.
            state: of the outer step.
            taken: the deltas that are merged, ascending by (boundary, seq).
            octaves: log2 of the interval that they were trained at over the first one, rounded.

        Returns:
            The next adapter, float32[d], and the state after it.

        Raises:
            ProtocolError: the commit cannot be made.
        """
        return self.optimiser.step(adapter, state, [one.weighted() for one in taken], octaves)
