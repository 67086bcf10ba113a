"""The shell around a device's side of split training: what fails in work, in sending or in time reaches who waits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import numpy as np
import pytest

from echelon.actors.splitting import SplitDriver
from echelon.errors import CodecError, TrainingError
from echelon.jobs.device_part import (
    DeviceDone,
    DeviceTask,
    Front,
    Placed,
    ReadEvaluation,
    ReadStep,
    StartTraining,
)
from echelon.laws.channel import Channel, Parties, edge_channel
from echelon.messages.frames import Begin, Begun, Decline, Declined, Forward, Output
from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.device.split_core import DeviceSplitCore
from echelon.rounds.device.split_session import BAD_ANSWER, NO_ANSWER
from echelon.rounds.effects import Abandoned, Evaluate, Evaluated, Incoming, Publish, SplitJob, TrainJob
from echelon.secagg.entropy import Entropy
from echelon.secagg.keys import AgreementKey
from echelon.virtual_loop import run_virtual

PARTIES = Parties(bytes(16), "ward", "d0", "e0")
ZEROS = np.zeros(4, np.float32)
JOB = TrainJob(
    data="d0", base=ZEROS, start=ZEROS, steps=1, mu=0.0, progress=0.0,
    split=SplitJob(job=1, edge="e0", version=0, after=0, on_top=()),
)  # fmt: skip


class Side:
    """A device's part; `fails` is raised by the pass through the first blocks."""

    def __init__(self, fails: Exception | None = None) -> None:
        self.fails, self.ended = fails, list[int]()

    async def part(self, task: DeviceTask) -> DeviceDone:
        match task:
            case StartTraining():
                return DeviceDone(task=task, placed=Placed(front=1, back=1, in_flight=4))
            case ReadStep():
                return DeviceDone(task=task, count=4)
            case ReadEvaluation():
                return DeviceDone(task=task, count=0)
            case Front():
                await asyncio.sleep(1.0 + task.micro)
                if self.fails is not None and task.micro == 1:
                    raise self.fails
                self.ended.append(task.micro)
                return DeviceDone(task=task, tensor=b"activation")
            case _:
                raise AssertionError(f"{task!r} was not to be asked for")


class Edge:
    """An edge that answers what a function says; None: nothing."""

    def __init__(self, answer: Callable[[Message], Message | None], side: Side) -> None:
        core = DeviceSplitCore(
            device="d0", slot=0, parties=lambda _: PARTIES, entropy=Entropy.seeded(b"d0"), timeout=5.0
        )
        self.driver = SplitDriver(core=core, side=side, send=self.hear, log=logging.getLogger("test"))
        self.answer, self.asked = answer, list[Message]()
        self.channel: Channel | None = None

    def hear(self, record: Publish) -> None:
        loop, message = asyncio.get_running_loop(), record.message
        if isinstance(message, SplitOpen):
            key = AgreementKey(b"\x07" * 32)
            self.channel = edge_channel(PARTIES, message.session, key, message.public)
            accept = SplitAccept(
                device="d0", session=message.session, device_public=message.public, public=key.public
            )
            loop.call_later(0.1, self.say, accept)
            return
        assert isinstance(message, SplitFrame)
        assert self.channel is not None
        opened = self.channel.open(message, record.payload or b"")
        assert opened is not None
        self.asked.append(opened[0])
        answer = self.answer(opened[0])
        if answer is not None:
            loop.call_later(0.1, self.say, *self.channel.seal(answer))

    def say(self, message: Message, payload: bytes | None = None) -> None:
        self.driver.take(Incoming("split.down", 0, "e0", 0, message, payload))


def begins(message: Message) -> Message | None:
    return Begun(job=1) if isinstance(message, Begin) else None


def test_what_fails_in_a_pass_beside_others_reaches_who_waits_and_ends_the_others() -> None:
    side = Side(TrainingError("no finite loss"))

    async def job() -> None:
        with pytest.raises(TrainingError, match="no finite loss"):
            await Edge(begins, side).driver.run(JOB)
        await asyncio.sleep(60.0)

    run_virtual(job)
    assert side.ended == [0]  # the third and the fourth were ended


def test_a_tensor_that_is_none_gives_the_job_up_and_ends_its_passes() -> None:
    side = Side(CodecError("no tensor"))

    async def job() -> None:
        assert await Edge(begins, side).driver.run(JOB) == Abandoned(1, BAD_ANSWER)
        await asyncio.sleep(60.0)

    run_virtual(job)
    assert side.ended == [0]


def test_what_fails_in_sending_reaches_who_waits() -> None:
    class Gone(Exception):
        pass

    def answer(message: Message) -> Message | None:
        if isinstance(message, Forward):
            raise Gone
        return begins(message)

    async def job() -> None:
        with pytest.raises(Gone):
            await Edge(answer, Side()).driver.run(JOB)

    run_virtual(job)


def test_an_edge_that_says_nothing_is_given_up_in_time() -> None:
    async def job() -> float:
        assert await Edge(lambda _: None, Side()).driver.run(JOB) == Abandoned(1, NO_ANSWER)
        return asyncio.get_running_loop().time()

    assert run_virtual(job) == pytest.approx(0.1 + 5.0)


def test_a_job_that_was_declined_leaves_no_timer_and_the_next_one_runs() -> None:
    def answer(message: Message) -> Message | None:
        if isinstance(message, Forward):
            return Declined(job=1, reason=Decline.NOT_TRAINED)
        return begins(message)

    async def job() -> None:
        edge = Edge(answer, Side())
        assert await edge.driver.run(JOB) == Abandoned(1, Decline.NOT_TRAINED.value)
        await asyncio.sleep(60.0)
        evaluate = Evaluate(3, ZEROS, edge="e0", job=2)
        assert await edge.driver.run(evaluate) == Evaluated(3, 0.0, 0)

    run_virtual(job)


def test_a_frame_that_answers_nothing_is_refused() -> None:
    async def job() -> None:
        edge = Edge(begins, Side())
        running = asyncio.create_task(edge.driver.run(JOB))
        await asyncio.sleep(1.5)
        assert edge.channel is not None
        with pytest.raises(Refused) as caught:
            edge.say(*edge.channel.seal(Output(job=1, step=3, micro=0)))
        assert caught.value.reason is Reason.BAD_FRAME
        assert isinstance(await running, Abandoned)

    run_virtual(job)
