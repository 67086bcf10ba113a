"""The aggregator's side of the rounds: windows, the ledger, deltas, and taking commits over.

Whatever depends on timing (cohort closed, who survived a round, a window given up) becomes a decision record on
`control`; everything else follows from those and from the devices' records. After a restart the core takes its
snapshot, adopts the decisions that it had recorded since, reads its inputs again, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from echelon.errors import ProtocolError, StateError
from echelon.laws.ledger import Ledger
from echelon.laws.snapshot import decode, parts_of
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import (
    Adopt,
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
from echelon.rounds.aggregator.admission import assigned
from echelon.rounds.aggregator.events import BoundaryCommit, Closed, RefusedDelta
from echelon.rounds.aggregator.merging import BoundaryAdapter
from echelon.rounds.aggregator.options import AggregatorOptions
from echelon.rounds.aggregator.participation import Participation
from echelon.rounds.aggregator.recovery import History
from echelon.rounds.aggregator.rounds import ROUND, WindowRounds
from echelon.rounds.aggregator.state import AggregatorSnapshot
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
        self.rounds = WindowRounds(self.manifest, self.roster, dim=self.dim, options=self.terms)
        self.participation = Participation(self.manifest, self.terms, self.roster)
        self.attendance, self.edges = self.participation.attendance, self.participation.edges

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
        late = note("late", device=device, type=message.kind)
        match message:
            case Join():
                return [note("joined", device=device)]
            case Heartbeat():
                return self._assigned() if self.participation.heard(device, event.offset) else []
            case Trips():
                self.participation.measured(device, message)
                return []
            case Derived():
                self.participation.gate_derived(message, self.adapter.digests)
                return self._try_cohort()
            case Behaviour():
                return self._try_cohort() if self.participation.behaved(device, message) else [late]
            case EdgePart():
                taken = self.rounds.take_part(event.sender, message, event.payload or b"")
                return self._advance(False) if taken else [late]
            case Leave():
                self.participation.leave(device, message, event.offset)
                # Read again after a restart it is the same record again.
                released = Publish("control", Released(device=device, number=message.number), 0)
                # Fewer are waited for now: those that are ready may be enough.
                return [released, note("left", device=device), *self._try_cohort()]
            case Ready():
                return self._check_in(device, message, event.offset)
            case Advertise() | Sealed() | Consistency() | Unmask() | Masked():
                topic = "masked" if isinstance(message, Masked) else "handshake"
                self.rounds.read[topic] = max(self.rounds.read[topic], event.offset + 1)
                taken = self.rounds.take(device, message, event.payload or b"")
                return self._advance(False) if taken else [late]
            case _:
                return []

    def _check_in(self, device: DeviceId, message: Ready, offset: int) -> list[Effect]:
        if self.rounds.used(device, offset):
            return []  # read again after a restart: this check-in is what the cohort was made of
        version, digests = self.version, self.adapter.digests
        self.participation.check_in(device, message, offset, version=version, digests=digests)
        return [note("checked-in", ready=len(self.attendance.ready)), *self._try_cohort()]

    def _timer(self, name: str) -> list[Effect]:
        if name == DEADLINE and self.rounds.phase is Phase.OPEN:
            self.participation.overdue = not self.waiting
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
    def waiting(self) -> bool:
        """Whether the boundary stands at a barrier: a delta is undecided, and the run allows no overlap."""
        return self.adapter.waiting

    @property
    def paused(self) -> bool:
        """Whether the ledger can take no further window before a commit arrives."""
        return self.adapter.paused

    def _open(self) -> list[Effect]:
        self.rounds.clear()
        self.participation.overdue = False
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
        before, cohort = self.participation.cohort(self._opened(), self.adapter.bases)
        if cohort is None:
            return before
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
        self.adapter.take_over(history)
        self.window = history.window
        self.participation.take_over(history.served, history.ready, self.version)
        effects: list[Effect] = []
        if self.edges is not None and history.assignment is not None:
            self.edges.adopt(history.assignment)
        else:
            effects += self._first_assignment()
        effects += [self.adapter.send(sealed, self.window) for sealed in history.unsent]
        if history.versioned < self.version or self.version not in self.adapter.digests:
            effects += self.adapter.publish_again(self.window)
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

    def snapshot_parts(self) -> Iterator[bytes | memoryview]:
        """The bytes of `snapshot` as parts; vectors are views, valid until the next step."""
        return parts_of(
            AggregatorSnapshot.of(self.adapter, self.participation, window=self.window, ended=self.ended)
        )

    def restore(self, data: bytes) -> None:
        """Take a snapshot over.

        Raises:
            CodecError: it has another form.
            ValueError: a number is out of its range, or a vector has another length.
        """
        stored = decode(data, AggregatorSnapshot)
        stored.fill_adapter(self.adapter)
        stored.fill_participation(self.participation)
        self.window, self.ended = stored.window, stored.ended
