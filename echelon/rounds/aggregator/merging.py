"""The boundary's adapter: its ledger, its version, and the exchange's decisions about its deltas.

Windows move the adapter, deltas carry it to the exchange, commits bring it back. Whatever changes it leads to the next
version, and no other module raises the version.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import numpy as np

from echelon.errors import ProtocolError, StateError
from echelon.laws.delta_form import DeltaForm
from echelon.laws.ledger import Ledger, RoundedDelta, WindowMean
from echelon.messages.boundary import Adopt, Base, Model, SealedDelta, Sealing, Version, Window
from echelon.messages.exchange import Pace, Payload
from echelon.messages.manifest import RunManifest
from echelon.outer.alternating import Factors
from echelon.rounds.aggregator.events import BoundaryCommit, RefusedDelta
from echelon.rounds.aggregator.recovery import History
from echelon.rounds.effects import Effect, Publish, note


@dataclass
class BoundaryAdapter:
    """The state.

    Args:
        manifest: the run's.
        boundary: the boundary's name.

    Attributes:
        ledger: None before genesis.
        version: the newest version that was reached; -1 before genesis.
        pace: of the anchor's commit.
        tokens: that were trained up to the anchor's commit, in the whole run.
        signed: the envelope of the anchor's commit, for devices to check.
        bases: digests of the newest published versions.
        held: commits that are not adopted yet: at most one, the newest, with all that was merged.
        refused: refused deltas by seq, and whether each is stale; not adopted yet.
    """

    manifest: RunManifest
    boundary: str
    ledger: Ledger | None = None
    version: int = -1
    pace: Pace | None = None
    tokens: int = 0
    signed: bytes = b""
    bases: tuple[Base, ...] = ()
    held: list[BoundaryCommit] = field(default_factory=list)
    refused: dict[int, bool] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._factors = Factors(self.manifest)

    # ---- what holds now --------------------------------------------------------------------------

    @property
    def digests(self) -> dict[int, bytes]:
        """SHA-256 of the newest published versions."""
        return {base.version: base.sha256 for base in self.bases}

    @property
    def waiting(self) -> bool:
        """Whether the boundary stands at a barrier: a delta is undecided, and the run allows no overlap."""
        return self.ledger is not None and bool(self.ledger.pending) and not self.manifest.exchange.overlap

    @property
    def paused(self) -> bool:
        """Whether the ledger can take no further window before a commit arrives."""
        if self.ledger is None or self.waiting:
            return True
        terms = self.manifest.exchange
        ahead = terms.windows_max // (terms.pending_max + 1)
        full = len(self.ledger.pending) >= terms.pending_max and len(self.ledger.windows) >= ahead
        # Whatever may come back as stale must fit into one delta.
        return full or self.ledger.outstanding >= terms.windows_max

    # ---- after the state file was lost -----------------------------------------------------------

    def take_over(self, history: History) -> None:
        """Take over what was derived from the topics."""
        ledger = history.ledger
        newest = next(commit for commit in history.commits if commit.commit == ledger.commit)
        ledger.anchor = newest.adapter
        self.ledger, self.version, self.bases = ledger, history.version, history.bases
        self.pace, self.tokens, self.signed = newest.pace, newest.tokens, newest.signed
        self.held = [commit for commit in history.commits if commit.commit > ledger.commit]
        self.refused = {seq: stale for seq, stale in history.refused.items() if seq in ledger.pending}

    def publish_again(self, window: int) -> list[Effect]:
        """Publish the newest version, of which the topics do not say enough."""
        self.bases = tuple(base for base in self.bases if base.version != self.version)
        return self.publish(window, anchored=True)

    # ---- decisions of the exchange ---------------------------------------------------------------

    def begin(self, genesis: BoundaryCommit, window: int) -> list[Effect]:
        """Take genesis as the anchor, and publish it as version 0.

        Raises:
            ProtocolError: it is another commit.
        """
        if genesis.commit != 0:
            raise ProtocolError(f"commit {genesis.commit} came before genesis")
        self.ledger = Ledger(genesis.adapter)
        self.pace, self.signed = genesis.pace, genesis.signed
        return self._reach(window, [], anchored=True)

    def hold(self, commit: BoundaryCommit) -> bool:
        """Keep a commit until it can be adopted. Whether it is a new one."""
        if self.ledger is None:
            raise StateError(f"commit {commit.commit} cannot be kept before genesis")
        newest = self.held[-1].commit if self.held else self.ledger.commit
        if commit.commit <= newest:
            return False
        # However many commits come before the window closes, one adapter is kept: the newest, with all that was merged.
        merged = tuple(seq for held in (*self.held, commit) for seq in held.merged)
        self.held = [replace(commit, merged=merged)]
        return True

    def refuse(self, event: RefusedDelta) -> bool:
        """Keep a refusal until it can be adopted. Whether its delta is pending."""
        if self.ledger is None or event.seq not in self.ledger.pending:
            return False
        self.refused[event.seq] = event.stale
        return True

    # ---- steps to the next version ---------------------------------------------------------------

    def add_window(self, closed: Window, mean: WindowMean) -> list[Effect]:
        """Take a window into the ledger; seal a delta and adopt a commit where they are due.

        Args:
            closed: the window's record; its version is the next one.
            mean: what the window moves, of d coordinates.
        """
        if self.ledger is None or closed.version != self.version + 1:
            raise StateError(f"window {closed.window} does not lead to the version after {self.version}")
        window = closed.window
        self.ledger.add_window(closed.summary, mean)
        sealed = self._seal_when_due(window)
        adopted = self._adopt_held(window)
        # What came back may fill a delta, and no other window need come.
        return self._reach(
            window, [Publish("control", closed, window), *sealed, *adopted], anchored=bool(adopted)
        )

    def adopt(self, window: int) -> list[Effect]:
        """Adopt what the exchange decided, while no window is under way; nothing where it decided nothing."""
        adopted = self._adopt_held(window)
        return self._reach(window, adopted, anchored=True) if adopted else []

    def leave_version(self, window: int) -> list[Effect]:
        """Move on to the next version without a window: adopt what the exchange decided, or nothing.

        Where anything was adopted the anchor is sent, too: a refused delta that is dropped takes the adapter further
        from the version before than one window may.
        """
        if self.ledger is None:
            raise StateError("there is no version to leave before genesis")
        adopted = self._adopt_held(window)
        if adopted:
            return self._reach(window, adopted, anchored=True)
        bare = Adopt(commit=self.ledger.commit, version=self.version + 1, merged=(), returned=(), dropped=())
        return self._reach(window, [Publish("control", bare, window)], anchored=False)

    def _reach(self, window: int, effects: list[Effect], *, anchored: bool) -> list[Effect]:
        """Raise the version by one, and publish it: the only place that does."""
        self.version += 1
        return [*effects, *self._seal_when_due(window), *self.publish(window, anchored=anchored)]

    def _adopt_held(self, window: int) -> list[Effect]:
        """Take over everything that was decided since the last time, as one step that leads to the next version."""
        ledger = self.ledger
        if ledger is None or not (self.held or self.refused):
            return []
        merged = tuple(sorted(seq for commit in self.held for seq in commit.merged))
        refused = {seq: stale for seq, stale in self.refused.items() if seq in ledger.pending}
        returned = tuple(sorted(seq for seq, stale in refused.items() if stale))
        dropped = tuple(sorted(seq for seq, stale in refused.items() if not stale))
        adapter, commit = ledger.anchor, ledger.commit
        if self.held:
            newest = self.held[-1]
            adapter, commit = newest.adapter, newest.commit
            self.pace, self.tokens, self.signed = newest.pace, newest.tokens, newest.signed
        ledger.adopt(commit, adapter, merged=merged, returned=returned, dropped=dropped)
        self.held, self.refused = [], {}
        record = Adopt(
            commit=commit, version=self.version + 1, merged=merged, returned=returned, dropped=dropped
        )
        return [Publish("control", record, window), note("adopted", commit=commit, merged=len(merged))]

    # ---- what is published -----------------------------------------------------------------------

    def _seal_when_due(self, window: int) -> list[Effect]:
        if self.ledger is None or self.pace is None:
            return []
        exchange = self.manifest.exchange
        if len(self.ledger.windows) < self.pace.windows or len(self.ledger.pending) >= exchange.pending_max:
            return []
        form = DeltaForm.of(exchange, self.ledger.anchor.size)
        sealed = self.ledger.seal(form, self._factors.moving(self.ledger.commit))
        digest = hashlib.sha256(sealed.payload).digest()
        return [
            Publish("control", Sealing(seq=sealed.seq, payload_sha256=digest), window),
            self.send(sealed, window),
            note("sealed", seq=sealed.seq, windows=len(sealed.windows), bytes=len(sealed.payload)),
        ]

    def send(self, sealed: RoundedDelta, window: int) -> Publish:
        """A delta on its way to the exchange."""
        message = SealedDelta(
            seq=sealed.seq,
            base_commit=sealed.base_commit,
            windows=sealed.windows,
            codec=sealed.codec,
            exponent=sealed.exponent,
            payload=Payload.of(sealed.payload, b"delta %d %s" % (sealed.seq, self.boundary.encode())),
        )
        return Publish("delta", message, window, sealed.payload)

    def publish(self, window: int, *, anchored: bool) -> list[Effect]:
        """Publish the adapter as the newest version: its digest on `control`, then itself.

        Args:
            window: the one that is due.
            anchored: whether the anchor is sent beside it, because it is a new one.
        """
        if self.ledger is None or self.pace is None:
            raise StateError("no adapter to publish before genesis")
        dim = self.ledger.anchor.size
        vectors = np.empty(2 * dim if anchored else dim, "<f4")
        self.ledger.write_theta(vectors[:dim], self.manifest.exchange)
        if anchored:
            vectors[dim:] = self.ledger.anchor
        payload = vectors.data.cast("B").toreadonly()
        digest = hashlib.sha256(payload[: 4 * dim]).digest()
        horizon = len(self.manifest.secure.staleness)
        self.bases = (*self.bases, Base(version=self.version, sha256=digest))[-horizon:]
        message = Model(
            version=self.version,
            commit=self.ledger.commit,
            sha256=digest,
            anchored=anchored,
            pace=self.pace,
            progress_ppm=self.manifest.budget.progress_ppm(self.ledger.commit, self.tokens),
            payload=Payload.of(payload, b"model %d" % self.version),
            waiting=self.waiting,
            signed=self.signed if anchored else b"",
        )
        reached = Version(version=self.version, commit=self.ledger.commit, sha256=digest)
        return [Publish("control", reached, window), Publish("model", message, window, payload)]
