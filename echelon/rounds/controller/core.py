"""The controller's core: which deltas a commit merges, what the next adapter is, and when the run is over.

The controller runs it to make commits, an auditor runs it to check them: there is one function that derives a
commit and one, `apply`, that advances the version. Time does not enter: offers between two commits give the
same result in whatever order the boundaries' records arrive, so a replay that knows how far each delta log
was read (the heads in a commit) reaches the same state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable

import numpy as np

from echelon.errors import CodecError, ProtocolError, StateError
from echelon.laws.delta_codec import Integers
from echelon.laws.hashing import Sha256
from echelon.laws.rules import Allowed
from echelon.laws.transcript import Contradiction, Transcript
from echelon.messages.adapter import F32, adapter_digest
from echelon.messages.exchange import CloseReason, Commit, Delta, Pace, RefusalReason
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import stored
from echelon.outer.base import EncodableState, octaves_between
from echelon.pace.base import Decision, PaceController, PaceInputs
from echelon.pace.registry import pace_of
from echelon.rounds.controller import state
from echelon.rounds.controller.budget import Evaluation, EvaluationSums, bound_reached
from echelon.rounds.controller.deltas import Bytes, RejectedDelta, WaitingDelta, chosen, values_of
from echelon.rounds.controller.drafts import CommitDraft, CommitMismatch, DerivedCommit, check_commit
from echelon.rounds.controller.limits import coordinate_limit, examine_window
from echelon.rounds.controller.merging import Merging

_MOST = (1 << 63) - 1
DigestOf = Callable[[F32], bytes]
"""Gives SHA-256 of an adapter."""


class ControllerCore:
    """State: newest adapter, optimiser and pace state, deltas that wait, what each boundary has sent."""

    def __init__(
        self,
        manifest: RunManifest,
        adapter: F32,
        *,
        pace: PaceController | None = None,
        rules: Allowed | None = None,
        sha256: Sha256 | None = None,
    ) -> None:
        """Start at genesis.

        Args:
            manifest: the run's terms.
            adapter: float32[d], finite, d as in the manifest's layout.
            pace: the pace controller; the one that the manifest names if None.
            rules: users' own classes that may run, by name.
            sha256: who computes the digests of states; None: everything in this thread.

        Raises:
            RuleRefused: the manifest names a class that is not among them.
            ProtocolError: the adapter does not fit the layout, or the terms allow no step.
        """
        dim = manifest.adapter_layout().dim
        if adapter.shape != (dim,) or adapter.dtype != np.float32 or not np.isfinite(adapter).all():
            raise ProtocolError(f"the initial adapter is not {dim} finite float32 numbers, as in the layout")
        self.manifest, self.dim = manifest, dim
        self._merging = Merging(manifest, dim, rules=rules, sha256=sha256)
        self.form, self._table = self._merging.form, self._merging.table
        count = len(manifest.boundaries)
        self._limit = coordinate_limit(manifest)
        self.adapter: F32 = adapter
        self.newest = 0
        self.pace: Pace = manifest.pace
        self.tokens = 0
        self._intervals = {0: manifest.pace.steps * manifest.pace.windows}
        """R·H that each commit announced, as far back as a delta may depart from."""
        self._outer: EncodableState = self._merging.optimiser.initial(dim)
        self._controller: PaceController = pace_of(manifest, rules or {}) if pace is None else pace
        self._pending: dict[tuple[int, int], WaitingDelta] = {}
        self._known: list[list[bytes]] = [[] for _ in range(count)]
        self._windows: list[set[int]] = [set() for _ in range(count)]
        self._evaluations = EvaluationSums(count)
        self._seen = [0] * count
        """Manifests of `global` that each boundary's newest delta had read, of those that do not contradict it."""
        self.transcript = Transcript()
        """`global` as far as it is written: whoever writes or reads it appends to this. In no snapshot."""
        self._next: DerivedCommit | None = None

    # ---- offers ----------------------------------------

    @property
    def pending(self) -> tuple[tuple[int, int], ...]:
        """(boundary, seq) of deltas that wait for a commit, ascending."""
        return tuple(sorted(self._pending))

    def next_seq(self, boundary: int) -> int:
        """The sequence number that the boundary's next delta must have."""
        return len(self._known[boundary])

    def offer(
        self,
        delta: Delta,
        payload: Bytes,
        offset: int,
        *,
        payload_sha256: bytes | None = None,
        fault: RefusalReason | None = None,
    ) -> RefusalReason | None:
        """Take a delta whose signature, run and place in its log were verified; None: it waits for a commit.

        A repeat of the same delta is None and changes nothing. A number below the next one with other content
        is a fork, one above it a gap: neither uses a number up; every other refusal does.

        Args:
            delta: the manifest.
            payload: its bytes, as they stand in the log.
            offset: where the manifest stands in its topic.
            payload_sha256: their SHA-256, if the caller has computed it from these very bytes.
            fault: why its log says that it must not be merged, if it does; that is then the answer.

        Raises:
            ProtocolError: of another run, or of a boundary that the run manifest does not have.
        """
        if delta.run != self.manifest.run_id or delta.boundary >= len(self._known):
            raise ProtocolError(f"delta {delta.seq} of boundary {delta.boundary} is not of this run")
        known = self._known[delta.boundary]
        digest = hashlib.sha256(delta.encode()).digest()
        if delta.seq < len(known):
            return None if known[delta.seq] == digest else RefusalReason.FORK
        if delta.seq > len(known):
            return RefusalReason.BAD_SEQUENCE
        known.append(digest)
        self._next = None
        contradiction = self.contradiction(delta)
        if contradiction is None:
            self._seen[delta.boundary] = delta.seen_size
        reason = fault if contradiction is None or fault is not None else RefusalReason.UNKNOWN_BASE
        if reason is None:
            try:
                values = values_of(delta, payload, payload_sha256, self.form)
            except CodecError:
                reason = RefusalReason.BAD_PAYLOAD
            else:
                reason = self._examine(delta, values)
                if reason is None:
                    self._pending[delta.boundary, delta.seq] = WaitingDelta(
                        delta, bytes(payload), values, offset
                    )
        if reason is not RefusalReason.STALE:
            # A stale delta's windows go back to its boundary and come again; those of any other never may.
            self._windows[delta.boundary].update(window.window for window in delta.windows)
        return reason

    def contradiction(self, delta: Delta) -> Contradiction | None:
        """How a delta that is offered next contradicts `global` as it is written, or what its gate said before."""
        return self.transcript.contradiction(delta, self._seen[delta.boundary])

    def _examine(self, delta: Delta, values: Integers) -> RefusalReason | None:
        terms = self.manifest.exchange
        waiting = sum(1 for boundary, _ in self._pending if boundary == delta.boundary)
        if len(delta.windows) > terms.windows_max or waiting >= terms.pending_max:
            return RefusalReason.LIMIT
        peak = max(int(values.max()), -int(values.min()))
        if math.ldexp(peak, delta.exponent) > self._limit:
            return RefusalReason.LIMIT
        numbers = {window.window for window in delta.windows}
        if len(numbers) != len(delta.windows) or numbers & self._windows[delta.boundary]:
            return RefusalReason.BAD_SEQUENCE
        for window in delta.windows:
            reason = examine_window(
                window,
                self.manifest.secure,
                report_loss=terms.report_loss,
                metrics=self.manifest.metrics,
                rank_blocks=len(self.manifest.rank_blocks),
            )
            if reason is not None:
                return reason
        if delta.base_commit > self.newest or any(
            window.eval_tokens and window.eval_commit > self.newest for window in delta.windows
        ):
            return RefusalReason.UNKNOWN_BASE
        if not self._merging.factors.allowed(delta.base_commit, values):
            return RefusalReason.BAD_PAYLOAD
        return RefusalReason.STALE if self._staleness(delta) >= len(self._table) else None

    def _staleness(self, delta: Delta) -> int:
        return self.newest - delta.base_commit

    # ---- commits ----------------------------------------

    def due(self, deadline_passed: bool) -> bool:
        """Whether a commit should be made: enough deltas wait, or the deadline passed and one waits."""
        return len(self._pending) >= (1 if deadline_passed else self.manifest.exchange.deltas_per_commit)

    def commit(self, measured: tuple[int, ...] = ()) -> CommitDraft:
        """Derive the next commit from what waits. Pure: nothing changes until `apply`.

        Args:
            measured: inputs of the pace controller that no log has, as integers (times in microseconds).

        Raises:
            ProtocolError: nothing waits.
        """
        return self._derive(measured).draft

    def apply(self, commit: Commit, digest_of: DigestOf = adapter_digest) -> tuple[RejectedDelta, ...]:
        """Check every derived field of a commit and make it the newest version; nothing else does.

        `run`, `index`, `heads`, `payload.transfer` and `prefix` are about the logs and are checked where
        those are read.

        Returns:
            deltas that still waited and have now become too stale; each is owed a refusal record.

        Raises:
            CommitMismatch: a field is not what its inputs give; nothing has changed.
        """
        if commit.commit != self.newest + 1:
            raise CommitMismatch(commit.commit, "commit", commit.commit, self.newest + 1)
        if not self._pending:
            raise CommitMismatch(commit.commit, "merged", [(m.boundary, m.seq) for m in commit.merged], [])
        derived = self._derive(commit.measured, digest_of)
        draft = derived.draft
        check_commit(commit, draft)
        for key in derived.keys:
            self._evaluations.add(self._pending.pop(key).delta)
        self.adapter, self._outer, self._controller = draft.adapter, derived.outer, derived.pace
        self.newest, self.pace, self.tokens = draft.commit, draft.pace, draft.tokens
        self._intervals[self.newest] = self.pace.steps * self.pace.windows
        self._intervals.pop(self.newest - len(self._table), None)
        self._next = None
        return self._drop_stale()

    def _derive(self, measured: tuple[int, ...], digest_of: DigestOf = adapter_digest) -> DerivedCommit:
        if self._next is not None and self._next.draft.measured == measured:
            return self._next
        if not self._pending:
            raise ProtocolError("no delta waits: there is nothing to commit")
        keys = chosen(self._pending)
        taken = [self._merging.taken(self._pending[key], self.newest) for key in keys]
        octaves = self._octaves(one.delta.base_commit for one in taken)
        adapter, outer = self._merging.step(self.adapter, self._outer, taken, octaves)
        number = self.newest + 1
        tokens = self.tokens + sum(window.tokens for one in taken for window in one.delta.windows)
        inputs = PaceInputs(
            number,
            [one.observed(self.transcript) for one in taken],
            measured,
            self.manifest.budget.progress_ppm(number, tokens),
        )
        controller, pace = self._controller.observe(inputs)
        draft = CommitDraft(
            commit=number,
            merged=tuple(one.merged() for one in taken),
            pace=pace,
            measured=measured,
            tokens=min(tokens, _MOST),
            state_sha256=self._state_digest(outer, controller),
            adapter_sha256=digest_of(adapter),
            adapter=adapter,
        )
        self._next = DerivedCommit(draft, keys, outer, controller)
        return self._next

    def _state_digest(self, outer: EncodableState, controller: PaceController) -> bytes:
        if self.manifest.outer.brief_state:
            return hashlib.sha256(b"echelon state v2\x00" + outer.brief() + controller.digest()).digest()
        return hashlib.sha256(b"echelon state v1\x00" + outer.digest() + controller.digest()).digest()

    def _octaves(self, bases: Iterable[int]) -> int:
        """log2 of the interval that the newest of these bases announced, over that of the start; rounded."""
        if not self.manifest.outer.correct_interval:
            return 0
        first = self.manifest.pace.steps * self.manifest.pace.windows
        return octaves_between(self._intervals[max(bases)], first)

    def _drop_stale(self) -> tuple[RejectedDelta, ...]:
        dropped = []
        for boundary, seq in self.pending:
            item = self._pending[boundary, seq]
            if self._staleness(item.delta) >= len(self._table):
                del self._pending[boundary, seq]
                self._windows[boundary].difference_update(window.window for window in item.delta.windows)
                dropped.append(RejectedDelta(boundary, seq, item.offset, RefusalReason.STALE))
        return tuple(dropped)

    # ---- evaluation, budget ----------------------------------------

    def evaluations(self) -> tuple[Evaluation, ...]:
        """Commits (genesis is 0) that every boundary has evaluated, ascending; from merged deltas alone."""
        return self._evaluations.complete()

    def best(self) -> Evaluation | None:
        """The commit with the lowest validation loss so far, the earliest of equals."""
        return self._evaluations.best()

    @property
    def decision(self) -> Decision:
        """What the pace controller saw and did at the newest commit."""
        return self._controller.decision

    def finished(self, elapsed_s: int = 0) -> CloseReason | None:
        """Which bound of the budget is reached, if one is.

        Args:
            elapsed_s: seconds since genesis; the one bound that no log can prove.
        """
        budget, sums = self.manifest.budget, self._evaluations
        return bound_reached(budget, sums, commits=self.newest, tokens=self.tokens, elapsed_s=elapsed_s)

    # ---- storage ----------------------------------------

    def snapshot(self) -> bytes:
        """The whole state: canonical msgpack with raw little-endian arrays, and its SHA-256 in front."""
        return b"".join(self.snapshot_parts())

    def snapshot_parts(self) -> list[bytes | memoryview]:
        """The bytes of `snapshot` as parts; vectors are views."""
        return state.sealed(
            state.ControllerSnapshot(
                terms=hashlib.sha256(self.manifest.canonical()).digest(),
                newest=self.newest,
                tokens=self.tokens,
                pace=state.StoredNamedPace.of(self.pace),
                intervals=sorted(self._intervals.items()),
                adapter=self.adapter,
                outer=self._outer.encode(),
                controller=self._controller.encode(),
                waiting=[state.StoredDelta.of(item) for _, item in sorted(self._pending.items())],
                known=[b"".join(known) for known in self._known],
                windows=[state.numbers_to_store(windows) for windows in self._windows],
                seen=list(self._seen),
                evaluations=state.evaluations_to_store(self._evaluations),
            )
        )

    @classmethod
    def restore(
        cls,
        manifest: RunManifest,
        data: bytes,
        *,
        pace: PaceController | None = None,
        rules: Allowed | None = None,
        transcript: Transcript | None = None,
        sha256: Sha256 | None = None,
    ) -> ControllerCore:
        """The core whose `snapshot` this is.

        Args:
            manifest: the run's terms.
            data: the snapshot.
            pace: as of the constructor.
            rules: likewise.
            transcript: `global` as it was read again; it is in no snapshot.
            sha256: as of the constructor.

        Raises:
            StateError: damaged, or of a run with other terms.
        """
        with stored("the controller's state"):
            held = state.held_in(data)
            if held.terms != hashlib.sha256(manifest.canonical()).digest():
                raise StateError(
                    "the controller's state is of a run with other terms: point it to this run's folder"
                )
            core = cls(manifest, held.adapter.astype(np.float32), pace=pace, rules=rules, sha256=sha256)
            if transcript is not None:
                core.transcript = transcript
            core.newest, core.tokens, core.pace = held.newest, held.tokens, held.pace.pace()
            core._intervals = dict(held.intervals)
            core._outer = core._merging.optimiser.decode(held.outer, core.dim)
            core._controller = core._controller.decode(held.controller)
            for one in held.waiting:
                waiting = one.waiting(core.form)
                core._pending[waiting.delta.boundary, waiting.delta.seq] = waiting
            core._known = [state.digests_of(joined) for joined in held.known]
            core._seen = list(held.seen)
            core._windows = [state.numbers_of(numbers) for numbers in held.windows]
            core._evaluations.sums = {one.commit: state.evaluated(one) for one in held.evaluations}
        return core
