"""An edge's side of split training: sessions, jobs whose middle blocks it trains, and what it adds to a window.

The core decides what is taken, in which order, and what counts; tensors are bytes to it, and the shell computes. A job
happens whole or not at all: its middle update is stored before the device hears that it is, and whatever breaks before
leaves nothing. A job is in at most one part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import msgpack
import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.messages.boundary import Cohort, End, Heartbeat, Model, Void, Window
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
from echelon.messages.handshake import Included, Signatures
from echelon.messages.manifest import MILLION, RunManifest
from echelon.messages.split import EdgePart, SplitAccept, SplitFrame, SplitOpen, SplitPing, SplitPong
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.channel import Channel, ChannelBroken, Parties, edge_channel
from echelon.rounds.cohort import context_of, releasable
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

F32 = NDArray[np.float32]
BEAT, IDLE = "beat", "idle"
NORM_UNIT = 1 << 32
VERSIONS = 4
"""Newest versions of the boundary adapter that a job may start from."""
COMMITS = 2
"""Newest commits whose adapters may be evaluated."""

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
class _Job:
    """A job or an evaluation that is under way; never stored."""

    begin: Begin | Assess
    opening: bytes = b""
    """What came with it, for whoever computes."""
    waiting: bool = False
    """Whether it waits for the adapter that it starts from."""
    begun: bool = False
    step: int = -1
    count: int = 0
    forwarded: set[int] = field(default_factory=set)
    backwarded: set[int] = field(default_factory=set)
    looked: set[int] = field(default_factory=set)
    finishing: bool = False

    @property
    def stepped(self) -> bool:
        """Whether every micro-batch of the step is through."""
        return len(self.backwarded) == self.count


@dataclass(slots=True)
class _Session:
    channel: Channel
    accept: SplitAccept
    """What opened it: asked again, the edge says it again."""
    job: _Job | None = None
    told: tuple[int, int] = (0, 0)
    """Bytes taken and sent that the metrics know of."""
    heard: bool = True
    """Whether a frame came since the last look."""

    def answers(self, message: SplitOpen) -> bool:
        """Whether this is the session that is asked for."""
        return (self.accept.session, self.accept.device_public) == (message.session, message.public)


@dataclass(slots=True)
class Kept:
    """What an edge keeps of one device, across sessions and restarts."""

    states: dict[int, bytes] = field(default_factory=dict)
    """AdamW moments of its middle after its newest jobs, by job: it may go on from the one before the newest."""
    moved: dict[int, F32] = field(default_factory=dict)
    """By job: where its middle moved, float32[d], 0 outside."""


@dataclass
class EdgeCore:
    """The state machine. `handle` takes one event and returns effects; it never waits."""

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
        self._sessions: dict[str, _Session] = {}
        self._versions: dict[int, tuple[F32, float]] = {}
        """Base and progress of the newest versions."""
        self._commits: dict[int, F32] = {}
        """The global adapters of the newest commits."""
        self._cohort: Cohort | None = None
        self._included: frozenset[str] | None = None
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
        """Whether the device has a session with this edge."""
        return device in self._sessions

    def knows(self, device: str, session: bytes) -> bool:
        """Whether that is the device's session."""
        found = self._sessions.get(device)
        return found is not None and found.channel.session == session

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
        effects: list[Effect] = []
        for device, session in self._sessions.items():
            if not session.heard and session.job is not None and not session.job.finishing:
                session.job = None
                effects += [MiddleDrop(device), note("split-idle", device=device)]
            session.heard = False
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
            case Cohort():
                return self._formed(message)
            case Included():
                if self._cohort is not None and message.window == self._cohort.window:
                    self._included = frozenset(entry.device for entry in message.entries)
                return []
            case Signatures():
                return self._release(message)
            case Window() | Void():
                if self._cohort is not None and message.window >= self._cohort.window:
                    self._cohort = self._included = None
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
        known = self._sessions.get(device)
        if known is not None and known.answers(message) and message.edge == self.name:
            return [self._answer(device, known.accept)]
        effects = self._dropped(device)
        if message.edge != self.name:
            self._sessions.pop(device, None)
            return effects
        key = AgreementKey(self.entropy.token(32))
        channel = edge_channel(self._parties(device), message.session, key, message.public)
        accept = SplitAccept(
            device=device, session=message.session, device_public=message.public, public=key.public
        )
        self._sessions[device] = _Session(channel, accept)
        return [*effects, self._answer(device, accept), note("split-session", device=device)]

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
        session = self._sessions.get(device)
        if session is None or session.channel.session != message.session:
            return []  # another edge's, or of a session that is over
        session.heard = True
        try:
            found = session.channel.open(message, payload)
        except (ChannelBroken, Refused) as error:
            effects = self._dropped(device)
            del self._sessions[device]
            reason = error.reason if isinstance(error, Refused) else Reason.OUT_OF_ORDER
            return [*effects, Refuse(reason, f"{device}: {error}")]
        if found is None:
            return []
        head, tensor = found
        job = getattr(head, "job", -1)
        if isinstance(head, Begin):
            return self._begin(device, session, head, tensor)
        if isinstance(head, Assess):
            return self._assess(device, session, head, tensor)
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

    def _begin(self, device: str, session: _Session, begin: Begin, opening: bytes) -> list[Effect]:
        effects = self._dropped(device)
        kept = self.kept.setdefault(device, Kept())
        if not self.cuts(begin.front, begin.back):
            return [*effects, *self._declined(device, begin.job, Decline.BAD_CUT)]
        if any(job not in kept.moved for job in begin.on_top) or begin.job in begin.on_top:
            return [*effects, *self._declined(device, begin.job, Decline.UNKNOWN_JOB)]
        if self._too_late(begin):
            return [*effects, *self._declined(device, begin.job, Decline.UNKNOWN_VERSION)]
        named = {*begin.on_top, *self._awaited(device)}
        for job in [job for job in kept.moved if job not in named]:
            del kept.moved[job]  # merged, lost or given up: the device says what it still counts on
        session.job = _Job(begin, opening)
        return [*effects, *self._put_in_place(device, session.job)]

    def _assess(self, device: str, session: _Session, assess: Assess, opening: bytes) -> list[Effect]:
        effects = self._dropped(device)
        if not self.cuts(assess.front, assess.back):
            return [*effects, *self._declined(device, assess.job, Decline.BAD_CUT)]
        if self._too_late(assess):
            return [*effects, *self._declined(device, assess.job, Decline.UNKNOWN_VERSION)]
        session.job = _Job(assess, opening)
        return [*effects, *self._put_in_place(device, session.job)]

    def _too_late(self, head: Begin | Assess) -> bool:
        """Whether the adapter that it starts from is gone; one that is still to come is waited for."""
        if isinstance(head, Begin):
            return bool(self._versions) and head.version < min(self._versions)
        return bool(self._commits) and head.commit not in self._commits and head.commit < max(self._commits)

    def _awaited(self, device: str) -> tuple[int, ...]:
        """Jobs of the device that the window under way may still ask for."""
        if self._cohort is None:
            return ()
        return next((member.jobs for member in self._cohort.members if member.device == device), ())

    def _put_in_place(self, device: str, job: _Job) -> list[Effect]:
        begin = job.begin
        channel = self._sessions[device].channel
        place = self._place(device, begin, channel.secret)
        job.waiting = place is None
        if place is None:
            return []
        return [Middle(device, channel.session, begin.job, begin, job.opening, start=place)]

    def _place(self, device: str, begin: Begin | Assess, secret: bytes) -> MiddleStart | None:
        """Where the middle starts; None while the adapter is not there yet."""
        if isinstance(begin, Assess):
            anchor = self._commits.get(begin.commit)
            if anchor is None:
                return None
            return MiddleStart(anchor, anchor, begin.front, begin.back, 0.0, 0.0, None, secret)
        found = self._versions.get(begin.version)
        if found is None:
            return None
        base, progress = found
        kept = self.kept[device]
        start = base
        for earlier in begin.on_top:
            start = start + kept.moved[earlier]
        # From another edge, or after a loss, there are none: the middle's moments begin anew.
        state = kept.states.get(begin.after)
        return MiddleStart(
            base, start, begin.front, begin.back, from_double(begin.mu), progress, state, secret
        )

    def _assessed(self, device: str, job: _Job, head: Message, tensor: bytes) -> list[Effect]:
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

    def _work(self, device: str, job: _Job, head: Message, tensor: bytes) -> list[Effect]:
        if isinstance(job.begin, Assess):
            return self._assessed(device, job, head, tensor)
        session = self._sessions[device].channel.session
        number, steps = job.begin.job, job.begin.steps
        match head:
            case Forward() if job.begun and head.step == job.step + 1 < steps and job.stepped:
                due = job.step >= 0
                job.step, job.count = head.step, head.count
                job.forwarded, job.backwarded = set(), set()
                if head.micro >= head.count:
                    raise Refused(Reason.BAD_FRAME, f"micro-batch {head.micro} of {head.count}")
                job.forwarded.add(head.micro)
                return [Middle(device, session, number, head, tensor, due, from_double(head.scale))]
            case Forward() if (
                job.begun
                and (head.step, head.count) == (job.step, job.count)
                and head.micro < job.count
                and head.micro not in job.forwarded
            ):
                job.forwarded.add(head.micro)
                return [Middle(device, session, number, head, tensor)]
            case Backward() if (
                head.step == job.step and head.micro in job.forwarded and head.micro not in job.backwarded
            ):
                job.backwarded.add(head.micro)
                return [Middle(device, session, number, head, tensor, last=job.stepped)]
            case Look() if (
                job.step == steps - 1 and job.stepped and not job.finishing and head.micro not in job.looked
            ):
                due = not job.looked
                job.looked.add(head.micro)
                return [Middle(device, session, number, head, tensor, due, from_double(head.scale))]
            case Finish() if job.step == steps - 1 and job.stepped and not job.finishing:
                job.finishing = True
                due = not job.looked
                return [Middle(device, session, number, head, step=due, scale=from_double(head.scale))]
            case _:
                raise Refused(
                    Reason.BAD_FRAME,
                    f"{head.kind} at step {job.step} of {steps}, with {len(job.forwarded)} micro-batches",
                )

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
        theta = np.frombuffer(payload, "<f4")[: self.dim]
        anchor = np.frombuffer(payload, "<f4")[self.dim :]
        sizes = (theta.size, anchor.size)
        if (
            sizes != (self.dim, self.dim * message.anchored)
            or hashlib.sha256(theta.tobytes()).digest() != message.sha256
        ):
            raise ProtocolError(f"model version {message.version} is not what it says of itself")
        self._versions[message.version] = (theta, message.progress_ppm / MILLION)
        while len(self._versions) > VERSIONS:
            del self._versions[min(self._versions)]
        if message.anchored:
            self._commits[message.commit] = anchor
            while len(self._commits) > COMMITS:
                del self._commits[min(self._commits)]
        effects: list[Effect] = []
        for device, session in self._sessions.items():
            if session.job is not None and session.job.waiting:
                if self._too_late(session.job.begin):
                    effects += self._declined(device, session.job.begin.job, Decline.UNKNOWN_VERSION)
                else:
                    effects += self._put_in_place(device, session.job)
        return effects

    # ---- windows ---------------------------------------------------------------------------------

    def _formed(self, message: Cohort) -> list[Effect]:
        if message.window < self._window:
            return []
        context_of(message, self.manifest, self.dim)
        self._cohort, self._included = message, None
        return []

    def _release(self, message: Signatures) -> list[Effect]:
        """The included set is signed: add up the middles of this edge's devices, once."""
        cohort, included = self._cohort, self._included
        if cohort is None or included is None or message.window != cohort.window:
            return []
        self._window = cohort.window + 1
        self._cohort = self._included = None
        secure = self.manifest.secure
        total = np.zeros(self.dim, np.int64)
        norm2, weights, devices = 0, [], []
        for member in cohort.members:
            kept = self.kept.get(member.device)
            if member.edge != self.name or member.device not in included or kept is None:
                continue
            if not member.jobs or any(job not in kept.moved for job in member.jobs):
                continue
            moved = kept.moved[member.jobs[0]]
            for job in member.jobs[1:]:
                moved = moved + kept.moved[job]
            clipped = self._codec.clip(moved)
            total += signed(
                self._codec.encode(clipped, member.weight, secure.weight_max, self.entropy.token(32))
            )
            norm2 += round(
                member.weight
                * float(np.dot(clipped.astype(np.float64), clipped.astype(np.float64)))
                * NORM_UNIT
            )
            weights.append(member.weight)
            devices.append(member.device)
        for member in cohort.members:  # what was in a window is spent, whether its part goes out or not
            if member.edge == self.name and member.device in included and member.device in self.kept:
                for job in member.jobs:
                    self.kept[member.device].moved.pop(job, None)
        if not devices:
            return []
        if not releasable(weights, secure):
            return [note("part-kept-back", window=message.window, devices=len(devices)), Save()]
        payload = total.astype("<i4").tobytes()
        part = EdgePart(
            window=message.window,
            devices=tuple(devices),
            norm2=norm2,
            payload=Payload.of(payload, b"part %d %s" % (message.window, self.name.encode())),
        )
        return [
            Save(),
            Publish("parts", part, message.window, payload),
            note("part", window=message.window, devices=len(devices)),
        ]

    # ---- snapshots -------------------------------------------------------------------------------

    def facts(self) -> bytes:
        """The small part of a snapshot."""
        return bytes(
            msgpack.packb(
                [
                    self.ended,
                    self._window,
                    None if self._cohort is None else self._cohort.encode(),
                    None if self._included is None else sorted(self._included),
                ]
            )
        )

    def vectors(self) -> bytes:
        """The large part: moments and middle updates by device, and the newest adapters."""
        newest = max(self._versions, default=None)
        return bytes(
            msgpack.packb(
                [
                    None
                    if newest is None
                    else [newest, self._versions[newest][0].tobytes(), self._versions[newest][1]],
                    [
                        [
                            device,
                            sorted(kept.states.items()),
                            [[job, moved.tobytes()] for job, moved in sorted(kept.moved.items())],
                        ]
                        for device, kept in sorted(self.kept.items())
                    ],
                    [[commit, anchor.tobytes()] for commit, anchor in sorted(self._commits.items())],
                ]
            )
        )

    def restore(self, facts: bytes, vectors: bytes) -> None:
        """Take a snapshot over. Sessions are not in it."""
        self.ended, self._window, cohort, included = msgpack.unpackb(facts)
        self._cohort = None if cohort is None else Cohort.decode(cohort)
        self._included = None if included is None else frozenset(included)
        newest, kept, commits = msgpack.unpackb(vectors)
        self._commits = {commit: np.frombuffer(anchor, "<f4") for commit, anchor in commits}
        if newest is not None:
            version, theta, progress = newest
            self._versions = {version: (np.frombuffer(theta, "<f4"), progress)}
        self.kept = {
            device: Kept(dict(states), {job: np.frombuffer(moved, "<f4") for job, moved in jobs})
            for device, states, jobs in kept
        }
