"""What an edge does for the jobs of its devices: it checks each, hands its work on, and keeps its update."""

from __future__ import annotations

from collections.abc import Callable

from echelon.errors import ProtocolError
from echelon.messages.boundary import Model
from echelon.messages.frames import (
    Assess,
    Backward,
    Begin,
    Begun,
    Decline,
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
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.edge.adapters import EdgeAdapters
from echelon.rounds.edge.frame_order import MiddleJob
from echelon.rounds.edge.kept import MAX_KEPT, KeptJobs
from echelon.rounds.edge.sessions import EdgeSession, EdgeSessions, Heard
from echelon.rounds.effects import EdgeDone, EdgeDrop, EdgeTask, Effect, Refuse, Save

Cuts = Callable[[int, int], bool]
"""Whether an edge can take a device's cut: (p, q)."""


class EdgeJobs:
    """The jobs and evaluations that are under way with an edge's devices.

    Args:
        sessions: the edge's sessions.
        adapters: what jobs start from.
        kept: what the edge keeps of each device.
        cuts: whether the edge can take a cut.
        awaited: jobs of a device that the window under way may still ask for.
    """

    def __init__(
        self,
        *,
        sessions: EdgeSessions,
        adapters: EdgeAdapters,
        kept: dict[str, KeptJobs],
        cuts: Cuts,
        awaited: Callable[[str], tuple[int, ...]],
    ) -> None:
        self._sessions, self._adapters, self._kept = sessions, adapters, kept
        self._cuts, self._awaited = cuts, awaited

    def said(self, device: str, heard: Heard) -> list[Effect]:
        """Take what a device said in its session."""
        head, session = heard.head, heard.session
        job = getattr(head, "job", -1)
        if isinstance(head, Begin | Assess):
            return self._begin(device, session, head, heard.tensor)
        if session.job is None or session.job.begin.job != job:
            return []  # of a job that was given up: the device was told, or hears nothing and gives up too
        try:
            return self._work(device, session, session.job, heard)
        except Refused as refused:
            return [
                *self._sessions.decline(device, job, Decline.BAD_FRAME),
                Refuse(refused.reason, f"{device}: {refused.detail}"),
            ]

    def _begin(
        self, device: str, session: EdgeSession, begin: Begin | Assess, opening: bytes
    ) -> list[Effect]:
        """A job or an evaluation is asked for: it is checked whole before anything of it is kept."""
        effects = self._sessions.drop_job(device)
        try:
            reason = self._fault(device, session, begin)
        except Refused as refused:
            return [
                *effects,
                *self._sessions.decline(device, begin.job, Decline.BAD_FRAME),
                Refuse(refused.reason, f"{device}: {refused.detail}"),
            ]
        if reason is not None:
            return [*effects, *self._sessions.decline(device, begin.job, reason)]
        session.newest, session.job = begin.job, MiddleJob(begin, opening)
        if isinstance(begin, Begin):
            kept = self._kept.setdefault(device, KeptJobs())
            named = {*begin.on_top, *self._awaited(device)}
            # Merged, lost or given up: the device says what it still counts on.
            kept.forget([job for job in kept.moved if job not in named])
            session.job.on_top = kept.sum_of(begin.on_top)
            # From another edge, or after a loss, there are none: the middle's moments begin anew.
            session.job.state = kept.states.get(begin.after)
        return [*effects, *self._put_in_place(device, session, session.job)]

    def _fault(self, device: str, session: EdgeSession, begin: Begin | Assess) -> Decline | None:
        """Why a job cannot begin; None if nothing speaks against it.

        Raises:
            Refused: its number was used in this session, or its μ is no number.
        """
        if begin.job <= session.newest:
            raise Refused(Reason.BAD_FRAME, f"job {begin.job} after job {session.newest} of one session")
        if not self._cuts(begin.front, begin.back):
            return Decline.BAD_CUT
        if isinstance(begin, Begin):
            from_double(begin.mu)
            kept, awaited = self._kept.get(device) or KeptJobs(), self._awaited(device)
            if any(job not in kept.moved for job in begin.on_top) or begin.job in {*begin.on_top, *awaited}:
                return Decline.UNKNOWN_JOB
            if len({*begin.on_top, *awaited}) >= MAX_KEPT:
                return Decline.TOO_MANY_JOBS
        return Decline.UNKNOWN_VERSION if self._adapters.refuses(begin) else None

    def _put_in_place(self, device: str, session: EdgeSession, job: MiddleJob) -> list[Effect]:
        channel = session.channel
        place = self._adapters.place(job, channel.secret)
        job.waiting = place is None
        if place is None:
            return []
        return [
            EdgeTask(
                device=device, session=channel.session, job=job.begin.job, head=job.begin, tensor=job.opening,
                start=place,
            )
        ]  # fmt: skip

    def _work(self, device: str, session: EdgeSession, job: MiddleJob, heard: Heard) -> list[Effect]:
        """A frame of a job or an evaluation that is under way."""
        head, tensor = heard.head, heard.tensor
        if isinstance(job.begin, Assess):
            return self._assessed(device, session, job, heard)
        due, scale, last = job.take(head)
        if isinstance(head, Finish):
            tensor = b""
        return [
            EdgeTask(
                device=device, session=session.channel.session, job=job.begin.job, head=head, tensor=tensor,
                step=due, scale=scale, last=last,
            )
        ]  # fmt: skip

    def _assessed(self, device: str, session: EdgeSession, job: MiddleJob, heard: Heard) -> list[Effect]:
        """A frame of an evaluation."""
        match heard.head:
            case Look() as head if job.begun and head.micro not in job.looked:
                job.looked.add(head.micro)
                return [
                    EdgeTask(
                        device=device,
                        session=session.channel.session,
                        job=head.job,
                        head=head,
                        tensor=heard.tensor,
                    )
                ]
            case Finish() as head if job.begun:
                session.job = None
                finished = self._sessions.send(device, Finished(job=head.job))
                return [EdgeDrop(device), finished, session.traffic()]
            case head:
                raise Refused(Reason.BAD_FRAME, f"{head.kind} in an evaluation after {len(job.looked)} looks")

    def done(self, done: EdgeDone) -> list[Effect]:
        """Take what came of work on a middle.

        Raises:
            ProtocolError: a job ended without an update.
        """
        task = done.task
        session = self._sessions.live.get(task.device)
        if session is None or session.channel.session != task.session:
            return []
        job = session.job
        if job is None or job.begin.job != task.job:
            return []
        if done.fault is not None:
            return self._sessions.decline(task.device, task.job, done.fault)
        match task.head:
            case Begin() | Assess():
                job.begun = True
                answer: Message = Begun(job=task.job)
            case Forward():
                answer = Output(job=task.job, step=task.head.step, micro=task.head.micro)
            case Look():
                answer = Looked(job=task.job, micro=task.head.micro)
            case Backward():
                answer = Gradient(
                    job=task.job, step=task.head.step, micro=task.head.micro,
                    last=task.last, norm2=to_double(done.norm2),
                )  # fmt: skip
            case _:
                return self._finished(session, job, done)
        return [self._sessions.send(task.device, answer, done.tensor)]

    def _finished(self, session: EdgeSession, job: MiddleJob, done: EdgeDone) -> list[Effect]:
        """A job's middle is trained: it is stored before its device hears of it."""
        task, begin = done.task, job.begin
        if done.moved is None or done.state is None or not isinstance(begin, Begin):
            raise ProtocolError(f"job {task.job} of {task.device} ended without an update")
        self._kept[task.device].keep(
            task.job, moved=done.moved, state=done.state, base=job.base, after=begin.after
        )
        session.job = None
        finished = self._sessions.send(task.device, Finished(job=task.job))
        return [Save(), finished, session.traffic()]

    def model(self, message: Model, payload: bytes) -> list[Effect]:
        """Take adapters; jobs that waited for them begin, or are declined.

        Raises:
            ProtocolError: the payload is not what the record says of it.
        """
        effects: list[Effect] = []
        if not self._adapters.take(message, payload):
            return effects
        for device, session in self._sessions.live.items():
            if session.job is not None and session.job.waiting:
                begin = session.job.begin
                if self._adapters.refuses(begin):
                    effects += self._sessions.decline(device, begin.job, Decline.UNKNOWN_VERSION)
                else:
                    effects += self._put_in_place(device, session, session.job)
        return effects
