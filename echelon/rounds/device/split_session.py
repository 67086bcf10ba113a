"""A device's session with its edge: how it is opened, what is asked in it, and what counts as an answer.

There is one session at a time. A question is a sealed frame; its answer is the one frame that names the same step and
micro-batch. A frame that answers nothing, was forged, or skips another one, ends the session.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from echelon.laws.channel import Channel, ChannelBroken, Parties, device_channel
from echelon.messages.frames import Declined
from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.effects import Effect, Incoming, Publish, StartTimer, StopTimer
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey

NO_ANSWER, BROKEN, BAD_ANSWER = "no-answer", "session-broken", "bad-answer"
ASK_AGAIN = 2.0
"""Seconds after which an edge that has not accepted a session is asked again."""
OPEN_TIMER = "session"
"""Timer of a session that was asked for; `answer_timer` names those of questions."""

Question = tuple[str, int, int]
"""What an answer must be: its kind, its step and its micro-batch, -1 where it names none."""


class EdgeLost(Exception):
    """The job cannot go on with this edge. `why` is a word of `Decline`, or one of this module's."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


@dataclass(frozen=True, slots=True)
class EdgeAnswer:
    """An edge's answer to a question.

    Attributes:
        question: what it answers.
        head: what it says.
        tensor: the bytes that came with it.
    """

    question: Question
    head: Message
    tensor: bytes


def answer_timer(question: Question) -> str:
    """Name the timer of a question."""
    kind, step, micro = question
    return f"answer {kind} {step} {micro}"


@dataclass(slots=True)
class _AskedSession:
    edge: str
    id: bytes
    key: AgreementKey
    end: float
    """When the edge must have accepted it."""
    channel: Channel | None = None
    waiting: dict[Question, None] = field(default_factory=dict)


class DeviceSession:
    """One device's sessions, one after the other.

    Args:
        device: its name.
        slot: its partition.
        parties: names the parties of a channel, given the edge.
        entropy: of session keys.
        timeout: seconds that an answer may take.
    """

    def __init__(
        self, *, device: str, slot: int, parties: Callable[[str], Parties], entropy: Entropy, timeout: float
    ) -> None:
        self._device, self._slot, self._parties = device, slot, parties
        self._entropy, self._timeout = entropy, timeout
        self._session: _AskedSession | None = None
        self._job = -1

    def knows(self, edge: str, session: bytes) -> bool:
        """Whether that is the session under way, and with that edge."""
        return self._session is not None and (self._session.edge, self._session.id) == (edge, session)

    def is_open(self, edge: str) -> bool:
        """Whether a session with that edge is open."""
        session = self._session
        return session is not None and session.edge == edge and session.channel is not None

    @property
    def waits(self) -> bool:
        """Whether a question has no answer yet."""
        return self._session is not None and bool(self._session.waiting)

    @property
    def secret(self) -> bytes:
        """The open session's.

        Raises:
            EdgeLost: none is open any more.
        """
        if self._session is None or self._session.channel is None:
            raise EdgeLost(BROKEN)
        return self._session.channel.secret

    def open(self, edge: str, now: float) -> list[Effect]:
        """Ask an edge for a new session; the one before is over."""
        effects = self.close()
        key = AgreementKey(self._entropy.token(32))
        self._session = _AskedSession(edge, self._entropy.token(16), key, now + self._timeout)
        return [*effects, *self._ask_to_open(self._session, now)]

    def _ask_to_open(self, session: _AskedSession, now: float) -> list[Effect]:
        opening = SplitOpen(edge=session.edge, session=session.id, public=session.key.public)
        return [
            Publish("split.up", opening, 0, partition=self._slot),
            StartTimer(OPEN_TIMER, min(ASK_AGAIN, max(0.0, session.end - now))),
        ]

    def unaccepted(self, now: float) -> list[Effect]:
        """Ask again for the session that is not accepted yet: an edge that starts may have missed the question.

        Raises:
            EdgeLost: the edge had its time.
        """
        session = self._session
        if session is None or session.channel is not None:
            return []
        if now >= session.end:
            self._session = None
            raise EdgeLost(NO_ANSWER)
        return self._ask_to_open(session, now)

    def close(self) -> list[Effect]:
        """Forget the session, and the questions that have no answer."""
        session, self._session = self._session, None
        if session is None:
            return []
        effects: list[Effect] = [] if session.channel is not None else [StopTimer(OPEN_TIMER)]
        return [*effects, *_stopped(session)]

    def forget(self) -> list[Effect]:
        """Wait for no answer any more: the job was given up. The session stays."""
        return [] if self._session is None else _stopped(self._session)

    def begin(self, job: int) -> None:
        """From now on frames are of that job."""
        self._job = job

    def ask(
        self, head: Message, kind: type[Message], tensor: bytes = b"", *, step: int = -1, micro: int = -1
    ) -> list[Effect]:
        """Send a frame that is to be answered.

        Args:
            head: what the frame says.
            kind: of which kind the answer is.
            tensor: the bytes that go with the frame.
            step: the step that the answer names; -1: none.
            micro: the micro-batch that the answer names; -1: none.

        Returns:
            The frame's record with its payload, and the timer of the answer.

        Raises:
            EdgeLost: no session is open any more.
        """
        session = self._session
        if session is None or session.channel is None:
            raise EdgeLost(BROKEN)
        question = kind.kind, step, micro
        session.waiting[question] = None
        frame, payload = session.channel.seal(head, tensor)
        return [
            Publish("split.up", frame, 0, payload, self._slot),
            StartTimer(answer_timer(question), self._timeout),
        ]

    def waits_for(self, timer: str) -> bool:
        """Whether that is the timer of a question that has no answer yet."""
        session = self._session
        return session is not None and timer in map(answer_timer, session.waiting)

    def accepted(self, event: Incoming, message: SplitAccept) -> bool:
        """Take an edge's acceptance.

        Returns:
            Whether it opens the session that was asked for; any other one is passed over.

        Raises:
            Refused: the edge's key is of low order.
        """
        session = self._session
        if session is None or event.sender != session.edge or session.channel is not None:
            return False
        fits = (message.device, message.session, message.device_public)
        if fits != (self._device, session.id, session.key.public):
            return False
        session.channel = device_channel(self._parties(session.edge), session.id, session.key, message.public)
        return True

    def take(self, event: Incoming, message: SplitFrame) -> EdgeAnswer | None:
        """Open a frame of the edge.

        Returns:
            The answer that it is; None for a frame that was taken before, or is of another session or job.

        Raises:
            EdgeLost: the edge declines the job.
            Refused: the frame is forged, out of turn, or answers nothing.
        """
        session = self._session
        if session is None or event.sender != session.edge:
            return None
        if message.session != session.id or session.channel is None:
            return None
        try:
            opened = session.channel.open(message, event.payload or b"")
        except ChannelBroken as error:
            raise Refused(Reason.OUT_OF_ORDER, str(error)) from error
        if opened is None or getattr(opened[0], "job", -1) != self._job:
            return None
        head, tensor = opened
        if isinstance(head, Declined):
            raise EdgeLost(head.reason.value)
        question = head.kind, getattr(head, "step", -1), getattr(head, "micro", -1)
        if question not in session.waiting:
            _, step, micro = question
            raise Refused(
                Reason.BAD_FRAME, f"{head.kind} of step {step}, micro-batch {micro}, answers nothing"
            )
        del session.waiting[question]
        return EdgeAnswer(question, head, tensor)


def _stopped(session: _AskedSession) -> list[Effect]:
    effects: list[Effect] = [StopTimer(answer_timer(question)) for question in session.waiting]
    session.waiting.clear()
    return effects
