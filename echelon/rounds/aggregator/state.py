"""An aggregator's snapshot: its state between two windows; what happens inside a window is read from the topics."""

from __future__ import annotations

from echelon.laws.ledger import Ledger, StoredLedger
from echelon.laws.snapshot import SnapshotList, SnapshotMap, StoredPace
from echelon.messages.adapter import F32
from echelon.messages.boundary import Base
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.attendance import StoredCheckIn
from echelon.rounds.aggregator.edge_assignment import StoredEdges
from echelon.rounds.aggregator.events import BoundaryCommit
from echelon.rounds.aggregator.merging import BoundaryAdapter
from echelon.rounds.aggregator.participation import Participation


class StoredCommit(SnapshotList, frozen=True, kw_only=True):
    """A commit that is not adopted yet; its adapter is float32[d]."""

    commit: int
    adapter: F32
    merged: list[int]
    pace: StoredPace
    tokens: int
    signed: bytes

    @classmethod
    def of(cls, held: BoundaryCommit) -> StoredCommit:
        """What is stored of a commit."""
        return cls(
            commit=held.commit,
            adapter=held.adapter,
            merged=list(held.merged),
            pace=StoredPace.of(held.pace),
            tokens=held.tokens,
            signed=held.signed,
        )

    def held(self) -> BoundaryCommit:
        """The commit again.

        Raises:
            ValueError: a number of its pace is out of its range.
        """
        return BoundaryCommit(
            commit=self.commit,
            adapter=self.adapter,
            merged=tuple(self.merged),
            pace=self.pace.pace(),
            tokens=self.tokens,
            signed=self.signed,
        )


class AggregatorSnapshot(SnapshotMap, frozen=True, kw_only=True):
    """What an aggregator stores.

    Attributes:
        anchor: of the ledger, float32[d]; None before genesis, as `ledger` and `pace`.
        ledger: the rest of it.
        version: the newest version.
        window: the one that is due.
        pace: of the anchor's commit.
        tokens: that were trained up to that commit.
        signed: the envelope of that commit.
        derived: the newest version that the gate derived, and its SHA-256.
        bases: the newest versions and their SHA-256.
        edges: None: the boundary has none.
        held: commits that are not adopted yet.
        refused: seq of refused deltas, and whether each is stale.
        checked_in: how far `checkin` was read.
        ended: whether the run is over.
        ready: check-ins that no cohort has used.
        there: devices that checked in and did not leave since.
        served: the newest window whose cohort each device was in.
    """

    anchor: F32 | None
    ledger: StoredLedger | None
    version: int
    window: int
    pace: StoredPace | None
    tokens: int
    signed: bytes
    derived: tuple[int, bytes]
    bases: list[tuple[int, bytes]]
    edges: StoredEdges | None
    held: list[StoredCommit]
    refused: list[tuple[int, bool]]
    checked_in: int
    ended: bool
    ready: list[StoredCheckIn]
    there: list[str]
    served: list[tuple[str, int]]

    @classmethod
    def of(
        cls, adapter: BoundaryAdapter, participation: Participation, *, window: int, ended: bool
    ) -> AggregatorSnapshot:
        """The state between two windows.

        Args:
            adapter: of the boundary.
            participation: what is known of devices and edges.
            window: the one that is due.
            ended: whether the run is over.
        """
        ledger, attendance, edges = adapter.ledger, participation.attendance, participation.edges
        return cls(
            anchor=None if ledger is None else ledger.anchor,
            ledger=None if ledger is None else ledger.facts(),
            version=adapter.version,
            window=window,
            pace=None if adapter.pace is None else StoredPace.of(adapter.pace),
            tokens=adapter.tokens,
            signed=adapter.signed,
            derived=participation.derived,
            bases=[(base.version, base.sha256) for base in adapter.bases],
            edges=None if edges is None else edges.facts(),
            held=[StoredCommit.of(held) for held in adapter.held],
            refused=list(adapter.refused.items()),
            checked_in=participation.checked_in,
            ended=ended,
            ready=[StoredCheckIn.of(device, check) for device, check in attendance.ready.items()],
            there=sorted(attendance.there),
            served=sorted(attendance.served.items()),
        )

    def fill_adapter(self, adapter: BoundaryAdapter) -> None:
        """Put the boundary's adapter back to where it was.

        Raises:
            ValueError: a number is out of its range.
        """
        if self.ledger is not None and self.anchor is not None:
            adapter.ledger = Ledger.of(self.anchor, self.ledger)
        adapter.version, adapter.tokens, adapter.signed = self.version, self.tokens, self.signed
        adapter.pace = None if self.pace is None else self.pace.pace()
        adapter.bases = tuple(Base(version=version, sha256=sha256) for version, sha256 in self.bases)
        adapter.held = [commit.held() for commit in self.held]
        adapter.refused = dict(self.refused)

    def fill_participation(self, participation: Participation) -> None:
        """Put what was known of devices and edges back to where it was."""
        participation.derived, participation.checked_in = self.derived, self.checked_in
        if participation.edges is not None and self.edges is not None:
            participation.edges.restore(self.edges)
        participation.attendance.restore(
            {DeviceId(stored.device): stored.check() for stored in self.ready},
            there={DeviceId(device) for device in self.there},
            served={DeviceId(device): window for device, window in self.served},
        )
