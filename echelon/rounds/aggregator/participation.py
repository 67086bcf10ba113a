"""The participation window: who has checked in, which devices may train from what, and who becomes the cohort."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from echelon.errors import ProtocolError
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import Base, Cohort, Derived, Leave, Ready, WindowOpen
from echelon.messages.manifest import RunManifest
from echelon.messages.split import Trips
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.admission import Admission
from echelon.rounds.aggregator.attendance import Attendance, CheckIn
from echelon.rounds.aggregator.edge_assignment import Edges
from echelon.rounds.aggregator.offers import check_base, check_work, shards_fit
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.aggregator.trust_standings import quorum
from echelon.rounds.aggregator.window import Selection, cohort_of, select
from echelon.rounds.effects import Effect
from echelon.secagg.roster import Roster


class Participation:
    """What is known of devices and edges before a cohort is made.

    Args:
        manifest: the run's.
        options: the aggregator's own.
        roster: the boundary's devices and edges.
    """

    def __init__(self, manifest: RunManifest, options: AggregatorOptions, roster: Roster) -> None:
        self._secure, self._options, self._roster = manifest.secure, options, roster
        self.attendance = Attendance(roster, come_and_go=options.shards is not None)
        self.edges: Edges | None = None
        if options.edges is not None:
            probed = len(options.edges.devices)
            self.edges = Edges(
                options.edges, quorum=quorum(probed, self._secure.k_min, self._secure.colluding)
            )
        self._admission = (
            None
            if self.edges is None or self.edges.standings is None
            else Admission(self.edges, self.edges.standings)
        )
        self.derived: tuple[int, bytes] = (-1, b"")
        """Newest version that the gate derived, and its digest: devices take part in no cohort on a newer one."""
        self.checked_in = 0
        """How far `checkin` was read."""
        self.overdue = False
        """Whether the window's deadline is over."""

    @property
    def lost(self) -> Collection[str]:
        """Edges that are taken for lost."""
        return () if self.edges is None else self.edges.lost

    # ---- records ---------------------------------------------------------------------------------

    def check_in(
        self, device: DeviceId, message: Ready, offset: int, *, version: int, digests: Mapping[int, bytes]
    ) -> None:
        """A device is ready.

        Args:
            device: the sender.
            message: what it offers.
            offset: of the record on `checkin`.
            version: the newest of the boundary adapter.
            digests: SHA-256 of the newest published versions.

        Raises:
            ProtocolError: the offer is none that any cohort could take.
        """
        self._enrolled(device, message)
        check_base(device, message, version, digests)
        options = self._options
        edges = () if options.edges is None else options.edges.edges
        check_work(device, message, n_max=self._secure.n_max, dealt=options.shards, edges=edges)
        self._read(offset)
        self.attendance.arrived(device, CheckIn.of(message, offset))

    def leave(self, device: DeviceId, message: Leave, offset: int) -> None:
        """A device goes: it is not waited for.

        Args:
            device: the sender.
            message: what it says.
            offset: of the record on `checkin`.

        Raises:
            ProtocolError: the sender is no device, or not the newest replica of its slot.
        """
        self._enrolled(device, message)
        self.attendance.left(device)
        self._read(offset)

    def gate_derived(self, message: Derived, digests: Mapping[int, bytes]) -> None:
        """The gate has derived a version.

        Raises:
            ProtocolError: with another digest than was published.
        """
        if digests.get(message.version, message.sha256) != message.sha256:
            raise ProtocolError(
                f"the gate derived another adapter of version {message.version} than this aggregator published"
            )
        if message.version > self.derived[0]:
            self.derived = message.version, message.sha256

    def heard(self, edge: str, offset: int) -> bool:
        """Take a heartbeat; whether an edge that was lost is there again."""
        self._read(offset)
        return self.edges is not None and edge in self.edges.terms.edges and self.edges.heard(edge)

    def measured(self, device: DeviceId, message: Trips) -> None:
        """Take what a device measured of its ways to the edges."""
        if self.edges is not None and device in self.edges.terms.devices:
            self.edges.measured(device, message)

    def behaved(self, device: DeviceId, message: Behaviour) -> bool:
        """Take what an edge saw a device do on the probes; False where nobody is probed."""
        if self.edges is None or self.edges.standings is None or device not in self.edges.terms.devices:
            return False
        self.edges.standings.take(device, message)
        return True

    def _enrolled(self, device: DeviceId, message: Ready | Leave) -> None:
        """Edges write on `checkin`, too; only devices have updates, and of a slot's replicas the newest."""
        if device not in self._roster:
            raise ProtocolError(f"{device} is no device of {self._roster.boundary} and sends {message.kind}")
        self.attendance.fence(device, message)

    def _read(self, offset: int) -> None:
        self.checked_in = max(self.checked_in, offset + 1)

    # ---- the cohort ------------------------------------------------------------------------------

    def cohort(self, opened: WindowOpen, bases: Sequence[Base]) -> tuple[list[Effect], Cohort | None]:
        """The cohort of a window, if K devices are ready, or if it is overdue and the floor holds.

        Args:
            opened: the window that is due, and what its devices may train from.
            bases: digests of the published versions.

        Returns:
            What is said before; and the decision, None while there is none to take.
        """
        if self.derived[0] < opened.version:
            return [], None  # no device takes part in a cohort on a version that the gate did not derive
        ready = self.attendance.takeable(self._secure, opened.version)
        if ready < self.attendance.wanted(self._options.cohort, self._secure.floor) and not self.overdue:
            return [], None
        barred, before = set[DeviceId](), list[Effect]()
        if self._admission is not None:
            probed = self.attendance.ready
            judged = self._admission.judged(probed, opened.window, overdue=self.overdue)
            if judged is None:
                return [], None
            barred, letters = self._admission.kept_out(probed)
            before = [*judged, *letters]
        selection = self._selection(opened.version, barred)
        if len(selection.chosen) < self._secure.floor:
            return before, None
        self.attendance.came(selection.present, overdue=self.overdue)
        return before, cohort_of(selection, opened, self._secure, bases=bases, inputs=self.checked_in)

    def _selection(self, version: int, barred: Collection[DeviceId]) -> Selection:
        return select(
            self.attendance.in_turn(),
            self._secure,
            version,
            barred=barred,
            lost=self.lost,
            overdue=self.overdue,
        )

    # ---- after the state file was lost -----------------------------------------------------------

    def take_over(
        self,
        served: Sequence[tuple[DeviceId, int]],
        ready: Sequence[tuple[DeviceId, int, Ready]],
        version: int,
    ) -> None:
        """Take over what was derived from the topics.

        Args:
            served: the newest window whose cohort each device was in.
            ready: check-ins that no cohort has used: device, offset, message.
            version: the newest of the boundary adapter.
        """
        self.attendance.served = dict(served)
        for device, offset, message in ready:
            if message.base_version <= version and shards_fit(message.shards, self._options.shards):
                self.attendance.hold(device, CheckIn.of(message, offset))
                self._read(offset)
