"""The small part of an edge's snapshot. Its vectors and moments are stored apart, under their names."""

from __future__ import annotations

from echelon.laws.snapshot import SnapshotList, StoredPace
from echelon.messages.adapter import F32
from echelon.rounds.edge.kept import BoundaryVersion, KeptJobs
from echelon.rounds.edge.window_sum import EdgeWindow


class StoredEdgeWindow(SnapshotList, frozen=True, kw_only=True):
    """The window under way: the bytes of its cohort, and of the decisions that were taken, in their order."""

    cohort: bytes
    decisions: list[bytes]

    @classmethod
    def of(cls, window: EdgeWindow) -> StoredEdgeWindow:
        """The bytes of a window."""
        return cls(
            cohort=window.cohort.encode(), decisions=[decision.encode() for decision in window.decisions]
        )


class StoredVersion(SnapshotList, frozen=True, kw_only=True):
    """The newest version of the boundary adapter, without the adapter."""

    version: int
    sha256: bytes
    pace: StoredPace
    progress: float

    @classmethod
    def of(cls, number: int, version: BoundaryVersion) -> StoredVersion:
        """What is stored of a version beside its adapter."""
        pace = StoredPace.of(version.pace)
        return cls(version=number, sha256=version.sha256, pace=pace, progress=version.progress)

    def with_adapter(self, theta: F32) -> BoundaryVersion:
        """The version again.

        Args:
            theta: its adapter, float32[d].

        Raises:
            ValueError: a number of its pace is out of its range.
        """
        return BoundaryVersion(theta, self.sha256, self.pace.pace(), self.progress)


class StoredBase(SnapshotList, frozen=True, kw_only=True):
    """From which version and adapter a job trained."""

    job: int
    version: int
    sha256: bytes


class StoredJobs(SnapshotList, frozen=True, kw_only=True):
    """The jobs that are kept of one device, without their updates and moments."""

    device: str
    bases: list[StoredBase]

    @classmethod
    def of(cls, device: str, kept: KeptJobs) -> StoredJobs:
        """What is stored of a device beside its jobs' updates and moments."""
        bases = [
            StoredBase(job=job, version=version, sha256=sha256)
            for job, (version, sha256) in sorted(kept.bases.items())
        ]
        return cls(device=device, bases=bases)

    def jobs(self) -> KeptJobs:
        """The jobs again; updates and moments are filled in."""
        return KeptJobs(bases={base.job: (base.version, base.sha256) for base in self.bases})


class EdgeSnapshot(SnapshotList, frozen=True, kw_only=True):
    """What an edge stores.

    Attributes:
        ended: whether the run is over.
        window: every window before it has got its part, or gets none.
        under_way: the window under way.
        derived: version and SHA-256 of each adapter that the gate derived.
        newest: the newest version of the boundary adapter.
        kept: what is kept of each device.
    """

    ended: bool
    window: int
    under_way: StoredEdgeWindow | None
    derived: list[tuple[int, bytes]]
    newest: StoredVersion | None
    kept: list[StoredJobs]
