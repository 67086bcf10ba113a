"""The aggregator's side of the rounds: windows, the ledger, deltas, and taking commits over.

Whatever depends on timing (cohort closed, who survived a round, a window given up) becomes a decision record on
`control`; everything else follows from those and from the devices' records. After a restart the core takes its
snapshot, adopts the decisions that it had recorded since, reads its inputs again, and goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.errors import ProtocolError, StateError
from echelon.laws.ledger import Ledger
from echelon.laws.snapshot import StoredPace, decode, encode_parts
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import (
    Adopt,
    Base,
    Cohort,
    Derived,
    End,
    Heartbeat,
    Join,
    Leave,
    Masked,
    Phase,
    Ready,
    Released,
    Sealing,
    Void,
    VoidReason,
    Window,
    WindowOpen,
)
from echelon.messages.handshake import (
    Advertise,
    Consistency,
    Included,
    KeyList,
    Sealed,
    SharesList,
    Signatures,
    Unmask,
)
from echelon.messages.manifest import RunManifest
from echelon.messages.split import Assignment, EdgePart, Trips
from echelon.messages.wire import DeviceId, Message
from echelon.rounds.aggregator.admission import Admission, assigned
from echelon.rounds.aggregator.attendance import Attendance, CheckIn, StoredCheckIn
from echelon.rounds.aggregator.edge_assignment import Edges
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.aggregator.merging import BoundaryAdapter
from echelon.rounds.aggregator.offers import check_base, check_work, shards_fit
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.aggregator.recovery import History
from echelon.rounds.aggregator.rounds import ROUND, WindowRounds
from echelon.rounds.aggregator.state import AggregatorSnapshot, StoredCommit
from echelon.rounds.aggregator.trust_standings import quorum
from echelon.rounds.aggregator.window import cohort_of, select
from echelon.rounds.effects import (
    Effect,
    Incoming,
    Publish,
    Save,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
    note,
)
from echelon.secagg.faults import WindowFailed
from echelon.secagg.roster import Roster
from echelon.secagg.unmasking import SumResult

DEADLINE = "window"
EDGES = "edges"


@dataclass
class AggregatorCore:
    """The state machine; see the module's docstring."""

    manifest: RunManifest
    terms: AggregatorOptions
    boundary: str
    roster: Roster
    dim: int
    window: int = 0
    ended: bool = False

    def __post_init__(self) -> None:
        self.adapter = BoundaryAdapter(self.manifest, self.boundary)
        self.rounds = WindowRounds(self.manifest, self.roster, dim=self.dim, timeout=self.terms.round_timeout)
        self._checked_in = 0
        self._overdue = False
        self.attendance = Attendance(self.roster, come_and_go=self.terms.shards is not None)
        self.edges = None
        if self.terms.edges is not None:
            secure, probed = self.manifest.secure, len(self.terms.edges.devices)
            self.edges = Edges(self.terms.edges, quorum=quorum(probed, secure.k_min, secure.colluding))
        self._admission = (
            None
            if self.edges is None or self.edges.standings is None
            else Admission(self.edges, self.edges.standings)
        )
        self._derived: tuple[int, bytes] = (-1, b"")
        """Newest version that the gate derived, and its digest: devices take part in no cohort on a newer one."""

    # ---- events ----------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """First effects after a fresh start or a restore."""
        if self.ended:
            return [Stop()]
        if self.ledger is None:
            return []
        watch: list[Effect] = []
        if self.terms.edges is not None:
            watch.append(StartTimer(EDGES, self.terms.edges.look))
        if self.rounds.phase is Phase.OPEN:
            return [*watch, StartTimer(DEADLINE, self.terms.deadline), *self._try_cohort()]
        return [*watch, StartTimer(ROUND, self.terms.round_timeout), *self._advance(False)]

    def handle(self, event: Incoming | TimerFired | BoundaryCommit | RefusedDelta | Closed) -> list[Effect]:
        """Take one event.

        Raises:
            ProtocolError: a device's record breaks the protocol; the state is as before, and it is to be refused.
        """
        match event:
            case BoundaryCommit():
                return self._committed(event)
            case RefusedDelta():
                if not self.adapter.refuse(event):
                    return [note("delta-refused-unknown", seq=event.seq)]
                return [note("delta-refused", seq=event.seq, stale=event.stale), *self._adopt_when_idle()]
            case Closed():
                return self._closed(event)
            case TimerFired():
                return self._timer(event.name)
            case Incoming():
                return [] if self.ended else self._record(event)

    def _record(self, event: Incoming) -> list[Effect]:
        device = DeviceId(event.sender)
        message = event.message
        match message:
            case Join():
                return [note("joined", device=device)]
            case Heartbeat():
                self._checked_in = max(self._checked_in, event.offset + 1)
                if self.edges is not None and device in self.edges.terms.edges and self.edges.heard(device):
                    return self._assigned()
                return []
            case Trips():
                if self.edges is not None and device in self.edges.terms.devices:
                    self.edges.measured(device, message)
                return []
            case Derived():
                return self._gate_derived(message)
            case Behaviour():
                return self._behaviour(device, message)
            case EdgePart():
                if not self.rounds.take_part(event.sender, message, event.payload or b""):
                    return [note("late", device=device, type=message.kind)]
                return self._advance(False)
            case Leave():
                self._enrolled(device, message)
                self.attendance.left(device)
                self._checked_in = max(self._checked_in, event.offset + 1)
                # Read again after a restart it is the same record again.
                released = Publish("control", Released(device=device, number=message.number), 0)
                # Fewer are waited for now: those that are ready may be enough.
                return [released, note("left", device=device), *self._try_cohort()]
            case Ready():
                return self._check_in(device, message, event.offset)
            case Advertise() | Sealed() | Consistency() | Unmask() | Masked():
                topic = "masked" if isinstance(message, Masked) else "handshake"
                self.rounds.read[topic] = max(self.rounds.read[topic], event.offset + 1)
                if not self.rounds.take(device, message, event.payload or b""):
                    return [note("late", device=device, type=message.kind)]
                return self._advance(False)
            case _:
                return []

    def _check_in(self, device: DeviceId, message: Ready, offset: int) -> list[Effect]:
        if self.rounds.used(device, offset):
            return []  # read again after a restart: this check-in is what the cohort was made of
        self._enrolled(device, message)
        check_base(device, message, self.version, self.adapter.digests)
        edges = () if self.edges is None else self.edges.terms.edges
        check_work(device, message, n_max=self.manifest.secure.n_max, dealt=self.terms.shards, edges=edges)
        self._checked_in = max(self._checked_in, offset + 1)
        self.attendance.arrived(device, CheckIn.of(message, offset))
        return [note("checked-in", ready=len(self.attendance.ready)), *self._try_cohort()]

    def _gate_derived(self, message: Derived) -> list[Effect]:
        known = self.adapter.digests
        if known.get(message.version, message.sha256) != message.sha256:
            raise ProtocolError(
                f"the gate derived another adapter of version {message.version} than this aggregator published"
            )
        if message.version > self._derived[0]:
            self._derived = message.version, message.sha256
        return self._try_cohort()

    def _enrolled(self, device: DeviceId, message: Ready | Leave) -> None:
        """Edges write on `checkin`, too; only devices have updates, and of a slot's replicas the newest."""
        if device not in self.roster:
            raise ProtocolError(f"{device} is no device of {self.boundary} and sends {message.kind}")
        self.attendance.fence(device, message)

    def _timer(self, name: str) -> list[Effect]:
        if name == DEADLINE and self.rounds.phase is Phase.OPEN:
            self._overdue = not self.waiting
            return [StartTimer(DEADLINE, self.terms.deadline), *self._try_cohort()]
        if name == ROUND and self.rounds.phase is not Phase.OPEN:
            return self._advance(True)
        if name == EDGES and self.edges is not None and not self.ended:
            changed = self.edges.look()
            return [StartTimer(EDGES, self.edges.terms.look), *(self._assigned() if changed else [])]
        return []

    # ---- edges -----------------------------------------------------------------------------------

    def _assigned(self) -> list[Effect]:
        """Say which edge each device has, and go on without those that are lost."""
        if self.edges is None or self.ledger is None:
            return []
        return [*assigned(self.edges, self.window), *self._try_cohort()]

    def _behaviour(self, device: DeviceId, message: Behaviour) -> list[Effect]:
        if self.edges is None or self.edges.standings is None or device not in self.edges.terms.devices:
            return [note("late", device=device, type=message.kind)]
        self.edges.standings.take(device, message)
        return self._try_cohort()

    # ---- participation window --------------------------------------------------------------------

    @property
    def ledger(self) -> Ledger | None:
        """The boundary's ledger; None before genesis."""
        return self.adapter.ledger

    @property
    def version(self) -> int:
        """The newest version of the boundary adapter; -1 before genesis."""
        return self.adapter.version

    @property
    def bases(self) -> tuple[Base, ...]:
        """Digests of the newest published versions."""
        return self.adapter.bases

    @property
    def waiting(self) -> bool:
        """Whether the boundary stands at a barrier: a delta is undecided, and the run allows no overlap."""
        return self.adapter.waiting

    @property
    def paused(self) -> bool:
        """Whether the ledger can take no further window before a commit arrives."""
        return self.adapter.paused

    def _open(self) -> list[Effect]:
        self.rounds.clear()
        self._overdue = False
        return [
            Publish("control", self._opened(), self.window),
            StopTimer(ROUND),
            StartTimer(DEADLINE, self.terms.deadline),
            note("phase", window=self.window, phase=Phase.OPEN),
        ]

    def _opened(self) -> WindowOpen:
        """The window that is due, and what its devices may train from."""
        if self.ledger is None:
            raise StateError("a window cannot open before genesis")
        return WindowOpen(window=self.window, version=self.version, commit=self.ledger.commit)

    def _try_cohort(self) -> list[Effect]:
        """Close the participation window if K devices are ready, or if it is overdue and the floor holds."""
        if self.rounds.phase is not Phase.OPEN or self.ledger is None or self.ended:
            return []
        if self.paused:
            return self._adopt_when_idle()
        if self._derived[0] < self.version:
            return []  # no device takes part in a cohort on a version that the gate did not derive
        secure = self.manifest.secure
        ready = self.attendance.takeable(secure, self.version)
        if ready < self.attendance.wanted(self.terms.cohort, secure.floor) and not self._overdue:
            return []
        barred, before = set[DeviceId](), list[Effect]()
        if self._admission is not None:
            probed = self.attendance.ready
            judged = self._admission.judged(probed, self.window, overdue=self._overdue)
            if judged is None:
                return []
            barred, letters = self._admission.kept_out(probed)
            before = [*judged, *letters]
        lost = set() if self.edges is None else self.edges.lost
        selection = select(
            self.attendance.in_turn(), secure, self.version, barred=barred, lost=lost, overdue=self._overdue
        )
        if len(selection.chosen) < secure.floor:
            return before
        self.attendance.came(selection.present, overdue=self._overdue)
        cohort = cohort_of(selection, self._opened(), secure, bases=self.bases, inputs=self._checked_in)
        return [*before, Publish("control", cohort, self.window), *self._begin(cohort)]

    def _begin(self, cohort: Cohort) -> list[Effect]:
        begun = self.rounds.begin(cohort)
        self.attendance.taken(cohort)
        return [StopTimer(DEADLINE), *begun]

    # ---- the end of a window ---------------------------------------------------------------------

    def _advance(self, overdue: bool) -> list[Effect]:
        """Close the round that is under way if it is due; with the last one the window is over."""
        lost = None if self.edges is None else self.edges.lost
        effects, outcome = self.rounds.advance(lost, overdue=overdue)
        match outcome:
            case None:
                return effects
            case WindowFailed():
                return [*effects, *self._void(outcome.reason)]
            case SumResult():
                return [*effects, *self._close(outcome)]

    def _void(self, reason: str) -> list[Effect]:
        """The window has no sum: go on with the next one.

        When devices may have released shares already, the next one is on a version of its own: they sign no other set
        on the version of such a window that differs by a few devices, and the devices of that set may never all come
        together again. On that version no window might ever close.
        """
        released = self.rounds.phase is Phase.UNMASK
        moved = self.adapter.leave_version(self.window) if released else []
        effects = [*moved, *self.rounds.void(reason)]
        self.window += 1
        effects += self._open()
        effects += self._adopt_when_idle()
        return [*effects, Save(), *self._try_cohort()]

    def _close(self, result: SumResult) -> list[Effect]:
        """The window has a sum: move the adapter, and seal a delta and adopt a commit where they are due."""
        try:
            record, mean = self.rounds.closed(result, self.version + 1)
        except ProtocolError:
            return self._void(VoidReason.MISMATCH.value)
        effects = self.adapter.add_window(record, mean)
        effects.append(self.rounds.closed_note(result.included, record.summary))
        self.window += 1
        effects += self._open()
        return [*effects, Save(), *self._try_cohort()]

    # ---- deltas and commits ----------------------------------------------------------------------

    def _committed(self, event: BoundaryCommit) -> list[Effect]:
        if self.ledger is None:
            begun = self.adapter.begin(event, self.window)
            return [*begun, *self._open(), *self._first_assignment(), Save(), *self._try_cohort()]
        return self._adopt_when_idle() if self.adapter.hold(event) else []

    def _first_assignment(self) -> list[Effect]:
        if self.edges is None or self.terms.edges is None or not self.edges.assign():
            return []
        return [
            Publish("control", self.edges.record(), self.window),
            StartTimer(EDGES, self.terms.edges.look),
        ]

    def _adopt_when_idle(self) -> list[Effect]:
        """Adopt at once while the boundary stands still; otherwise with the close of the window that is under way."""
        if self.rounds.phase is not Phase.OPEN or not self.paused or self.ended:
            return []
        waited = self.waiting
        effects = self.adapter.adopt(self.window)
        if not effects:
            return []
        if waited and not self.waiting:
            # The devices begin only now: the window's deadline does too.
            effects.append(StartTimer(DEADLINE, self.terms.deadline))
        return [*effects, Save(), *self._try_cohort()]

    def _closed(self, event: Closed) -> list[Effect]:
        if self.ended:
            return []
        self.ended = True
        self.rounds.stop()
        return [
            Publish("control", End(commit=event.commit), self.window),
            StopTimer(ROUND),
            StopTimer(DEADLINE),
            StopTimer(EDGES),
            Save(),
            Stop(),
        ]

    # ---- snapshots and recovery ------------------------------------------------------------------

    def rebuild(self, history: History) -> list[Effect]:
        """Take over what was derived from the topics, after the state file was lost; first effects of that.

        What the lost step had decided and not yet published is decided anew; nobody can have seen it.
        """
        ledger = history.ledger
        commits = {commit.commit: commit for commit in history.commits}
        newest = commits[ledger.commit]
        ledger.anchor = newest.adapter
        adapter = self.adapter
        adapter.ledger, adapter.pace, adapter.tokens, adapter.signed = (
            ledger, newest.pace, newest.tokens, newest.signed,
        )  # fmt: skip
        self.window, adapter.version, adapter.bases = history.window, history.version, history.bases
        adapter.held = [commit for commit in history.commits if commit.commit > ledger.commit]
        adapter.refused = {seq: stale for seq, stale in history.refused.items() if seq in ledger.pending}
        self.attendance.served = dict(history.served)
        for device, offset, message in history.ready:
            if message.base_version <= self.version and shards_fit(message.shards, self.terms.shards):
                self.attendance.hold(device, CheckIn.of(message, offset))
                self._checked_in = max(self._checked_in, offset + 1)
        effects: list[Effect] = []
        if self.edges is not None:
            if history.assignment is not None:
                self.edges.adopt(history.assignment)
            else:
                effects += self._first_assignment()
        for sealed in history.unsent:
            effects.append(adapter.send(sealed, self.window))
        published = any(base.version == self.version for base in self.bases)
        if not published or history.versioned < self.version:
            adapter.bases = tuple(base for base in self.bases if base.version != self.version)
            effects += adapter.publish(self.window, anchored=True)
        if not history.opened:
            effects += self._open()
        if history.closed is not None:  # it was read with the rest of `global`, and is not read again
            return [*effects, *self._closed(Closed(history.closed))]
        return [*effects, Save()]

    def recover(self, decisions: list[Message]) -> None:
        """Adopt the decisions that stand on `control` after the snapshot; inputs are then read again from its offsets.

        Raises:
            StateError: a window was closed after the snapshot, so the snapshot is older than the topics; rebuild it.
        """
        if self.ended:
            return  # the window that was under way when the run was closed is over, wherever it stood
        for message in decisions:
            match message:
                case Cohort() if message.window == self.window:
                    self._begin(message)
                case KeyList() | SharesList() | Included() | Signatures() if message.window == self.window:
                    self.rounds.adopt(message)
                case Assignment() if self.edges is not None:
                    self.edges.adopt(message)
                case Window() | Void() if message.window >= self.window:
                    raise StateError(
                        f"{message.kind} {message.window} stands on control after the newest snapshot"
                    )
                case Adopt() if message.version > self.version:
                    raise StateError(f"version {message.version} stands on control after the newest snapshot")
                case Sealing() if self.ledger is None or message.seq >= self.ledger.next_seq:
                    raise StateError(f"delta {message.seq} stands on control after the newest snapshot")
                case _:
                    pass

    def snapshot(self) -> bytes:
        """State between two windows; what happens inside a window is read from the topics again."""
        return b"".join(self.snapshot_parts())

    def snapshot_parts(self) -> list[bytes | memoryview]:
        """The bytes of `snapshot` as parts; vectors are views, valid until the next step."""
        adapter, attendance = self.adapter, self.attendance
        return encode_parts(
            AggregatorSnapshot(
                anchor=None if adapter.ledger is None else adapter.ledger.anchor,
                ledger=None if adapter.ledger is None else adapter.ledger.facts(),
                version=adapter.version,
                window=self.window,
                pace=None if adapter.pace is None else StoredPace.of(adapter.pace),
                tokens=adapter.tokens,
                signed=adapter.signed,
                derived=self._derived,
                bases=[(base.version, base.sha256) for base in adapter.bases],
                edges=None if self.edges is None else self.edges.facts(),
                held=[StoredCommit.of(held) for held in adapter.held],
                refused=list(adapter.refused.items()),
                checked_in=self._checked_in,
                ended=self.ended,
                ready=[StoredCheckIn.of(device, check) for device, check in attendance.ready.items()],
                there=sorted(attendance.there),
                served=sorted(attendance.served.items()),
            )
        )

    def restore(self, data: bytes) -> None:
        """Take a snapshot over.

        Raises:
            CodecError: it has another form.
            ValueError: a number is out of its range, or a vector has another length.
        """
        stored = decode(data, AggregatorSnapshot)
        stored.fill_adapter(self.adapter)
        stored.fill_attendance(self.attendance)
        if self.edges is not None and stored.edges is not None:
            self.edges.restore(stored.edges)
        self.window, self._derived, self._checked_in = stored.window, stored.derived, stored.checked_in
        self.ended = stored.ended
