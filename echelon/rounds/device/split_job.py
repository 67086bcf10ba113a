"""A job or an evaluation that a device shares with its edge: in which order its pieces come.

A job is driven step by step. Within a step some of its micro-batches run beside each other, so that the device computes
one while others are on the way or with the edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from echelon.jobs.device_part import (
    Back,
    DeviceDone,
    DeviceTask,
    FinishPart,
    Front,
    FrontBackward,
    JudgeBatch,
    Placed,
    ReadEvaluation,
    ReadStep,
    ShowBatch,
    StartEvaluation,
    StartTraining,
    TakeStep,
)
from echelon.jobs.training import Abandoned, Evaluate, Evaluated, SplitJob, TrainJob, TrainOutcome
from echelon.messages.frames import (
    Assess,
    Backward,
    Begin,
    Begun,
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
from echelon.messages.wire import Message
from echelon.rounds.device.split_session import BAD_ANSWER, DeviceSession, EdgeAnswer, EdgeLost
from echelon.rounds.effects import Effect

Outcome = TrainOutcome | Abandoned | Evaluated


@dataclass(frozen=True, slots=True)
class NeedSession:
    """The job goes on in an open session with its edge."""


Step = Effect | DeviceTask | NeedSession | Outcome
"""What comes next: something to be sent or timed, a piece of work, a session, or what the job came to."""


class SharedJob(Protocol):
    """What is under way. Each method gives what comes next, or raises `EdgeLost`."""

    @property
    def number(self) -> int:
        """The number of the job or evaluation."""
        ...

    @property
    def edge(self) -> str:
        """Who has the middle."""
        ...

    @property
    def what(self) -> str:
        """The kind of work, for people."""
        ...

    def begin(self) -> list[Step]:
        """Begin before there is a session."""
        ...

    def start(self) -> list[Step]:
        """Go on in a session that is open."""
        ...

    def done(self, done: DeviceDone, now: float) -> list[Step]:
        """Take what came of a piece of work."""
        ...

    def answered(self, answer: EdgeAnswer, now: float) -> list[Step]:
        """Take an answer of the edge."""
        ...

    def given_up(self, why: str) -> Outcome:
        """Say that it is given up."""
        ...


class _InFlight:
    """Batches beside each other, begun in their order.

    Args:
        begin: the work that begins a batch.
    """

    def __init__(self, begin: Callable[[int], DeviceTask]) -> None:
        self._begin = begin
        self._count = self._begun = self._ended = 0

    def fill(self, count: int, places: int) -> list[Step]:
        """Begin the first of `count` batches, `places` of them at most."""
        self._count, self._begun, self._ended = count, 0, 0
        return [step for _ in range(min(count, places)) for step in self._next()]

    def ended(self) -> list[Step]:
        """A batch is through: the next one begins."""
        self._ended += 1
        return self._next()

    @property
    def through(self) -> bool:
        """Whether all batches are."""
        return self._ended == self._count

    def _next(self) -> list[Step]:
        if self._begun == self._count:
            return []
        self._begun += 1
        return [self._begin(self._begun - 1)]


class SharedTraining:
    """A training job whose middle an edge trains; see `SharedJob`.

    Args:
        train: the job.
        split: with whom, and from where.
        session: the device's session.
    """

    what = "job"

    def __init__(self, train: TrainJob, split: SplitJob, session: DeviceSession) -> None:
        self._train, self._split, self._session = train, split, session
        self.number, self.edge = split.job, split.edge
        self._placed = Placed(front=0, back=0, in_flight=1)
        self._step = -1
        self._count = 0
        self._scale = to_double(1.0)
        self._batches = _InFlight(lambda micro: Front(job=self.number, micro=micro))
        self._sent: dict[int, float] = {}
        self._forward: dict[int, float] = {}
        self._norms: list[float] = []

    def begin(self) -> list[Step]:
        """Begin with the session."""
        return [NeedSession()]

    def start(self) -> list[Step]:
        """Put the device's own part in place."""
        self._session.begin(self.number)
        return [StartTraining(job=self.number, train=self._train, secret=self._session.secret)]

    def done(self, done: DeviceDone, now: float) -> list[Step]:
        """Send what the device computed, or go on with the next piece.

        Args:
            done: what came of a piece of work.
            now: the time.
        """
        task = done.task
        match task:
            case StartTraining() if done.placed is not None:
                self._placed = done.placed
                return [*self._session.ask(self._begin_frame(), Begun, done.tensor)]
            case ReadStep():
                self._count, self._norms = done.count, []
                return self._batches.fill(done.count, self._placed.in_flight) or self._step_through()
            case Front():
                self._sent[task.micro] = now
                return self._ask(task.micro, self._forward_frame(task.micro), Output, done.tensor)
            case Back():
                self._sent[task.micro] = now
                backward = Backward(job=self.number, step=self._step, micro=task.micro)
                return self._ask(task.micro, backward, Gradient, done.tensor)
            case FrontBackward():
                effects = self._batches.ended()
                return self._step_through() if self._batches.through else effects
            case TakeStep():
                self._scale = to_double(done.scale)
                return self._next_step()
            case ShowBatch():
                look = Look(job=self.number, micro=task.micro, scale=self._scale)
                return [*self._session.ask(look, Looked, done.tensor, micro=task.micro)]
            case JudgeBatch():
                return self._look(task.micro + 1)
            case FinishPart() if isinstance(done.outcome, TrainOutcome):
                return [done.outcome]
            case _:
                raise TypeError(f"{done!r} is not what comes of a piece of a training job")

    def _ask(self, micro: int, head: Message, kind: type[Message], tensor: bytes) -> list[Step]:
        return [*self._session.ask(head, kind, tensor, step=self._step, micro=micro)]

    def _begin_frame(self) -> Begin:
        split, placed = self._split, self._placed
        return Begin(
            job=split.job, version=split.version, on_top=split.on_top, after=split.after,
            front=placed.front, back=placed.back, mu=to_double(self._train.mu), steps=self._train.steps,
        )  # fmt: skip

    def _forward_frame(self, micro: int) -> Forward:
        return Forward(job=self.number, step=self._step, micro=micro, count=self._count, scale=self._scale)

    def answered(self, answer: EdgeAnswer, now: float) -> list[Step]:
        """Go on with what the edge gave.

        Args:
            answer: what it gave.
            now: the time.

        Raises:
            Refused: a norm is no number.
        """
        match answer.head:
            case Begun():
                return self._next_step()
            case Output() as output:
                self._forward[output.micro] = now - self._sent[output.micro]
                return [Back(job=self.number, micro=output.micro, hidden=answer.tensor)]
            case Gradient() as gradient:
                waited = self._forward.pop(gradient.micro) + now - self._sent.pop(gradient.micro)
                if gradient.last:
                    self._norms.append(from_double(gradient.norm2))
                return [
                    FrontBackward(
                        job=self.number, micro=gradient.micro, gradient=answer.tensor, waited=waited
                    )
                ]
            case Looked() as looked:
                return [JudgeBatch(job=self.number, micro=looked.micro, hidden=answer.tensor)]
            case Finished():
                return [FinishPart(job=self.number)]
            case head:
                raise TypeError(f"{head.kind} answers nothing of a training job")

    def _next_step(self) -> list[Step]:
        self._step += 1
        return [ReadStep(job=self.number)] if self._step < self._train.steps else self._look(0)

    def _step_through(self) -> list[Step]:
        """All micro-batches of the step are through; the middle's norm came with one of them."""
        if len(self._norms) != 1:
            raise EdgeLost(BAD_ANSWER)
        return [TakeStep(job=self.number, norm2=self._norms[0])]

    def _look(self, probe: int) -> list[Step]:
        if probe < self._placed.probes:
            return [ShowBatch(job=self.number, micro=probe)]
        return [*self._session.ask(Finish(job=self.number, scale=self._scale), Finished)]

    def given_up(self, why: str) -> Outcome:
        """Nothing of the job is kept."""
        return Abandoned(self.number, why)


class SharedEvaluation:
    """An evaluation with an edge; see `SharedJob`.

    Args:
        evaluate: the evaluation.
        session: the device's session.
    """

    what = "evaluation"

    def __init__(self, evaluate: Evaluate, session: DeviceSession) -> None:
        self._evaluate, self._session = evaluate, session
        self.number, self.edge = evaluate.job, evaluate.edge
        self._count = 0
        self._outcome: Evaluated | None = None
        self._placed = Placed(front=0, back=0, in_flight=1)
        self._batches = _InFlight(lambda micro: ShowBatch(job=self.number, micro=micro))

    def begin(self) -> list[Step]:
        """Read what is to be evaluated."""
        return [ReadEvaluation(job=self.number, evaluate=self._evaluate)]

    def start(self) -> list[Step]:
        """Put the device's own part in place."""
        self._session.begin(self.number)
        return [StartEvaluation(job=self.number, evaluate=self._evaluate, secret=self._session.secret)]

    def done(self, done: DeviceDone, _now: float) -> list[Step]:
        """Send what the device computed, or go on with the next piece.

        Args:
            done: what came of a piece of work.
        """
        task = done.task
        match task:
            case ReadEvaluation():
                self._count = done.count
                return [NeedSession() if done.count else Evaluated(self._evaluate.commit, 0.0, 0)]
            case StartEvaluation() if done.placed is not None:
                self._placed = done.placed
                assess = Assess(
                    job=self.number,
                    commit=self._evaluate.commit,
                    front=done.placed.front,
                    back=done.placed.back,
                )
                return [*self._session.ask(assess, Begun, done.tensor)]
            case ShowBatch():
                look = Look(job=self.number, micro=task.micro, scale=to_double(1.0))
                return [*self._session.ask(look, Looked, done.tensor, micro=task.micro)]
            case JudgeBatch():
                effects = self._batches.ended()
                return [FinishPart(job=self.number)] if self._batches.through else effects
            case FinishPart() if isinstance(done.outcome, Evaluated):
                self._outcome = done.outcome
                return [*self._session.ask(Finish(job=self.number, scale=to_double(1.0)), Finished)]
            case _:
                raise TypeError(f"{done!r} is not what comes of a piece of an evaluation")

    def answered(self, answer: EdgeAnswer, _now: float) -> list[Step]:
        """Go on with what the edge gave.

        Args:
            answer: what it gave.
        """
        match answer.head:
            case Begun():
                return self._batches.fill(self._count, self._placed.in_flight)
            case Looked() as looked:
                return [JudgeBatch(job=self.number, micro=looked.micro, hidden=answer.tensor)]
            case Finished() if self._outcome is not None:
                return [self._outcome]
            case head:
                raise TypeError(f"{head.kind} answers nothing of an evaluation")

    def given_up(self, why: str) -> Outcome:
        """Nothing was evaluated."""
        return Evaluated(self._evaluate.commit, 0.0, 0, why)
