"""An edge's side of split training: sessions, jobs whose middle blocks it trains, and what it adds to a window.

The core decides what is taken, in which order, and what counts; tensors are bytes to it, and the shell computes. A job
happens whole or not at all: its middle update is stored before the device hears that it is, and whatever breaks before
leaves nothing. A job is in at most one part, and a part goes out only for a window that its devices signed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgpack
import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.blocks import block_ranges
from echelon.laws.channel import Channel, ChannelBroken, Parties, edge_channel
from echelon.laws.cohort import NORM_UNIT, one_base, releasable
from echelon.messages.boundary import Cohort, Derived, End, Heartbeat, Member, Model, Void, Window
from echelon.messages.exchange import Payload
from echelon.messages.frames import (
    Assess,
    Backward,
    Begin,
    Begun,
    Decline,
    Declined,
    Finish,
    Finished,
    Forward,
    Gradient,
    Look,
    Looked,
    Output,
    from_double,
    to_double,
)
from echelon.messages.handshake import Included, KeyList, SharesList, Signatures
from echelon.messages.manifest import MILLION, RunManifest
from echelon.messages.split import EdgePart, SplitAccept, SplitFrame, SplitOpen, SplitPing, SplitPong
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.edge.jobs import F32, MAX_KEPT, Job, Kept, Version
from echelon.rounds.edge.window_sum import ORDER, Decision, EdgeWindow
from echelon.rounds.effects import (
    Effect,
    Incoming,
    Middle,
    MiddleDone,
    MiddleDrop,
    MiddleStart,
    Publish,
    Refuse,
    Save,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
    note,
)
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey
from echelon.secagg.ring import Codec, signed
from echelon.secagg.roster import Roster

BEAT, IDLE = "beat", "idle"
VERSIONS = 4
"""Newest versions of the boundary adapter that a job may start from."""
COMMITS = 2
"""Newest commits whose adapters may be evaluated."""
ASKED = 4
"""Most sessions of one device that were accepted and not begun; the oldest goes for another one."""
DERIVED = 512
"""Newest versions whose digest by the gate is kept: twice as many as a cohort may have bases."""

Cuts = Callable[[int, int], bool]
"""Whether an edge can take a device's cut: (p, q)."""


@dataclass(frozen=True, slots=True)
class EdgeTerms:
    """What an edge's own configuration says.

    Attributes:
        beat: seconds between two heartbeats.
        idle: seconds without a frame after which a job that is under way is given up.
    """

    beat: float
    idle: float


@dataclass(slots=True)
class _Session:
    channel: Channel
    accept: SplitAccept
    """What opened it: asked again, the edge says it again."""
    job: Job | None = None
    newest: int = -1
    """The newest job or evaluation that was asked for: numbers ascend within a session."""
    told: tuple[int, int] = (0, 0)
    """Bytes taken and sent that the metrics know of."""
    heard: bool = True
    """Whether a frame came since the last look."""
    leaving: bool = False
    """Whether its device asked another edge for a session since its last frame."""

    def answers(self, message: SplitOpen) -> bool:
        """Whether this is the session that is asked for."""
        return (self.accept.session, self.accept.device_public) == (message.session, message.public)


@dataclass
class EdgeCore:
    """The state machine. `handle` takes one event and returns effects; it never waits.

    Nothing counts that was trained from a version that the boundary's gate did not derive.
    """

    manifest: RunManifest
    terms: EdgeTerms
    name: str
    roster: Roster
    entropy: Entropy
    dim: int
    cuts: Cuts
    kept: dict[str, Kept] = field(default_factory=dict)
    ended: bool = False

    def __post_init__(self) -> None:
        secure = self.manifest.secure
        self._codec = Codec(secure.clip_micro / MILLION, secure.scale_bits, secure.cohort_max)
        self._blocks = block_ranges(self.manifest.adapter_layout()) if self.manifest.split else {}
        """Where each block lies in the vector."""
        self._sessions: dict[str, _Session] = {}
        self._asked: dict[str, dict[bytes, _Session]] = {}
        """By device: sessions that were accepted and of which no frame came yet. They replace none before."""
        self._versions: dict[int, Version] = {}
        """The newest versions of the boundary adapter."""
        self._derived: dict[int, bytes] = {}
        """Digests of the versions that the gate derived."""
        self._commits: dict[int, F32] = {}
        """The global adapters of the newest commits."""
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

    def serves(self, device: str) -> bool:
        """Whether the device has a session with this edge, or asked for one."""
        return device in self._sessions or device in self._asked

    def knows(self, device: str, session: bytes) -> bool:
        """Whether that is a session of the device, or one that it asked for."""
        found = self._sessions.get(device)
        live = found is not None and found.channel.session == session
        return live or session in self._asked.get(device, {})

    def handle(self, event: Incoming | TimerFired | MiddleDone) -> list[Effect]:
        """Take one event.

        Raises:
            ProtocolError, Refused: a record breaks the protocol; it is to be refused.
        """
        match event:
            case MiddleDone():
                return self._done(event)
            case TimerFired():
                return self._timer(event.name)
            case Incoming():
                return [] if self.ended else self._record(event)

    def _timer(self, name: str) -> list[Effect]:
        if name == BEAT:
            return [self._beat(), StartTimer(BEAT, self.terms.beat)]
        effects, gone = list[Effect](), list[str]()
        for device, session in self._sessions.items():
            if not session.heard and session.job is not None and not session.job.finishing:
                session.job = None
                effects += [MiddleDrop(device), note("split-idle", device=device)]
            if session.leaving and not session.heard and session.job is None:
                gone.append(device)
            session.heard = False
        for device in gone:
            del self._sessions[device]
        for device, asked in list(self._asked.items()):
            self._asked[device] = {name: found for name, found in asked.items() if found.heard}
            for found in self._asked[device].values():
                found.heard = False
            if not self._asked[device]:
                del self._asked[device]
        return [*effects, StartTimer(IDLE, self.terms.idle)]

    def _record(self, event: Incoming) -> list[Effect]:
        message = event.message
        match message:
            case SplitOpen():
                return self._opened(event.sender, message)
            case SplitFrame():
                return self._framed(event.sender, message, event.payload or b"")
            case SplitPing():
                pong = SplitPong(device=event.sender, number=message.number)
                return [self._answer(event.sender, pong)]
            case Model():
                return self._model(message, event.payload or b"")
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

    # ---- sessions --------------------------------------------------------------------------------

    def _parties(self, device: str) -> Parties:
        return Parties(self.manifest.run_id, self.roster.boundary, device, self.name)

    def _opened(self, device: str, message: SplitOpen) -> list[Effect]:
        """Accept a session, beside the one that there is.

        A record may be an old one that is shown again: so nothing is given up for it before a frame comes under the new
        session's keys, which only the device can seal.
        """
        known = self._sessions.get(device)
        if message.edge != self.name:
            if known is not None:
                known.leaving = True
            return []
        asked = self._asked.get(device, {})
        for found in (known, asked.get(message.session)):
            if found is not None and found.answers(message):
                return [self._answer(device, found.accept)]
            if found is not None and found.accept.session == message.session:
                raise ProtocolError(f"{device} opens one session with two keys")
        key = AgreementKey(self.entropy.token(32))
        channel = edge_channel(self._parties(device), message.session, key, message.public)
        accept = SplitAccept(
            device=device, session=message.session, device_public=message.public, public=key.public
        )
        asked = self._asked.setdefault(device, {})
        asked[message.session] = _Session(channel, accept)
        while len(asked) > ASKED:
            del asked[next(iter(asked))]
        return [self._answer(device, accept), note("split-session", device=device)]

    def _entered(self, device: str, session: _Session) -> list[Effect]:
        """The first frame of a session came: it takes the place of the one before."""
        effects = self._dropped(device)
        self._sessions[device] = session
        del self._asked[device]
        return effects

    def _answer(self, device: str, message: SplitAccept | SplitPong) -> Publish:
        """A record for one device that is not part of a session."""
        return Publish("split.down", message, 0, partition=self.roster.entry(device).slot)

    def _dropped(self, device: str) -> list[Effect]:
        """Give up what is under way with a device."""
        session = self._sessions.get(device)
        if session is None or session.job is None:
            return []
        session.job = None
        return [MiddleDrop(device)]

    def _send(self, device: str, head: Message, tensor: bytes = b"") -> Publish:
        frame, payload = self._sessions[device].channel.seal(head, tensor)
        return Publish("split.down", frame, 0, payload, self.roster.entry(device).slot)

    def _declined(self, device: str, job: int, reason: Decline) -> list[Effect]:
        return [
            *self._dropped(device),
            self._send(device, Declined(job=job, reason=reason)),
            note("split-declined", device=device, reason=reason.value),
        ]

    def _framed(self, device: str, message: SplitFrame, payload: bytes) -> list[Effect]:
        asked = self._asked.get(device, {}).get(message.session)
        if asked is not None:
            return self._first(device, asked, message, payload)
        session = self._sessions.get(device)
        if session is None or session.channel.session != message.session:
            return []  # another edge's, or of a session that is over
        try:
            found = session.channel.open(message, payload)
        except (ChannelBroken, Refused) as error:
            effects = self._dropped(device)
            del self._sessions[device]
            reason = error.reason if isinstance(error, Refused) else Reason.OUT_OF_ORDER
            return [*effects, Refuse(reason, f"{device}: {error}")]
        if found is None:
            return []
        session.heard, session.leaving = True, False
        return self._said(device, session, *found)

    def _first(self, device: str, asked: _Session, message: SplitFrame, payload: bytes) -> list[Effect]:
        """A frame of a session that was only asked for: if the device sealed it, the session begins."""
        try:
            found = asked.channel.open(message, payload)
        except (ChannelBroken, Refused) as error:
            reason = error.reason if isinstance(error, Refused) else Reason.OUT_OF_ORDER
            return [Refuse(reason, f"{device}: {error}")]
        if found is None:
            return []
        return [*self._entered(device, asked), *self._said(device, asked, *found)]

    def _said(self, device: str, session: _Session, head: Message, tensor: bytes) -> list[Effect]:
        job = getattr(head, "job", -1)
        if isinstance(head, Begin | Assess):
            return self._begin(device, session, head, tensor)
        if session.job is None or session.job.begin.job != job:
            return []  # of a job that was given up: the device was told, or hears nothing and gives up too
        try:
            return self._work(device, session.job, head, tensor)
        except Refused as refused:
            return [
                *self._declined(device, job, Decline.BAD_FRAME),
                Refuse(refused.reason, f"{device}: {refused.detail}"),
            ]

    # ---- jobs ------------------------------------------------------------------------------------

    def _begin(self, device: str, session: _Session, begin: Begin | Assess, opening: bytes) -> list[Effect]:
        """A job or an evaluation is asked for: it is checked whole before anything of it is kept."""
        effects = self._dropped(device)
        try:
            reason = self._fault(device, session, begin)
        except Refused as refused:
            return [
                *effects,
                *self._declined(device, begin.job, Decline.BAD_FRAME),
                Refuse(refused.reason, f"{device}: {refused.detail}"),
            ]
        if reason is not None:
            return [*effects, *self._declined(device, begin.job, reason)]
        session.newest, session.job = begin.job, Job(begin, opening)
        if isinstance(begin, Begin):
            kept = self.kept.setdefault(device, Kept())
            named = {*begin.on_top, *self._awaited(device)}
            # Merged, lost or given up: the device says what it still counts on.
            kept.forget([job for job in kept.moved if job not in named])
            session.job.on_top = kept.sum_of(begin.on_top)
            # From another edge, or after a loss, there are none: the middle's moments begin anew.
            session.job.state = kept.states.get(begin.after)
        return [*effects, *self._put_in_place(device, session.job)]

    def _fault(self, device: str, session: _Session, begin: Begin | Assess) -> Decline | None:
        """Why a job cannot begin; None if nothing speaks against it.

        Raises:
            Refused: its number was used in this session, or its μ is no number.
        """
        if begin.job <= session.newest:
            raise Refused(Reason.BAD_FRAME, f"job {begin.job} after job {session.newest} of one session")
        if not self.cuts(begin.front, begin.back):
            return Decline.BAD_CUT
        if isinstance(begin, Assess):
            return Decline.UNKNOWN_VERSION if self._too_late(begin) else None
        from_double(begin.mu)
        kept, awaited = self.kept.get(device) or Kept(), self._awaited(device)
        if any(job not in kept.moved for job in begin.on_top) or begin.job in {*begin.on_top, *awaited}:
            return Decline.UNKNOWN_JOB
        if len({*begin.on_top, *awaited}) >= MAX_KEPT:
            return Decline.TOO_MANY_JOBS
        found = self._versions.get(begin.version)
        if self._too_late(begin) or (found is not None and not found.trains(begin)):
            return Decline.UNKNOWN_VERSION
        return None

    def _too_late(self, head: Begin | Assess) -> bool:
        """Whether the adapter that it starts from is gone; one that is still to come is waited for."""
        if isinstance(head, Begin):
            return bool(self._versions) and head.version < min(self._versions)
        return bool(self._commits) and head.commit not in self._commits and head.commit < max(self._commits)

    def _awaited(self, device: str) -> tuple[int, ...]:
        """Jobs of the device that the window under way may still ask for."""
        if self._open is None:
            return ()
        return next(
            (
                member.jobs
                for member in self._open.cohort.members
                if member.device == device and member.edge == self.name
            ),
            (),
        )

    def _put_in_place(self, device: str, job: Job) -> list[Effect]:
        begin = job.begin
        channel = self._sessions[device].channel
        place = self._place(job, channel.secret)
        job.waiting = place is None
        if place is None:
            return []
        return [Middle(device, channel.session, begin.job, begin, job.opening, start=place)]

    def _place(self, job: Job, secret: bytes) -> MiddleStart | None:
        """Where the middle starts; None while the adapter is not there yet."""
        begin = job.begin
        if isinstance(begin, Assess):
            anchor = self._commits.get(begin.commit)
            if anchor is None:
                return None
            return MiddleStart(anchor, anchor, begin.front, begin.back, 0.0, 0.0, None, secret)
        found = self._versions.get(begin.version)
        if found is None:
            return None
        job.base = begin.version, found.sha256
        start = found.theta if job.on_top is None else found.theta + job.on_top
        mu = from_double(begin.mu)
        return MiddleStart(found.theta, start, begin.front, begin.back, mu, found.progress, job.state, secret)

    def _assessed(self, device: str, job: Job, head: Message, tensor: bytes) -> list[Effect]:
        """A frame of an evaluation."""
        session = self._sessions[device]
        match head:
            case Look() if job.begun and head.micro not in job.looked:
                job.looked.add(head.micro)
                return [Middle(device, session.channel.session, head.job, head, tensor)]
            case Finish() if job.begun:
                session.job = None
                finished = self._send(device, Finished(job=head.job))
                return [MiddleDrop(device), finished, self._traffic(session)]
            case _:
                raise Refused(Reason.BAD_FRAME, f"{head.kind} in an evaluation after {len(job.looked)} looks")

    def _work(self, device: str, job: Job, head: Message, tensor: bytes) -> list[Effect]:
        if isinstance(job.begin, Assess):
            return self._assessed(device, job, head, tensor)
        session = self._sessions[device].channel.session
        due, scale, last = job.take(head)
        if isinstance(head, Finish):
            tensor = b""
        return [Middle(device, session, job.begin.job, head, tensor, due, scale, last)]

    def _done(self, done: MiddleDone) -> list[Effect]:
        task = done.task
        session = self._sessions.get(task.device)
        if session is None or session.channel.session != task.session:
            return []
        job = session.job
        if job is None or job.begin.job != task.job:
            return []
        if done.fault is not None:
            return self._declined(task.device, task.job, done.fault)
        match task.head:
            case Begin() | Assess():
                job.begun = True
                return [self._send(task.device, Begun(job=task.job))]
            case Forward():
                head = Output(job=task.job, step=task.head.step, micro=task.head.micro)
                return [self._send(task.device, head, done.tensor)]
            case Look():
                return [self._send(task.device, Looked(job=task.job, micro=task.head.micro), done.tensor)]
            case Backward():
                gradient = Gradient(
                    job=task.job, step=task.head.step, micro=task.head.micro,
                    last=task.last, norm2=to_double(done.norm2),
                )  # fmt: skip
                return [self._send(task.device, gradient, done.tensor)]
            case _:
                if done.moved is None or done.state is None or not isinstance(job.begin, Begin):
                    raise ProtocolError(f"job {task.job} of {task.device} ended without an update")
                kept = self.kept[task.device]
                kept.moved[task.job], kept.states[task.job] = done.moved, done.state
                kept.bases[task.job] = job.base
                for earlier in [
                    earlier for earlier in kept.states if earlier not in (task.job, job.begin.after)
                ]:
                    del kept.states[earlier]
                session.job = None
                finished = self._send(task.device, Finished(job=task.job))
                return [Save(), finished, self._traffic(session)]

    @staticmethod
    def _traffic(session: _Session) -> Effect:
        """What a device and this edge sent each other since the last time."""
        up, down = session.channel.taken_bytes, session.channel.sent_bytes
        before, session.told = session.told, (up, down)
        return note("split-bytes", up=up - before[0], down=down - before[1])

    def _model(self, message: Model, payload: bytes) -> list[Effect]:
        if self._versions and message.version <= max(self._versions):
            return []
        if len(payload) != 4 * self.dim * (1 + message.anchored):
            raise ProtocolError(
                f"model version {message.version} is not what it says of itself: it has {len(payload)} bytes"
            )
        vectors = np.frombuffer(payload, "<f4")
        theta, anchor = vectors[: self.dim], vectors[self.dim :]
        if hashlib.sha256(theta.tobytes()).digest() != message.sha256:
            raise ProtocolError(f"model version {message.version} is not what it says of itself")
        progress = message.progress_ppm / MILLION
        self._versions[message.version] = Version(theta, message.sha256, message.pace, progress)
        while len(self._versions) > VERSIONS:
            del self._versions[min(self._versions)]
        if message.anchored:
            self._commits[message.commit] = anchor
            while len(self._commits) > COMMITS:
                del self._commits[min(self._commits)]
        effects: list[Effect] = []
        for device, session in self._sessions.items():
            if session.job is not None and session.job.waiting:
                begin = session.job.begin
                found = self._versions.get(begin.version) if isinstance(begin, Begin) else None
                foreign = isinstance(begin, Begin) and found is not None and not found.trains(begin)
                if self._too_late(begin) or foreign:
                    effects += self._declined(device, begin.job, Decline.UNKNOWN_VERSION)
                else:
                    effects += self._put_in_place(device, session.job)
        return effects

    # ---- windows ---------------------------------------------------------------------------------

    def _was_derived(self, message: Derived) -> list[Effect]:
        known = self._derived.get(message.version)
        if known is not None and known != message.sha256:
            raise ProtocolError(f"the gate derived version {message.version} with two digests")
        self._derived[message.version] = message.sha256
        while len(self._derived) > DERIVED:
            del self._derived[min(self._derived)]
        return self._release()

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
        total, norm2 = self._sum(counted)
        for member in members:  # what was in a window is spent, whether its part goes out or not
            if member.device in self.kept:
                self.kept[member.device].forget(member.jobs)
        if not counted:
            kept_back = note("part-kept-back", window=number, devices=len(members))
            return [kept_back, Save()] if members else []
        payload = total.astype("<i4").tobytes()
        part = EdgePart(
            window=number,
            devices=tuple(member.device for member in counted),
            norm2=norm2,
            payload=Payload.of(payload, b"part %d %s" % (number, self.name.encode())),
        )
        return [
            Save(),
            Publish("parts", part, number, payload),
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

    def _hidden(self, members: Sequence[Member]) -> list[tuple[Member, F32]]:
        """What each member's middle moved by, float32[d], 0 in blocks that too few of them move.

        Devices that are cut elsewhere leave other blocks to the edge: each block is a sum of its own, with a floor of
        its own.
        """
        found: list[tuple[Member, F32]] = []
        for member in members:
            moved = self.kept[member.device].sum_of(member.jobs)
            if moved is not None:
                found.append((member, moved.copy()))
        for places in self._blocks.values():
            movers = [one for one in found if any(one[1][place].any() for place in places)]
            if movers and not releasable([member.weight for member, _ in movers], self.manifest.secure):
                for _, moved in movers:
                    for place in places:
                        moved[place] = 0.0
        return found

    def _sum(self, members: Sequence[Member]) -> tuple[NDArray[np.int64], int]:
        """Σ round(w/W · clip(Δ) · 2**scale_bits) of these members, int64[d], and Σ w‖Δ‖² in units of 2**-32."""
        secure = self.manifest.secure
        total, norm2 = np.zeros(self.dim, np.int64), 0
        for member, moved in self._hidden(members):
            clipped = self._codec.clip(moved)
            total += signed(
                self._codec.encode(clipped, member.weight, secure.weight_max, self.entropy.token(32))
            )
            square = float(np.dot(clipped.astype(np.float64), clipped.astype(np.float64)))
            norm2 += round(member.weight * square * NORM_UNIT)
        return total, norm2

    # ---- snapshots -------------------------------------------------------------------------------

    def facts(self) -> bytes:
        """The small part of a snapshot."""
        window, newest = self._open, max(self._versions, default=None)
        return bytes(
            msgpack.packb(
                [
                    self.ended,
                    self._window,
                    None
                    if window is None
                    else [window.cohort.encode(), [decision.encode() for decision in window.decisions]],
                    sorted(self._derived.items()),
                    None if newest is None else [newest, *self._versions[newest].facts()],
                    [[device, kept.facts()] for device, kept in sorted(self.kept.items())],
                ]
            )
        )

    def held(self) -> dict[str, F32 | bytes]:
        """The large parts of a snapshot by name, each an object that is replaced when it changes.

        They are the newest adapter, those of the newest commits, and of every device its jobs' updates and moments.
        """
        newest = max(self._versions, default=None)
        found: dict[str, F32 | bytes] = {}
        if newest is not None:
            found["theta"] = self._versions[newest].theta
        found |= {f"commit {commit}": anchor for commit, anchor in self._commits.items()}
        for device, kept in self.kept.items():
            found |= {f"moved {device} {job}": moved for job, moved in kept.moved.items()}
            found |= {f"state {device} {job}": state for job, state in kept.states.items()}
        return found

    def vectors(self) -> dict[str, bytes]:
        """Those parts as bytes."""
        return {name: packed(part) for name, part in sorted(self.held().items())}

    def restore(self, facts: bytes, vectors: Mapping[str, bytes]) -> None:
        """Take a snapshot over. Sessions are not in it."""
        self.ended, self._window, window, derived, newest, kept = msgpack.unpackb(facts)
        self._derived = dict(derived)
        self._open = None
        if window is not None:
            cohort, decisions = window
            self._open = EdgeWindow(Cohort.decode(cohort), self.manifest, self.roster, self.name, self.dim)
            for kind, decision in zip(ORDER, decisions, strict=False):
                self._open.take(kind.decode(decision))
        if newest is not None:
            version, *said = newest
            self._versions = {version: Version.of(np.frombuffer(vectors["theta"], "<f4"), said)}
        self.kept = {device: Kept.of(said) for device, said in kept}
        self._commits = {}
        for name, data in vectors.items():
            match name.split(" "):
                case ["commit", commit]:
                    self._commits[int(commit)] = np.frombuffer(data, "<f4")
                case ["moved", device, job]:
                    self.kept[device].moved[int(job)] = np.frombuffer(data, "<f4")
                case ["state", device, job]:
                    self.kept[device].states[int(job)] = data


def changes(before: Mapping[str, object], now: Mapping[str, F32 | bytes]) -> dict[str, bytes | None]:
    """What has to be stored of `now` where `before` is stored: parts that are other objects; None for what is gone."""
    gone: dict[str, bytes | None] = dict.fromkeys(before.keys() - now.keys())
    return gone | {name: packed(part) for name, part in now.items() if before.get(name) is not part}


def packed(part: F32 | bytes) -> bytes:
    """A large part of a snapshot as it is stored."""
    return part if isinstance(part, bytes) else part.astype("<f4", copy=False).tobytes()
