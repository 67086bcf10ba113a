"""A device's side of split training: the session with its edge, and the job or evaluation that is under way in it.

The core decides what is sent, in which order, and what counts; tensors are bytes to it, and the shell computes.
Whatever breaks ends the job, and nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from echelon.errors import ProtocolError
from echelon.jobs.device_part import DeviceDone, DeviceTask
from echelon.jobs.training import Abandoned, Evaluate, Evaluated, TrainJob, TrainOutcome
from echelon.laws.channel import Parties
from echelon.messages.split import SplitAccept, SplitFrame
from echelon.messages.wire import Refused
from echelon.rounds.device.split_job import (
    NeedSession,
    Outcome,
    SharedEvaluation,
    SharedJob,
    SharedTraining,
    Step,
)
from echelon.rounds.device.split_session import (
    BAD_ANSWER,
    BROKEN,
    NO_ANSWER,
    OPEN_TIMER,
    DeviceSession,
    EdgeLost,
    answer_timer,
)
from echelon.rounds.effects import Effect, Incoming, Refuse, StopTimer, TimerFired
from echelon.secagg.entropy import Entropy


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEnded:
    """The job or evaluation under way is over.

    Attributes:
        job: its number.
        edge: with whom it was.
        what: the kind of work, for people.
        outcome: what it came to.
        why: why it was given up; empty: it was not.
        detail: what was wrong with an answer of the edge's, for people.
    """

    job: int
    edge: str
    what: str
    outcome: Outcome
    why: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LetGo:
    """Pieces of work that are under way are worth nothing any more: nothing comes of them."""


SplitEffect = Effect | DeviceTask | JobEnded | LetGo


class DeviceSplitCore:
    """The state machine. `begin` and `handle` return effects and never wait; `now` is a time in seconds.

    Args:
        device: the device's name.
        slot: its partition.
        parties: names the parties of a channel, given the edge.
        entropy: of session keys.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, *, device: str, slot: int, parties: Callable[[str], Parties], entropy: Entropy, timeout: float
    ) -> None:
        self._session = DeviceSession(
            device=device, slot=slot, parties=parties, entropy=entropy, timeout=timeout
        )
        self._job: SharedJob | None = None

    def knows(self, edge: str, session: bytes) -> bool:
        """Whether that is the session under way, and with that edge."""
        return self._session.knows(edge, session)

    def begin(self, work: TrainJob | Evaluate, now: float) -> list[SplitEffect]:
        """Begin a job or an evaluation; `JobEnded` says what it came to.

        Raises:
            ProtocolError: another one is under way, or it names no edge.
        """
        if self._job is not None:
            raise ProtocolError(f"{self._job.what} {self._job.number} is still under way")
        if isinstance(work, Evaluate):
            job: SharedJob = SharedEvaluation(work, self._session)
        elif work.split is not None:
            job = SharedTraining(work, work.split, self._session)
        else:
            raise ProtocolError("a job without an edge is not trained with one")
        self._job = job
        return self._go_on(job, job.begin(), now)

    def handle(self, event: Incoming | DeviceDone | TimerFired, now: float) -> list[SplitEffect]:
        """Take a record of `split.down`, what came of a piece of work, or a timer that ran out."""
        match event:
            case Incoming():
                return self._record(event, now)
            case DeviceDone():
                return self._done(event, now)
            case TimerFired():
                return self._timer(event.name, now)

    # ---- records ---------------------------------------------------------------------------------

    def _record(self, event: Incoming, now: float) -> list[SplitEffect]:
        message = event.message
        if isinstance(message, SplitAccept):
            return self._accepted(event, message, now)
        return self._framed(event, message, now) if isinstance(message, SplitFrame) else []

    def _accepted(self, event: Incoming, message: SplitAccept, now: float) -> list[SplitEffect]:
        try:
            accepted = self._session.accepted(event, message)
        except Refused as refused:
            return [Refuse(refused.reason, refused.detail)]
        if not accepted:
            return []
        opened = [] if self._job is None else self._go_on(self._job, self._job.start(), now)
        return [StopTimer(OPEN_TIMER), *opened]

    def _framed(self, event: Incoming, message: SplitFrame, now: float) -> list[SplitEffect]:
        try:
            answer = self._session.take(event, message)
        except Refused as refused:
            # A job that waits for no answer goes on until it asks for the next one.
            lost = self._session.waits
            effects: list[SplitEffect] = [*self._session.close()]
            if lost:
                effects += self._lost(BROKEN)
            return [*effects, Refuse(refused.reason, refused.detail)]
        except EdgeLost as declined:
            return self._lost(declined.why) if self._session.waits else []
        job = self._job
        if answer is None or job is None:
            return []
        stop = StopTimer(answer_timer(answer.question))
        try:
            return [stop, *self._go_on(job, job.answered(answer, now), now)]
        except EdgeLost as lost_edge:
            return [stop, *self._lost(lost_edge.why)]
        except Refused as refused:
            return [stop, *self._session.close(), *self._lost(BAD_ANSWER, str(refused))]

    # ---- work and timers -------------------------------------------------------------------------

    def _done(self, done: DeviceDone, now: float) -> list[SplitEffect]:
        job = self._job
        if job is None or done.task.job != job.number:
            return []
        if done.fault:
            return [*self._session.close(), *self._lost(BAD_ANSWER, done.fault)]
        try:
            return self._go_on(job, job.done(done, now), now)
        except EdgeLost as lost:
            return self._lost(lost.why)

    def _open(self, job: SharedJob, now: float) -> list[SplitEffect]:
        """Go on in a session with the job's edge; a new one is asked for where none is open."""
        if self._session.is_open(job.edge):
            return self._go_on(job, job.start(), now)
        return [*self._session.open(job.edge, now)]

    def _timer(self, name: str, now: float) -> list[SplitEffect]:
        try:
            if name == OPEN_TIMER:
                return [*self._session.unaccepted(now)]
        except EdgeLost as lost:
            return self._lost(lost.why)
        if not self._session.waits_for(name):
            return []
        return [*self._session.close(), *self._lost(NO_ANSWER)]

    # ---- the end ---------------------------------------------------------------------------------

    def _go_on(self, job: SharedJob, steps: list[Step], now: float) -> list[SplitEffect]:
        effects: list[SplitEffect] = []
        for step in steps:
            if isinstance(step, TrainOutcome | Abandoned | Evaluated):
                self._job = None
                effects.append(JobEnded(job=job.number, edge=job.edge, what=job.what, outcome=step))
            elif isinstance(step, NeedSession):
                effects += self._open(job, now)
            else:
                effects.append(step)
        return effects

    def _lost(self, why: str, detail: str = "") -> list[SplitEffect]:
        """Give up what is under way; the session stays unless it was closed."""
        job, self._job = self._job, None
        effects: list[SplitEffect] = [*self._session.forget()]
        if job is None:
            return effects
        ended = JobEnded(
            job=job.number, edge=job.edge, what=job.what, outcome=job.given_up(why), why=why, detail=detail
        )
        return [*effects, LetGo(), ended]
