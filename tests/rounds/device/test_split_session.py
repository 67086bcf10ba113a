"""A device's side of split training: what it asks of its edge, in which order, and what counts as an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.jobs.device_part import (
    Back,
    DeviceDone,
    FinishPart,
    Front,
    FrontBackward,
    JudgeBatch,
    PartTask,
    Placed,
    ReadEvaluation,
    ReadStep,
    ShowBatch,
    StartEvaluation,
    StartTraining,
    TakeStep,
)
from echelon.laws.channel import Channel, Parties, edge_channel
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
    to_double,
)
from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen
from echelon.messages.wire import Message, Reason
from echelon.rounds.device.split_core import DeviceSplitCore, JobEnded, LetGo, SplitEffect
from echelon.rounds.device.split_session import (
    ASK_AGAIN,
    BAD_ANSWER,
    BROKEN,
    NO_ANSWER,
    OPEN_TIMER,
    answer_timer,
)
from echelon.rounds.effects import (
    Abandoned,
    Evaluate,
    Evaluated,
    Incoming,
    Publish,
    Refuse,
    SplitJob,
    StartTimer,
    StopTimer,
    TimerFired,
    TrainJob,
    TrainOutcome,
)
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey

DEVICE, EDGE, SLOT, TIMEOUT = "d0", "e0", 3, 10.0
ZEROS = np.zeros(4, np.float32)
PLACED = Placed(front=1, back=1, in_flight=2)
TRAINED = TrainOutcome(weights=ZEROS, tokens=8, loss_sum=1.0, loss_tokens=8, state=b"state")
ONE = to_double(1.0)
E = TypeVar("E")


def parties(edge: str) -> Parties:
    return Parties(bytes(16), "ward", DEVICE, edge)


def training(job: int = 1, steps: int = 1, edge: str = EDGE) -> TrainJob:
    split = SplitJob(job=job, edge=edge, version=4, after=0, on_top=())
    return TrainJob(data=DEVICE, base=ZEROS, start=ZEROS, steps=steps, mu=0.5, progress=0.0, split=split)


@dataclass
class Scene:
    """A device's core, and an edge that says what the test wants it to say."""

    core: DeviceSplitCore
    edge: str = EDGE
    channel: Channel | None = None
    opening: SplitOpen | None = None
    now: float = 0.0
    downs: int = 0

    @classmethod
    def new(cls) -> Scene:
        return cls(
            DeviceSplitCore(
                device=DEVICE, slot=SLOT, parties=parties, entropy=Entropy.seeded(b"device"), timeout=TIMEOUT
            )
        )

    # -- what the edge does

    def accept(self, effects: list[SplitEffect]) -> list[SplitEffect]:
        """The edge accepts the session that is asked for."""
        (self.opening,) = [e.message for e in effects if isinstance(e, Publish)]  # type: ignore[assignment]
        assert isinstance(self.opening, SplitOpen)
        key = AgreementKey(b"\x07" * 32)
        self.channel = edge_channel(parties(self.edge), self.opening.session, key, self.opening.public)
        return self.down(self.acceptance(key))

    def acceptance(self, key: AgreementKey) -> SplitAccept:
        assert self.opening is not None
        return SplitAccept(
            device=DEVICE,
            session=self.opening.session,
            device_public=self.opening.public,
            public=key.public,
        )

    def down(self, message: Message, payload: bytes | None = None, sender: str = "") -> list[SplitEffect]:
        self.downs += 1
        record = Incoming("split.down", self.downs, sender or self.edge, 0, message, payload)
        return self.core.handle(record, self.now)

    def frame(self, head: Message, tensor: bytes = b"") -> tuple[SplitFrame, bytes]:
        assert self.channel is not None
        return self.channel.seal(head, tensor)

    def say(self, head: Message, tensor: bytes = b"") -> list[SplitEffect]:
        return self.down(*self.frame(head, tensor))

    def heard(self, effects: list[SplitEffect]) -> list[tuple[Message, bytes]]:
        """What the device says in these effects."""
        assert self.channel is not None
        found = []
        for effect in effects:
            if isinstance(effect, Publish):
                assert (effect.topic, effect.partition) == ("split.up", SLOT)
                assert isinstance(effect.message, SplitFrame)
                opened = self.channel.open(effect.message, effect.payload or b"")
                assert opened is not None
                found.append(opened)
        return found

    # -- what the device does

    def done(self, task: PartTask, **facts: object) -> list[SplitEffect]:
        return self.core.handle(DeviceDone(task=task, **facts), self.now)  # type: ignore[arg-type]

    def asks(self, task: PartTask, **facts: object) -> Message:
        """What the device asks its edge when a piece of work is done."""
        effects = self.done(task, **facts)
        ((head, _),) = self.heard(effects)
        assert [type(effect) for effect in effects] == [Publish, StartTimer]
        return head

    def begin(self, job: TrainJob | Evaluate) -> PartTask:
        """Begin in a session that is opened for it; the first piece of work in it."""
        return one(self.accept(self.core.begin(job, self.now)), PartTask)

    def to_first_step(self, job: TrainJob, placed: Placed = PLACED) -> ReadStep:
        self.asks(self.begin(job), tensor=b"opening", placed=placed)
        assert job.split is not None
        return one(self.say(Begun(job=job.split.job)), ReadStep)


def one(effects: list[SplitEffect], kind: type[E]) -> E:
    (found,) = [effect for effect in effects if isinstance(effect, kind)]
    return found


def tasks(effects: list[SplitEffect]) -> list[PartTask]:
    return [effect for effect in effects if isinstance(effect, PartTask)]


def ended(effects: list[SplitEffect]) -> JobEnded:
    return one(effects, JobEnded)


def test_a_job_from_begin_to_end_asks_in_order() -> None:
    scene = Scene.new()
    start = scene.begin(training(steps=2))
    assert isinstance(start, StartTraining)
    assert scene.channel is not None
    assert start.secret == scene.channel.secret
    begin = scene.asks(start, tensor=b"opening", placed=replace(PLACED, probes=1))
    assert begin == Begin(job=1, version=4, on_top=(), after=0, front=1, back=1, mu=to_double(0.5), steps=2)
    following = scene.say(Begun(job=1))
    for step, scale in ((0, 1.0), (1, 0.25)):
        assert tasks(following) == [ReadStep(job=1)]
        (front,) = tasks(scene.done(ReadStep(job=1), count=1))
        assert front == Front(job=1, micro=0)
        forward = Forward(job=1, step=step, micro=0, count=1, scale=to_double(scale))
        assert scene.asks(front, tensor=b"activation") == forward
        scene.now += 2.0
        (back,) = tasks(scene.say(Output(job=1, step=step, micro=0), b"hidden"))
        assert back == Back(job=1, micro=0, hidden=b"hidden")
        scene.now += 5.0  # the device computes: nobody waits for the edge
        assert scene.asks(back, tensor=b"gradient") == Backward(job=1, step=step, micro=0)
        scene.now += 1.0
        answer = Gradient(job=1, step=step, micro=0, last=True, norm2=to_double(9.0))
        (below,) = tasks(scene.say(answer, b"below"))
        assert below == FrontBackward(job=1, micro=0, gradient=b"below", waited=3.0)
        (take,) = tasks(scene.done(below))
        assert take == TakeStep(job=1, norm2=9.0)
        following = scene.done(take, scale=0.25)
    (show,) = tasks(following)
    assert show == ShowBatch(job=1, micro=0)
    assert scene.asks(show, tensor=b"probe") == Look(job=1, micro=0, scale=to_double(0.25))
    (judge,) = tasks(scene.say(Looked(job=1, micro=0), b"seen"))
    assert judge == JudgeBatch(job=1, micro=0, hidden=b"seen")
    assert scene.asks(judge) == Finish(job=1, scale=to_double(0.25))
    (finish,) = tasks(scene.say(Finished(job=1)))
    assert finish == FinishPart(job=1)
    over = ended(scene.done(finish, outcome=TRAINED))
    assert (over.job, over.outcome, over.why) == (1, TRAINED, "")


def test_no_more_micro_batches_are_under_way_than_there_are_places() -> None:
    scene = Scene.new()
    read = scene.to_first_step(training())
    fronts = tasks(scene.done(read, count=4))
    assert fronts == [Front(job=1, micro=0), Front(job=1, micro=1)]
    for front in fronts:
        scene.heard(scene.done(front, tensor=b"activation"))
    through: list[int] = []
    for micro in (1, 0, 3, 2):  # a later one may be through first
        (back,) = tasks(scene.say(Output(job=1, step=0, micro=micro), b"hidden"))
        scene.heard(scene.done(back, tensor=b"gradient"))
        last = len(through) == 3
        (below,) = tasks(scene.say(Gradient(job=1, step=0, micro=micro, last=last, norm2=ONE), b"below"))
        through.append(micro)
        effects = tasks(scene.done(below))
        if len(through) < 3:
            assert effects == [Front(job=1, micro=len(through) + 1)]
            scene.heard(scene.done(effects[0], tensor=b"activation"))
        else:
            assert effects == ([TakeStep(job=1, norm2=1.0)] if last else [])


def test_an_evaluation_from_begin_to_end() -> None:
    scene = Scene.new()
    evaluate = Evaluate(7, ZEROS, edge=EDGE, job=3)
    (read,) = scene.core.begin(evaluate, 0.0)
    assert read == ReadEvaluation(job=3, evaluate=evaluate)
    (start,) = tasks(scene.accept(scene.done(read, count=3)))
    assert isinstance(start, StartEvaluation)
    assert scene.asks(start, tensor=b"opening", placed=PLACED) == Assess(job=3, commit=7, front=1, back=1)
    following = tasks(scene.say(Begun(job=3)))
    assert following == [ShowBatch(job=3, micro=0), ShowBatch(job=3, micro=1)]
    for micro in range(3):
        assert scene.asks(ShowBatch(job=3, micro=micro)) == Look(job=3, micro=micro, scale=ONE)
        (judge,) = tasks(scene.say(Looked(job=3, micro=micro), b"hidden"))
        effects = scene.done(judge)
        assert tasks(effects) == [[ShowBatch(job=3, micro=2)], [], [FinishPart(job=3)]][micro]
    result = Evaluated(7, 1.5, 20)
    assert scene.asks(FinishPart(job=3), outcome=result) == Finish(job=3, scale=ONE)
    assert ended(scene.say(Finished(job=3))).outcome == result


def test_an_evaluation_of_nothing_asks_no_edge() -> None:
    scene = Scene.new()
    (read,) = tasks(scene.core.begin(Evaluate(7, ZEROS, edge=EDGE, job=3), 0.0))
    effects = scene.done(read, count=0)
    assert ended(effects).outcome == Evaluated(7, 0.0, 0)
    assert not [effect for effect in effects if isinstance(effect, Publish)]


def test_a_session_is_asked_for_again_until_the_edge_has_had_its_time() -> None:
    scene = Scene.new()
    first = scene.core.begin(training(), 0.0)
    assert first[-1] == StartTimer(OPEN_TIMER, ASK_AGAIN)
    asked, now = one(first, Publish), ASK_AGAIN
    while now < TIMEOUT:
        again = scene.core.handle(TimerFired(OPEN_TIMER), now)
        assert one(again, Publish) == asked  # the very same session: an answer on its way stays the right one
        assert one(again, StartTimer).seconds == min(ASK_AGAIN, TIMEOUT - now)
        now += ASK_AGAIN
    over = ended(scene.core.handle(TimerFired(OPEN_TIMER), TIMEOUT))
    assert (over.why, over.outcome) == (NO_ANSWER, Abandoned(1, NO_ANSWER))


def test_an_open_session_serves_the_next_job_and_another_edge_gets_another_one() -> None:
    scene = Scene.new()
    scene.to_first_step(training())
    ended(scene.say(Declined(job=1, reason=Decline.BAD_CUT)) + scene.done(ReadStep(job=1), count=0))
    effects = scene.core.begin(training(job=2), 0.0)
    assert [type(effect) for effect in effects] == [StartTraining]
    scene.asks(effects[0], placed=PLACED)  # type: ignore[arg-type]
    ended(scene.say(Declined(job=2, reason=Decline.BAD_CUT)))
    assert scene.opening is not None
    old = scene.opening.session
    assert scene.core.knows(EDGE, old)
    effects = scene.core.begin(training(job=3, edge="e1"), 0.0)
    message = one(effects, Publish).message
    assert isinstance(message, SplitOpen)
    assert message.edge == "e1"
    assert message.session != old
    assert not scene.core.knows(EDGE, old)


@pytest.mark.parametrize("wrong", ["device", "session", "key", "edge"])
def test_an_acceptance_of_anything_else_opens_nothing(wrong: str) -> None:
    scene = Scene.new()
    (scene.opening,) = [  # type: ignore[assignment]
        e.message for e in scene.core.begin(training(), 0.0) if isinstance(e, Publish)
    ]
    right = scene.acceptance(AgreementKey(b"\x07" * 32))
    changes: dict[str, dict[str, object]] = {
        "device": {"device": "d1"},
        "session": {"session": bytes(16)},
        "key": {"device_public": b"\x09" * 32},
        "edge": {},
    }
    message = right.model_copy(update=changes[wrong])
    assert scene.down(message, sender="e1" if wrong == "edge" else EDGE) == []
    effects = scene.down(right)
    assert [type(effect) for effect in effects] == [StopTimer, StartTraining]
    assert scene.down(right) == []  # it opens once


def test_a_session_key_of_low_order_is_refused_and_the_right_one_still_opens() -> None:
    scene = Scene.new()
    (scene.opening,) = [  # type: ignore[assignment]
        e.message for e in scene.core.begin(training(), 0.0) if isinstance(e, Publish)
    ]
    right = scene.acceptance(AgreementKey(b"\x07" * 32))
    refuse = one(scene.down(right.model_copy(update={"public": bytes(32)})), Refuse)
    assert refuse.reason is Reason.BAD_FIELD
    assert tasks(scene.down(right))


def waiting(count: int = 1) -> tuple[Scene, list[tuple[SplitFrame, bytes]]]:
    """A job in whose first step the device waits for the edge; and the frames that it had."""
    scene = Scene.new()
    scene.asks(scene.begin(training()), placed=PLACED)
    frames = [scene.frame(Begun(job=1))]
    (read,) = tasks(scene.down(*frames[0]))
    for front in tasks(scene.done(read, count=count)):
        scene.heard(scene.done(front, tensor=b"activation"))
    return scene, frames


def test_a_frame_that_is_read_again_does_nothing() -> None:
    scene, frames = waiting()
    for frame, payload in frames:
        assert scene.down(frame, payload) == []
    assert tasks(scene.say(Output(job=1, step=0, micro=0)))


def lost(effects: list[SplitEffect], why: str, reason: Reason | None = None) -> None:
    """The job is given up, and its work with it; the record is refused if there is a reason."""
    over = ended(effects)
    assert (over.why, over.outcome) == (why, Abandoned(1, why))
    assert effects.index(LetGo()) < effects.index(over)
    refused = [effect.reason for effect in effects if isinstance(effect, Refuse)]
    assert refused == ([] if reason is None else [reason])


def test_a_frame_that_is_missing_ends_the_session_and_the_job() -> None:
    scene, _ = waiting()
    scene.frame(Output(job=1, step=0, micro=0))  # lost on the way
    lost(scene.say(Output(job=1, step=0, micro=0)), BROKEN, Reason.OUT_OF_ORDER)
    assert one(scene.core.begin(training(job=2), 0.0), Publish).message.kind == SplitOpen.kind


def test_a_forged_frame_ends_the_session_and_the_job() -> None:
    scene, _ = waiting()
    frame, payload = scene.frame(Output(job=1, step=0, micro=0))
    lost(scene.down(frame, bytes([payload[0] ^ 1]) + payload[1:]), BROKEN, Reason.BAD_FRAME)
    assert scene.down(frame, payload) == []  # of a session that is over


@pytest.mark.parametrize(
    "head",
    [
        Output(job=1, step=0, micro=1),
        Output(job=1, step=1, micro=0),
        Gradient(job=1, step=0, micro=0, last=True, norm2=ONE),
        Begun(job=1),
        Finished(job=1),
    ],
)
def test_an_answer_to_nothing_ends_the_session_and_the_job(head: Message) -> None:
    scene, _ = waiting()
    lost(scene.say(head), BROKEN, Reason.BAD_FRAME)


def test_a_frame_of_another_job_edge_or_session_is_passed_over() -> None:
    scene, _ = waiting()
    frame, payload = scene.frame(Output(job=2, step=0, micro=0))
    assert scene.down(frame, payload, sender="e1") == []
    assert scene.down(frame.model_copy(update={"session": bytes(16)}), payload) == []
    assert scene.down(frame, payload) == []
    assert tasks(scene.say(Output(job=1, step=0, micro=0)))


def test_an_answer_that_does_not_come_in_time_ends_the_session_and_the_job() -> None:
    scene, _ = waiting(count=2)
    first, second = (answer_timer((Output.kind, 0, micro)) for micro in (0, 1))
    assert StopTimer(first) in scene.say(Output(job=1, step=0, micro=0))
    assert scene.core.handle(TimerFired(first), TIMEOUT) == []  # it had just been answered
    lost(scene.core.handle(TimerFired(second), TIMEOUT), NO_ANSWER)
    assert scene.opening is not None
    assert not scene.core.knows(EDGE, scene.opening.session)


def test_what_the_edge_declines_is_given_up_and_the_session_stays() -> None:
    scene, _ = waiting(count=2)
    effects = scene.say(Declined(job=1, reason=Decline.UNKNOWN_VERSION))
    lost(effects, Decline.UNKNOWN_VERSION.value)
    stopped = {effect.name for effect in effects if isinstance(effect, StopTimer)}
    assert stopped == {answer_timer((Output.kind, 0, micro)) for micro in (0, 1)}
    assert tasks(scene.core.begin(training(job=2), 0.0))
    assert scene.done(Back(job=1, micro=0, hidden=b""), tensor=b"late") == []  # of the job that was given up


def test_a_tensor_that_is_none_ends_the_session_and_the_job() -> None:
    scene, _ = waiting()
    (back,) = tasks(scene.say(Output(job=1, step=0, micro=0), b"nonsense"))
    effects = scene.done(back, fault="no tensor")
    lost(effects, BAD_ANSWER)
    assert ended(effects).detail == "no tensor"
    assert scene.opening is not None
    assert not scene.core.knows(EDGE, scene.opening.session)


@pytest.mark.parametrize("lasts", [(False, False), (True, True)], ids=["no norm", "two norms"])
def test_a_step_without_exactly_one_norm_is_given_up(lasts: tuple[bool, bool]) -> None:
    scene, _ = waiting(count=2)
    for micro, last in enumerate(lasts):
        (back,) = tasks(scene.say(Output(job=1, step=0, micro=micro)))
        scene.heard(scene.done(back, tensor=b"gradient"))
        (below,) = tasks(scene.say(Gradient(job=1, step=0, micro=micro, last=last, norm2=ONE)))
        effects = scene.done(below)
    lost(effects, BAD_ANSWER)


def test_a_norm_that_is_no_number_ends_the_session_and_the_job() -> None:
    scene, _ = waiting()
    (back,) = tasks(scene.say(Output(job=1, step=0, micro=0)))
    scene.heard(scene.done(back, tensor=b"gradient"))
    infinite = to_double(1.0)[:7] + b"\xff"
    gradient = Gradient(job=1, step=0, micro=0, last=True, norm2=infinite)
    lost(scene.say(gradient), BAD_ANSWER)


def test_a_job_whose_session_breaks_while_it_computes_ends_when_it_asks_again() -> None:
    scene, _ = waiting()
    (back,) = tasks(scene.say(Output(job=1, step=0, micro=0)))
    assert [type(effect) for effect in scene.say(Finished(job=1))] == [Refuse]
    lost(scene.done(back, tensor=b"gradient"), BROKEN)


def test_there_is_one_job_at_a_time_and_it_has_an_edge() -> None:
    scene = Scene.new()
    with pytest.raises(ProtocolError, match="without an edge"):
        scene.core.begin(replace(training(), split=None), 0.0)
    scene.core.begin(training(), 0.0)
    with pytest.raises(ProtocolError, match="still under way"):
        scene.core.begin(training(job=2), 0.0)
