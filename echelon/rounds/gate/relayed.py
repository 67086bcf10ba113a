"""The adapters of relayed commits, as a gate derives them: the merged deltas, and the arithmetic of the controller.

A relayed commit says which deltas it merged, how it weighed them, and the digest of the adapter. It is believed as far
as the deltas give that adapter. What else it says (pace, tokens, the state's digest) is left to the auditors, as it is
of commits that bring their adapter. The outer step is the average, which has no state: so the adapter before it and the
merged deltas are all that a commit depends on, and a gate may begin behind any commit.
"""

from __future__ import annotations

from collections.abc import Sequence

from echelon.errors import CodecError, ProtocolError
from echelon.messages.adapter import F32
from echelon.messages.exchange import Commit, Delta, Merged, Payload
from echelon.messages.manifest import RunManifest
from echelon.rounds.controller.deltas import TakenDelta, WaitingDelta, values_of
from echelon.rounds.controller.drafts import CommitMismatch
from echelon.rounds.controller.merging import Merging

DeltaKey = tuple[int, int]
"""A boundary's index in the run manifest, and the sequence number of a delta of it."""


class RelayedAdapters:
    """Derives one adapter after the other.

    Args:
        manifest: the run's terms.
        dim: d, coordinates of the adapter.
        own: index of the gate's boundary: its own deltas it has without being asked to keep to `pending_max`.
    """

    def __init__(self, manifest: RunManifest, dim: int, own: int) -> None:
        self._own, self._most = own, manifest.exchange.pending_max
        self._names = [terms.name for terms in manifest.boundaries]
        self._merging = Merging(manifest, dim)
        self._state = self._merging.optimiser.initial(dim)
        self._waiting: list[dict[int, tuple[Delta, bytes]]] = [{} for _ in self._names]
        """Of each boundary: its deltas that no commit has merged, by number."""
        self._decided: list[set[int]] = [set() for _ in self._names]
        self.commit = -1
        """The newest commit whose adapter is known; -1: none is."""
        self.adapter: F32 | None = None
        """Its adapter, float32[d]."""

    # ---- what was read ----------------------------------------

    def begin(self, commit: int, adapter: F32) -> None:
        """Go on from a commit (0: genesis) whose adapter, float32[d], was compared with the digest in its record."""
        self.commit, self.adapter = commit, adapter

    def offer(self, delta: Delta, payload: bytes) -> None:
        """Take a delta that stands on its log.

        Args:
            delta: its manifest, verified.
            payload: its bytes.

        Raises:
            ProtocolError: more deltas of its boundary wait than the controller may leave undecided.
        """
        if delta.seq in self._decided[delta.boundary]:
            return
        waiting = self._waiting[delta.boundary]
        waiting[delta.seq] = delta, payload
        if delta.boundary != self._own and len(waiting) > self._most:
            raise ProtocolError(
                f"{len(waiting)} deltas of {self._names[delta.boundary]} are neither merged nor refused, by the run's "
                f"terms at most {self._most} wait: the controller has passed over a delta"
            )

    def decide(self, keys: Sequence[DeltaKey]) -> None:
        """These deltas were merged or refused: no later commit merges them."""
        for boundary, seq in keys:
            self._waiting[boundary].pop(seq, None)
            self._decided[boundary].add(seq)

    # ---- commits ----------------------------------------

    def lacking(self, commit: Commit) -> list[DeltaKey]:
        """The deltas that a commit merges and that were not offered, ascending."""
        return [key for key in _merged(commit) if key[1] not in self._waiting[key[0]]]

    def derive(self, commit: Commit) -> F32:
        """Derive a commit's adapter, and go on from it.

        Args:
            commit: verified; the next one, of which nothing is `lacking`.

        Returns:
            The adapter, float32[d].

        Raises:
            CommitMismatch: it says something else than its deltas give; nothing has changed.
            ProtocolError: it is not the next one, or cannot be made of what was offered.
        """
        if commit.commit != self.commit + 1 or self.adapter is None:
            raise ProtocolError(
                f"commit {commit.commit} follows commit {self.commit}: what is between is missing"
            )
        if lacking := self.lacking(commit):
            boundary, seq = lacking[0]
            raise ProtocolError(
                f"commit {commit.commit} merges delta {seq} of boundary {boundary}, which is not on its log, or was "
                "decided before"
            )
        keys = _merged(commit)
        taken = [self._taken(commit.commit, key) for key in keys]
        merged: tuple[Merged, ...] = tuple(one.merged() for one in taken)
        if commit.merged != merged:
            raise CommitMismatch(commit.commit, "merged", commit.merged, merged)
        adapter, _ = self._merging.step(self.adapter, self._state, taken, 0)
        described = Payload.of(adapter.astype("<f4", copy=False).data.cast("B"), b"commit %d" % commit.commit)
        for field, written, derived in (
            ("adapter_sha256", commit.adapter_sha256, described.sha256),
            ("payload", commit.payload, described),
        ):
            if written != derived:
                raise CommitMismatch(commit.commit, field, written, derived)
        self.decide(keys)
        self.begin(commit.commit, adapter)
        return adapter

    def _taken(self, commit: int, key: DeltaKey) -> TakenDelta:
        delta, payload = self._waiting[key[0]][key[1]]
        where = f"commit {commit} merges delta {delta.seq} of {self._names[delta.boundary]}"
        try:
            # A log has compared the payload with the digest in the delta's manifest.
            values = values_of(delta, payload, delta.payload.sha256, self._merging.form)
        except CodecError as error:
            raise ProtocolError(f"{where}, whose payload is none: {error}") from error
        if not 0 <= self.commit - delta.base_commit < len(self._merging.table):
            raise ProtocolError(
                f"{where}, which departed from commit {delta.base_commit}: too stale, or not made yet"
            )
        return self._merging.taken(WaitingDelta(delta, payload, values, 0), self.commit)


def _merged(commit: Commit) -> list[DeltaKey]:
    """The deltas that a commit merges, ascending; none twice."""
    return sorted({(one.boundary, one.seq) for one in commit.merged})
