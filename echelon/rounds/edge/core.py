"""An edge's side of split training: sessions, jobs whose middle blocks it trains, and what it adds to a window.

The core decides what is taken, in which order, and what counts; tensors are bytes to it, and the shell computes. A job
happens whole or not at all: its middle update is stored before the device hears that it is, and whatever breaks before
leaves nothing. A job is in at most one part, and a part goes out only for a window that its devices signed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from echelon.errors import CodecError, ProtocolError
from echelon.laws import snapshot
from echelon.laws.cohort import one_base
from echelon.messages.adapter import F32
from echelon.messages.boundary import Cohort, Derived, End, Heartbeat, Member, Model, Void, Window
from echelon.messages.handshake import Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import RunManifest
from echelon.messages.split import SplitFrame, SplitOpen, SplitPing, SplitPong
from echelon.rounds.edge.adapters import EdgeAdapters
from echelon.rounds.edge.jobs import Cuts, EdgeJobs
from echelon.rounds.edge.kept import KeptJobs
from echelon.rounds.edge.sessions import EdgeSessions
from echelon.rounds.edge.state import EdgeSnapshot, StoredEdgeWindow, StoredJobs, StoredVersion
from echelon.rounds.edge.window_sum import ORDER, Decision, EdgeWindow, MiddleSums
from echelon.rounds.effects import (
    EdgeDone,
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
from echelon.secagg.entropy import Entropy
from echelon.secagg.roster import Roster

BEAT, IDLE = "beat", "idle"
DERIVED = 512
"""Newest versions whose digest by the gate is kept: twice as many as a cohort may have bases."""


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What an edge's own configuration says.

    Attributes:
        beat: seconds between two heartbeats.
        idle: seconds without a frame after which a job that is under way is given up.
    """

    beat: float
    idle: float


@dataclass
class EdgeCore:
    """The state machine. `handle` takes one event and returns effects; it never waits.

    Nothing counts that was trained from a version that the boundary's gate did not derive.
    """

    manifest: RunManifest
    terms: EdgeOptions
    name: str
    roster: Roster
    entropy: Entropy
    dim: int
    cuts: Cuts
    kept: dict[str, KeptJobs] = field(default_factory=dict)
    ended: bool = False

    def __post_init__(self) -> None:
        self.sessions = EdgeSessions(
            run=self.manifest.run_id, edge=self.name, roster=self.roster, entropy=self.entropy
        )
        self._adapters = EdgeAdapters(self.dim)
        self._jobs = EdgeJobs(
            sessions=self.sessions,
            adapters=self._adapters,
            kept=self.kept,
            cuts=self.cuts,
            awaited=self._awaited,
        )
        self._sums = MiddleSums(self.manifest, self.entropy, self.dim)
        self._derived: dict[int, bytes] = {}
        """Digests of the versions that the gate derived."""
        self._open: EdgeWindow | None = None
        """The window under way."""
        self._window = 0
        """Every window before it has got its part, or gets none."""

    # ---- events ----------------------------------------------------------------------------------

    def start(self) -> list[Effect]:
        """First effects, on a fresh state or a restored one."""
        if self.ended:
            return [Stop()]
        return [self._beat(), StartTimer(BEAT, self.terms.beat), StartTimer(IDLE, self.terms.idle)]

    @staticmethod
    def _beat() -> Publish:
        return Publish("checkin", Heartbeat(), 0)

    def handle(self, event: Incoming | TimerFired | EdgeDone) -> list[Effect]:
        """Take one event.

        Raises:
            ProtocolError, Refused: a record breaks the protocol; it is to be refused.
        """
        match event:
            case EdgeDone():
                return self._jobs.done(event)
            case TimerFired():
                return self._timer(event.name)
            case Incoming():
                return [] if self.ended else self._record(event)

    def _timer(self, name: str) -> list[Effect]:
        if name == BEAT:
            return [self._beat(), StartTimer(BEAT, self.terms.beat)]
        return [*self.sessions.look(), StartTimer(IDLE, self.terms.idle)]

    def _record(self, event: Incoming) -> list[Effect]:
        message = event.message
        match message:
            case SplitOpen():
                return self.sessions.accept(event.sender, message)
            case SplitFrame():
                effects, heard = self.sessions.framed(event.sender, message, event.payload or b"")
                return effects if heard is None else [*effects, *self._jobs.said(event.sender, heard)]
            case SplitPing():
                pong = SplitPong(device=event.sender, number=message.number)
                return [self.sessions.answer(event.sender, pong)]
            case Model():
                return self._jobs.model(message, event.payload or b"")
            case Derived():
                return self._was_derived(message)
            case Cohort():
                return self._formed(message)
            case KeyList() | SharesList() | Included() | Signatures():
                return self._decided(message)
            case Window() | Void():
                if self._open is not None and message.window >= self._open.cohort.window:
                    self._open = None
                self._window = max(self._window, message.window + 1)
                return []
            case End():
                self.ended = True
                return [StopTimer(BEAT), StopTimer(IDLE), Save(), Stop()]
            case _:
                return []

    # ---- windows ---------------------------------------------------------------------------------

    def _was_derived(self, message: Derived) -> list[Effect]:
        known = self._derived.get(message.version)
        if known is not None and known != message.sha256:
            raise ProtocolError(f"the gate derived version {message.version} with two digests")
        self._derived[message.version] = message.sha256
        while len(self._derived) > DERIVED:
            del self._derived[min(self._derived)]
        return self._release()

    def _awaited(self, device: str) -> tuple[int, ...]:
        """Jobs of the device that the window under way may still ask for."""
        return () if self._open is None else self._open.jobs_of(device)

    def _formed(self, message: Cohort) -> list[Effect]:
        if message.window < self._window:
            return []
        if self._open is not None and self._open.cohort.window == message.window:
            if self._open.cohort != message:
                raise ProtocolError(f"window {message.window} has two cohorts")
            return []
        self._open = EdgeWindow(message, self.manifest, self.roster, self.name, self.dim)
        return []

    def _decided(self, message: Decision) -> list[Effect]:
        if message.window < self._window:
            return []
        if self._open is None or message.window != self._open.cohort.window:
            raise ProtocolError(f"a {message.kind} decision of window {message.window}, which has no cohort")
        self._open.take(message)
        return self._release()

    def _release(self) -> list[Effect]:
        """Once the included set is signed: add up the middles of this edge's devices, once."""
        window = self._open
        if window is None or not window.signed:
            return []
        members = window.members
        if any(member.base_version > max(self._derived, default=-1) for member in members):
            return []  # the gate's word on a version is on its way
        number = window.cohort.window
        self._window, self._open = number + 1, None
        counted = one_base(
            [member for member in members if self._holds(window, member)], self.manifest.secure
        )
        part = self._sums.part(window, counted, self.kept)
        for member in members:  # what was in a window is spent, whether its part goes out or not
            if member.device in self.kept:
                self.kept[member.device].forget(member.jobs)
        if part is None:
            kept_back = note("part-kept-back", window=number, devices=len(members))
            return [kept_back, Save()] if members else []
        return [
            Save(),
            part,
            note("part", window=number, devices=len(counted), left_out=len(members) - len(counted)),
        ]

    def _holds(self, window: EdgeWindow, member: Member) -> bool:
        """Whether what a member says of its update is signed by it, and is what it trained with this edge."""
        kept, digest = self.kept.get(member.device), window.digests.get(member.base_version)
        if kept is None or digest is None or member.device not in window.vouched:
            return False
        if self._derived.get(member.base_version) != digest:
            return False
        if not kept.trained_from(member.jobs, member.base_version, digest):
            return False
        moved = kept.sum_of(member.jobs)
        return moved is not None and bool(np.isfinite(moved).all())

    # ---- snapshots -------------------------------------------------------------------------------

    def facts(self) -> bytes:
        """The small part of a snapshot."""
        window, versions = self._open, self._adapters.versions
        newest = max(versions, default=None)
        return snapshot.encode(
            EdgeSnapshot(
                ended=self.ended,
                window=self._window,
                under_way=None if window is None else StoredEdgeWindow.of(window),
                derived=sorted(self._derived.items()),
                newest=None if newest is None else StoredVersion.of(newest, versions[newest]),
                kept=[StoredJobs.of(device, kept) for device, kept in sorted(self.kept.items())],
            )
        )

    def held(self) -> dict[str, F32 | bytes]:
        """The large parts of a snapshot by name, each an object that is replaced when it changes.

        They are the newest adapter, those of the newest commits, and of every device its jobs' updates and moments.
        """
        newest = max(self._adapters.versions, default=None)
        vectors: dict[str, F32 | bytes] = {}
        if newest is not None:
            vectors["theta"] = self._adapters.versions[newest].theta
        vectors |= {f"commit {commit}": anchor for commit, anchor in self._adapters.commits.items()}
        for device, kept in self.kept.items():
            vectors |= {f"moved {device} {job}": moved for job, moved in kept.moved.items()}
            vectors |= {f"state {device} {job}": state for job, state in kept.states.items()}
        return vectors

    def vectors(self) -> dict[str, bytes]:
        """Those parts as bytes."""
        return {name: packed(part) for name, part in sorted(self.held().items())}

    def restore(self, facts: bytes, vectors: Mapping[str, bytes]) -> None:
        """Take a snapshot over. Sessions are not in it.

        Args:
            facts: the small part, as `facts` gave it.
            vectors: the large parts by name, as `vectors` gave them.

        Raises:
            CodecError: a field is missing, or too many, or has another type; or a part has a strange name.
            LookupError: a part is missing, or is of a device that is not among those that are kept.
            ProtocolError, ValueError: a value that does not fit the run.
        """
        state = snapshot.decode(facts, EdgeSnapshot)
        self.ended, self._window, self._derived = state.ended, state.window, dict(state.derived)
        self._open = None if state.under_way is None else self._window_of(state.under_way)
        if state.newest is not None:
            theta = np.frombuffer(vectors["theta"], "<f4")
            self._adapters.versions = {state.newest.version: state.newest.with_adapter(theta)}
        self.kept.clear()
        self.kept.update({stored.device: stored.jobs() for stored in state.kept})
        self._adapters.commits = {}
        for name, data in vectors.items():
            match name.split(" "):
                case ["theta"]:
                    pass
                case ["commit", commit]:
                    self._adapters.commits[int(commit)] = np.frombuffer(data, "<f4")
                case ["moved", device, job]:
                    self.kept[device].moved[int(job)] = np.frombuffer(data, "<f4")
                case ["state", device, job]:
                    self.kept[device].states[int(job)] = data
                case _:
                    raise CodecError(f"no part of an edge's state is called {name!r}")

    def _window_of(self, stored: StoredEdgeWindow) -> EdgeWindow:
        """The window under way again: its decisions are taken as they were."""
        if len(stored.decisions) > len(ORDER):
            raise CodecError(f"a window with {len(stored.decisions)} decisions")
        window = EdgeWindow(Cohort.decode(stored.cohort), self.manifest, self.roster, self.name, self.dim)
        for kind, decision in zip(ORDER, stored.decisions, strict=False):
            window.take(kind.decode(decision))
        return window


def changes(before: Mapping[str, object], now: Mapping[str, F32 | bytes]) -> dict[str, bytes | None]:
    """What has to be stored of `now` where `before` is stored: parts that are other objects; None for what is gone."""
    gone: dict[str, bytes | None] = dict.fromkeys(before.keys() - now.keys())
    return gone | {name: packed(part) for name, part in now.items() if before.get(name) is not part}


def packed(part: F32 | bytes) -> bytes:
    """A large part of a snapshot as it is stored."""
    return part if isinstance(part, bytes) else part.astype("<f4", copy=False).tobytes()
