"""An edge's sessions: what a device may say, in which order, and what a replayed, missing or forged frame does."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.laws.channel import Channel, Parties, device_channel
from echelon.messages.boundary import Model
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
    decode_frame,
    encode_frame,
    to_double,
)
from echelon.messages.split import MAX_JOBS, SplitAccept, SplitFrame, SplitOpen, SplitPing, SplitPong
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.edge.core import IDLE, EdgeCore, changes
from echelon.rounds.edge.kept import MAX_KEPT, KeptJobs
from echelon.rounds.effects import (
    EdgeDone,
    EdgeDrop,
    EdgeTask,
    Effect,
    Incoming,
    Publish,
    Refuse,
    TimerFired,
)
from echelon.secagg.keys import AgreementKey
from tests.worlds.boundary_world import DIM
from tests.worlds.hostile import Hostile
from tests.worlds.split_world import SplitWorld

ONE = to_double(1.0)


class Talk:
    """One device's side of a session with edge `e0`."""

    def __init__(self, device: str = "d0") -> None:
        self.world = SplitWorld()
        self.device = device
        self.edge: EdgeCore = self.world.edge("e0")
        self.frames: list[Incoming] = []
        theta = np.zeros(DIM, "<f4").tobytes()
        model = Model(
            version=0, commit=0, sha256=hashlib.sha256(theta).digest(), anchored=False,
            pace=self.world.manifest.pace, progress_ppm=0, payload=Payload.of(theta, b"model"),
        )  # fmt: skip
        self.edge.handle(Incoming("model", 0, "ward.aggregator", 0, model, theta))
        self.channel = self.open()

    def open(self, seed: bytes = b"\x01" * 32) -> Channel:
        key, session = AgreementKey(seed), hashlib.sha256(seed).digest()[:16]
        opening = SplitOpen(edge="e0", session=session, public=key.public)
        effects = self.edge.handle(Incoming("split.up", 0, self.device, 0, opening))
        (accept,) = [e.message for e in effects if isinstance(e, Publish)]
        assert isinstance(accept, SplitAccept)
        assert (accept.device, accept.session, accept.device_public) == (self.device, session, key.public)
        parties = Parties(self.world.manifest.run_id, "ward", self.device, "e0")
        return device_channel(parties, session, key, accept.public)

    def say(self, head: Message, tensor: bytes = b"") -> list[Effect]:
        frame, payload = self.channel.seal(head, tensor)
        self.frames.append(Incoming("split.up", len(self.frames), self.device, 0, frame, payload))
        return self.edge.handle(self.frames[-1])

    def work(self, head: Message, tensor: bytes = b"") -> EdgeTask:
        (task,) = self.say(head, tensor)
        assert isinstance(task, EdgeTask)
        return task

    def hear(self, effects: list[Effect]) -> list[Message]:
        found = []
        for effect in effects:
            if isinstance(effect, Publish) and isinstance(effect.message, SplitFrame):
                opened = self.channel.open(effect.message, effect.payload or b"")
                assert opened is not None
                found.append(opened[0])
        return found

    def done(self, task: EdgeTask, **facts: Any) -> list[Message]:
        return self.hear(self.edge.handle(EdgeDone(task=task, **facts)))

    def begin(self, job: int = 1, steps: int = 1, **changes: Any) -> None:
        fields: dict[str, Any] = {
            "job": job, "version": 0, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0),
            "steps": steps,
        }  # fmt: skip
        (begun,) = self.done(self.work(Begin(**fields | changes)))
        assert begun == Begun(job=job)

    @property
    def newest(self) -> int:
        """The number of the job that is under way, or of the newest."""
        session = self.edge.sessions.live.get(self.device)
        return 0 if session is None else max(0, session.newest)

    def step(self, step: int, count: int = 2) -> None:
        """One step there and back."""
        for micro in range(count):
            head = Forward(job=1, step=step, micro=micro, count=count, scale=ONE)
            task = self.work(head, b"activation")
            assert task.step == (micro == 0 and step > 0)
            assert self.done(task) == [Output(job=1, step=step, micro=micro)]
        for micro in range(count):
            task = self.work(Backward(job=1, step=step, micro=micro), b"gradient")
            assert task.last == (micro == count - 1)
            (answer,) = self.done(task, norm2=4.0)
            assert isinstance(answer, Gradient)


def test_a_job_from_begin_to_end_is_stored_before_the_device_hears_of_it() -> None:
    talk = Talk()
    talk.begin(steps=2)
    talk.step(0)
    talk.step(1)
    task = talk.work(Finish(job=1, scale=ONE))
    moved = np.ones(DIM, np.float32)
    effects = talk.edge.handle(EdgeDone(task=task, moved=moved, state=b"moments"))
    kinds = [type(effect).__name__ for effect in effects]
    assert kinds.index("Save") < kinds.index("Publish")
    assert talk.hear(effects) == [Finished(job=1)]
    assert np.array_equal(talk.edge.kept["d0"].moved[1], moved)


def test_a_frame_that_is_read_again_does_nothing() -> None:
    talk = Talk()
    talk.begin()
    talk.step(0)
    for frame in talk.frames:
        assert talk.edge.handle(frame) == []


def test_a_frame_that_is_missing_ends_the_session_and_the_job() -> None:
    talk = Talk()
    talk.begin()
    talk.channel.seal(Finish(job=1, scale=ONE))  # lost on the way
    effects = talk.say(Forward(job=1, step=0, micro=0, count=1, scale=ONE))
    assert [type(effect) for effect in effects] == [EdgeDrop, Refuse]
    assert isinstance(effects[1], Refuse)
    assert effects[1].reason is Reason.OUT_OF_ORDER
    assert not talk.edge.sessions.serves("d0")


def test_a_frame_of_another_key_is_refused() -> None:
    talk = Talk()
    talk.begin()
    frame, payload = talk.channel.seal(Finish(job=1, scale=ONE))
    spoilt = bytes([payload[0] ^ 1]) + payload[1:]
    effects = talk.edge.handle(Incoming("split.up", 9, "d0", 0, frame, spoilt))
    assert isinstance(effects[-1], Refuse)
    assert effects[-1].reason is Reason.BAD_FRAME


def test_another_device_cannot_speak_in_a_session() -> None:
    talk = Talk()
    talk.begin()
    frame, payload = talk.channel.seal(Finish(job=1, scale=ONE))
    assert talk.edge.handle(Incoming("split.up", 9, "d1", 0, frame, payload)) == []


@pytest.mark.parametrize(
    "head",
    [
        Forward(job=1, step=1, micro=0, count=2, scale=ONE),
        Forward(job=1, step=0, micro=0, count=2, scale=ONE),
        Forward(job=1, step=0, micro=1, count=3, scale=ONE),
        Backward(job=1, step=0, micro=1),
        Finish(job=1, scale=ONE),
        Forward(job=1, step=0, micro=1, count=2, scale=to_double(1.0)[:7] + b"\xff"),
    ],
    ids=["next step too soon", "twice", "another count", "no forward", "not at the end", "no number"],
)
def test_what_is_out_of_turn_ends_the_job(head: Message) -> None:
    talk = Talk()
    talk.begin(steps=2)
    talk.done(talk.work(Forward(job=1, step=0, micro=0, count=2, scale=ONE)))
    if isinstance(head, Forward) and head.scale != ONE:
        talk.done(talk.work(Forward(job=1, step=0, micro=1, count=2, scale=ONE)))
        for micro in range(2):
            talk.done(talk.work(Backward(job=1, step=0, micro=micro)))
        head = head.model_copy(update={"step": 1, "micro": 0})
    effects = talk.say(head)
    assert talk.hear(effects) == [Declined(job=1, reason=Decline.BAD_FRAME)]
    assert isinstance(effects[-1], Refuse)
    assert talk.edge.kept["d0"].moved == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"front": 2, "back": 2}, Decline.BAD_CUT),
        ({"on_top": (7,)}, Decline.UNKNOWN_JOB),
    ],
)
def test_a_job_that_cannot_be_is_declined(changes: Any, reason: Decline) -> None:
    talk = Talk()
    fields: dict[str, Any] = {
        "job": 9, "version": 0, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0), "steps": 1,
    }  # fmt: skip
    assert talk.hear(talk.say(Begin(**fields | changes))) == [Declined(job=9, reason=reason)]


def test_a_device_that_falls_silent_in_a_job_leaves_nothing() -> None:
    talk = Talk()
    talk.begin()
    talk.done(talk.work(Forward(job=1, step=0, micro=0, count=1, scale=ONE)))
    assert [e for e in talk.edge.handle(TimerFired(IDLE)) if isinstance(e, EdgeDrop)] == []
    assert [e for e in talk.edge.handle(TimerFired(IDLE)) if isinstance(e, EdgeDrop)] == [EdgeDrop("d0")]
    assert talk.edge.kept["d0"].moved == {}


def test_a_new_session_drops_the_job_of_the_old_one_and_late_work_of_it_is_nobody_s() -> None:
    talk = Talk()
    talk.begin()
    task = talk.work(Forward(job=1, step=0, micro=0, count=1, scale=ONE))
    talk.channel = talk.open(b"\x02" * 32)
    assert talk.say(Look(job=1, micro=0, scale=ONE)) == [EdgeDrop("d0")]
    assert talk.edge.handle(EdgeDone(task=task)) == []


def test_a_job_waits_for_the_version_that_it_starts_from() -> None:
    talk = Talk()
    fields: dict[str, Any] = {
        "job": 1, "version": 1, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0), "steps": 1,
    }  # fmt: skip
    assert talk.say(Begin(**fields)) == []
    theta = np.ones(DIM, "<f4").tobytes()
    model = Model(
        version=1, commit=0, sha256=hashlib.sha256(theta).digest(), anchored=False,
        pace=talk.world.manifest.pace, progress_ppm=0, payload=Payload.of(theta, b"model"),
    )  # fmt: skip
    (task,) = talk.edge.handle(Incoming("model", 1, "ward.aggregator", 0, model, theta))
    assert isinstance(task, EdgeTask)
    assert task.start is not None
    assert np.array_equal(task.start.base, np.ones(DIM, np.float32))


def model_with_commit(talk: Talk, version: int, commit: int) -> Incoming:
    """A version of the boundary adapter, all 1, with the adapter of a commit behind it, which is its number."""
    theta = np.ones(DIM, "<f4").tobytes()
    payload = theta + np.full(DIM, commit, "<f4").tobytes()
    model = Model(
        version=version, commit=commit, sha256=hashlib.sha256(theta).digest(), anchored=True,
        pace=talk.world.manifest.pace, progress_ppm=0, payload=Payload.of(payload, b"model"),
    )  # fmt: skip
    return Incoming("model", version, "ward.aggregator", 0, model, payload)


def test_an_evaluation_from_begin_to_end_trains_and_keeps_nothing() -> None:
    talk = Talk()
    talk.edge.handle(model_with_commit(talk, 1, 7))
    before = talk.edge.vectors()
    task = talk.work(Assess(job=3, commit=7, front=1, back=1), b"basis")
    assert task.start is not None
    assert np.array_equal(task.start.start, np.full(DIM, 7, np.float32))
    assert (task.tensor, task.start.state, task.start.mu) == (b"basis", None, 0.0)
    assert talk.done(task) == [Begun(job=3)]
    for micro in (1, 0):
        look = talk.work(Look(job=3, micro=micro, scale=ONE), b"activation")
        assert not look.step
        assert talk.done(look, tensor=b"hidden") == [Looked(job=3, micro=micro)]
    effects = talk.say(Finish(job=3, scale=ONE))
    assert effects[0] == EdgeDrop("d0")
    assert talk.hear(effects) == [Finished(job=3)]
    assert talk.edge.vectors() == before
    talk.begin(job=4)  # and a job may follow


@pytest.mark.parametrize(
    "head",
    [
        Forward(job=3, step=0, micro=0, count=1, scale=ONE),
        Backward(job=3, step=0, micro=0),
        Look(job=3, micro=0, scale=ONE),
    ],
)
def test_what_is_out_of_turn_ends_an_evaluation(head: Message) -> None:
    talk = Talk()
    talk.edge.handle(model_with_commit(talk, 1, 7))
    talk.done(talk.work(Assess(job=3, commit=7, front=1, back=1)))
    talk.work(Look(job=3, micro=0, scale=ONE), b"activation")
    effects = talk.say(head, b"activation")
    assert talk.hear(effects) == [Declined(job=3, reason=Decline.BAD_FRAME)]
    assert EdgeDrop("d0") in effects


def test_an_evaluation_waits_for_its_commit_and_one_that_is_gone_is_declined() -> None:
    talk = Talk()
    assert talk.say(Assess(job=1, commit=1, front=1, back=1)) == []
    (task,) = talk.edge.handle(model_with_commit(talk, 1, 1))
    assert isinstance(task, EdgeTask)
    for commit in (2, 3):
        talk.edge.handle(model_with_commit(talk, commit, commit))
    effects = talk.say(Assess(job=2, commit=1, front=1, back=1))
    assert talk.hear(effects) == [Declined(job=2, reason=Decline.UNKNOWN_VERSION)]
    again = talk.world.new_edge("e0")
    again.restore(talk.edge.facts(), talk.edge.vectors())
    talk.edge = again
    talk.channel = talk.open(b"\x02" * 32)
    (found,) = talk.say(Assess(job=3, commit=3, front=1, back=1))
    assert isinstance(found, EdgeTask)
    effects = talk.say(Assess(job=4, commit=3, front=3, back=1))
    assert talk.hear(effects) == [Declined(job=4, reason=Decline.BAD_CUT)]


def test_an_edge_answers_every_device_that_asks_how_far_away_it_is() -> None:
    talk = Talk()
    ping = Incoming("split.up", 0, "d3", 0, SplitPing(number=77))
    slot = talk.world.roster.entry("d3").slot
    pong = SplitPong(device="d3", number=77)
    assert talk.edge.handle(ping) == [Publish("split.down", pong, 0, partition=slot)]


def test_a_session_that_is_asked_for_twice_is_one_session() -> None:
    """A device asks again while it hears nothing; an answer that was on its way meanwhile stays the right one."""
    talk = Talk()
    talk.begin()
    seed = b"\x01" * 32
    opening = SplitOpen(
        edge="e0", session=hashlib.sha256(seed).digest()[:16], public=AgreementKey(seed).public
    )
    (again,) = talk.edge.handle(Incoming("split.up", 1, talk.device, 0, opening))
    assert isinstance(again, Publish)
    assert isinstance(again.message, SplitAccept)
    talk.step(0)  # under the keys of the first answer
    other = opening.model_copy(update={"public": AgreementKey(b"\x05" * 32).public})
    with pytest.raises(ProtocolError, match="two keys"):
        talk.edge.handle(Incoming("split.up", 2, talk.device, 0, other))


def test_an_old_opening_that_is_shown_again_drops_no_live_session() -> None:
    """Only the device can seal a frame of a session: before one comes, the session that there is goes on."""
    talk = Talk()
    first = talk.channel
    talk.channel = talk.open(b"\x02" * 32)
    talk.begin()
    for seed in (b"\x01" * 32, b"\x03" * 32, b"\x04" * 32, b"\x05" * 32, b"\x06" * 32):
        talk.open(seed)
    talk.step(0)  # under the keys of the live session
    stale, payload = first.seal(Finish(job=1, scale=ONE))
    assert not any(
        isinstance(effect, EdgeDrop)
        for effect in talk.edge.handle(Incoming("split.up", 77, "d0", 0, stale, payload))
    )
    assert isinstance(talk.work(Finish(job=1, scale=ONE)), EdgeTask)


def test_an_old_opening_with_another_edge_drops_no_live_session_and_a_true_one_ends_it() -> None:
    talk = Talk()
    talk.begin()
    away = SplitOpen(edge="e1", session=bytes(16), public=AgreementKey(b"\x05" * 32).public)
    assert talk.edge.handle(Incoming("split.up", 7, "d0", 0, away)) == []
    talk.step(0)
    assert talk.edge.sessions.serves("d0")
    talk.edge.handle(TimerFired(IDLE))
    assert talk.edge.sessions.serves("d0")
    talk.edge.handle(Incoming("split.up", 8, "d0", 0, away))
    for _ in range(3):
        talk.edge.handle(TimerFired(IDLE))
    assert not talk.edge.sessions.serves("d0")


def test_a_model_without_the_commit_that_it_promises_is_refused() -> None:
    talk = Talk()
    whole = model_with_commit(talk, 1, 1)
    assert whole.payload is not None
    with pytest.raises(ProtocolError, match="not what it says"):
        talk.edge.handle(replace(whole, payload=whole.payload[:-4]))


def test_frames_have_one_encoding_and_limits() -> None:
    head = Backward(job=3, step=1, micro=2)
    data = encode_frame(head, b"tensor")
    assert decode_frame(data) == (head, b"tensor")
    for spoilt in (b"", data[:3], b"\xff\xff\xff\xff" + data[4:], data[:4] + b"\x00" + data[5:]):
        with pytest.raises(Refused):
            decode_frame(spoilt)


HEADS: tuple[Message, ...] = (
    Begin(job=1, version=0, on_top=(), after=0, front=1, back=1, mu=to_double(0.0), steps=2),
    Begin(job=2, version=1, on_top=(1,), after=1, front=1, back=1, mu=to_double(0.0), steps=1),
    Assess(job=3, commit=0, front=1, back=1),
    Forward(job=1, step=0, micro=0, count=2, scale=ONE),
    Backward(job=1, step=0, micro=0),
    Look(job=1, micro=0, scale=ONE),
    Finish(job=1, scale=ONE),
    Finished(job=1),
    Looked(job=1, micro=0),
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12))
def test_no_frame_of_a_device_raises_and_an_edge_keeps_no_more_than_its_bound(seed: int) -> None:
    talk = Talk()
    hostile = Hostile(seed, ["d0"])
    tasks: list[EdgeTask] = []
    for number in range(400):
        head = hostile.changed(hostile.dice.choice(HEADS)) or hostile.dice.choice(HEADS)
        if hostile.dice.random() < 0.5:
            head = hostile.dice.choice(HEADS)
        if isinstance(head, Begin | Assess) and hostile.dice.random() < 0.5:
            head = head.model_copy(update={"job": number, "version": 0, "on_top": (), "mu": to_double(0.0)})
        elif hasattr(head, "job") and hostile.dice.random() < 0.8:
            head = head.model_copy(update={"job": talk.newest})
        if isinstance(head, Begin) and hostile.dice.random() < 0.1:
            head = head.model_copy(update={"mu": to_double(hostile.dice.choice((np.nan, np.inf, -1.0)))})
        tasks += [effect for effect in talk.say(head, b"tensor") if isinstance(effect, EdgeTask)]
        while tasks and hostile.dice.random() < 0.6:
            task = tasks.pop(0)
            moved = np.full(DIM, hostile.dice.choice((1.0, np.nan)), np.float32)
            talk.edge.handle(EdgeDone(task=task, tensor=b"tensor", norm2=1.0, moved=moved, state=b"state"))
        if hostile.dice.random() < 0.05:
            talk.edge.handle(TimerFired(IDLE))
        if hostile.dice.random() < 0.02:
            talk.edge.handle(model_with_commit(talk, number + 1, 0))
        kept = talk.edge.kept.get("d0")
        assert kept is None or len(kept.moved) <= MAX_KEPT
        if not talk.edge.sessions.knows("d0", talk.channel.session):
            talk.channel = talk.open(number.to_bytes(32, "big"))
    again = talk.world.new_edge("e0")
    again.restore(talk.edge.facts(), talk.edge.vectors())
    assert (again.facts(), again.vectors()) == (talk.edge.facts(), talk.edge.vectors())


def test_a_job_goes_on_from_an_update_that_was_spent_while_it_waited() -> None:
    """What its start contains is taken when it begins: a window that closes meanwhile takes nothing from it."""
    talk = Talk()
    talk.begin()
    talk.step(0)
    moved = np.ones(DIM, np.float32)
    talk.edge.handle(EdgeDone(task=talk.work(Finish(job=1, scale=ONE)), moved=moved, state=b"moments"))
    fields: dict[str, Any] = {
        "job": 2, "version": 1, "on_top": (1,), "after": 1, "front": 1, "back": 1, "mu": to_double(0.0), "steps": 1,
    }  # fmt: skip
    assert talk.say(Begin(**fields)) == []  # that version is still to come
    talk.edge.kept["d0"].forget([1])
    (task,) = talk.edge.handle(model_with_commit(talk, 1, 0))
    assert isinstance(task, EdgeTask)
    assert task.start is not None
    assert np.array_equal(task.start.start, 2 * moved)
    assert task.start.state == b"moments"


@pytest.mark.parametrize("version", [0, 1, 99])
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"mu": to_double(float("nan"))}, Decline.BAD_FRAME),
        ({"mu": to_double(float("inf"))}, Decline.BAD_FRAME),
        ({"mu": to_double(-1.0)}, Decline.BAD_FRAME),
        ({"front": 3, "back": 3}, Decline.BAD_CUT),
        ({"on_top": (1,)}, Decline.UNKNOWN_JOB),
        ({"on_top": (9,)}, Decline.UNKNOWN_JOB),
    ],
)
def test_a_job_is_checked_when_it_begins_whatever_it_waits_for(
    version: int, changes: Any, reason: Decline
) -> None:
    talk = Talk()
    fields: dict[str, Any] = {
        "job": 9, "version": version, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0),
        "steps": 1,
    }  # fmt: skip
    effects = talk.say(Begin(**fields | changes))
    assert talk.hear(effects) == [Declined(job=9, reason=reason)]
    assert talk.edge.handle(model_with_commit(talk, max(1, version), 0)) == []
    talk.begin(job=10, version=max(1, version))  # and the next job is begun as ever


@pytest.mark.parametrize("changes", [{"mu": to_double(0.5)}, {"steps": 11}])
@pytest.mark.parametrize("version", [0, 1])
def test_a_job_trains_what_the_boundary_trains_from_that_version(version: int, changes: Any) -> None:
    talk = Talk()
    fields: dict[str, Any] = {
        "job": 1, "version": version, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0),
        "steps": 1,
    }  # fmt: skip
    effects = talk.say(Begin(**fields | changes))
    if version:
        assert effects == []
        effects = talk.edge.handle(model_with_commit(talk, 1, 0))
    assert talk.hear(effects) == [Declined(job=1, reason=Decline.UNKNOWN_VERSION)]


def test_a_number_is_used_once_in_a_session() -> None:
    """What is under way of the first job would be taken for the second's."""
    talk = Talk()
    talk.begin(job=4)
    fields: dict[str, Any] = {
        "job": 4, "version": 0, "on_top": (), "after": 0, "front": 1, "back": 1, "mu": to_double(0.0), "steps": 1,
    }  # fmt: skip
    effects = talk.say(Begin(**fields), b"no basis")
    assert talk.hear(effects) == [Declined(job=4, reason=Decline.BAD_FRAME)]
    assert not any(isinstance(effect, EdgeTask) for effect in effects)


def test_what_did_not_change_is_not_stored_again() -> None:
    talk = Talk()
    before: dict[str, object] = {}
    first = changes(before, talk.edge.held())
    assert set(first) == {"theta"}
    before = dict(talk.edge.held())
    assert changes(before, talk.edge.held()) == {}
    for job in (1, 2):
        talk.begin(job=job, on_top=(1,) if job == 2 else (), after=job - 1)
        head = Forward(job=job, step=0, micro=0, count=1, scale=ONE)
        talk.done(talk.work(head))
        talk.done(talk.work(Backward(job=job, step=0, micro=0)))
        moved = np.full(DIM, job, np.float32)
        talk.done(talk.work(Finish(job=job, scale=ONE)), moved=moved, state=b"state")
        stored = changes(before, talk.edge.held())
        assert set(stored) == {f"moved d0 {job}", f"state d0 {job}"}
        assert stored[f"moved d0 {job}"] == moved.tobytes()
        before = dict(talk.edge.held())
    talk.edge.kept["d0"].forget([1])
    assert changes(before, talk.edge.held()) == {"moved d0 1": None}


def test_an_edge_keeps_no_more_updates_of_a_device_than_its_bound() -> None:
    talk = Talk()
    kept = talk.edge.kept.setdefault("d0", KeptJobs())
    jobs = tuple(range(1, MAX_JOBS + 1))
    for job in (*jobs, 99):
        kept.moved[job], kept.bases[job] = np.zeros(DIM, np.float32), (0, bytes(32))
    talk.begin(job=100, on_top=jobs)
    assert set(kept.moved) == set(jobs)
    assert len(jobs) < MAX_KEPT
