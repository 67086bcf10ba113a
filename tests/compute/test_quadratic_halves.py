"""Split training without torch takes the steps of the whole quadratic, and refuses what is no tensor."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from echelon.compute.pool import build_split, spec_of
from echelon.compute.quadratic import QuadraticLearner
from echelon.compute.quadratic_halves import MICROS, QuadraticHalves
from echelon.config.run import RunSettings, parse
from echelon.errors import CodecError, ConfigError
from echelon.jobs.device_part import (
    Back,
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
from echelon.messages.adapter import Vector
from echelon.messages.frames import Backward, Begin, Decline, Finish, Forward, Look, to_double
from echelon.messages.wire import Message
from echelon.rounds.effects import (
    EdgeDone,
    EdgeStart,
    EdgeTask,
    Evaluate,
    Evaluated,
    SplitJob,
    TrainJob,
    TrainOutcome,
)
from tests.run.runs import run
from tests.run.splits import check, parts_of, split_federation

STAND_IN = {"kind": "quadratic", "dim": 18, "blocks": 4}
EDGE = "a.edge-0"


def settings(**split: object) -> RunSettings:
    return split_federation(learner=STAND_IN, split=split)


def halves(**split: object) -> QuadraticHalves:
    found = build_split(settings(**split))
    assert isinstance(found, QuadraticHalves)
    return found


def work(head: Message, tensor: bytes = b"", **fields: object) -> EdgeTask:
    return EdgeTask(device="a-0", session=bytes(16), job=1, head=head, tensor=tensor, **fields)  # type: ignore[arg-type]


def place_of(base: Vector, start: Vector, cut: tuple[int, int], mu: float = 0.0) -> EdgeStart:
    return EdgeStart(
        base=base, start=start, front=cut[0], back=cut[1], mu=mu, progress=0.0, state=None, secret=bytes(32)
    )


async def job(subject: QuadraticHalves, train: TrainJob) -> tuple[TrainOutcome, EdgeDone]:
    """One job as a device and its edge do it together."""
    half = subject.half("a", "a-0")
    started = await half.part(StartTraining(job=1, train=train, secret=bytes(32)))
    assert started.placed is not None
    front, back = started.placed.front, started.placed.back
    place = place_of(train.base, train.start, (front, back), train.mu)
    begin = Begin(
        job=1,
        version=0,
        on_top=(),
        after=0,
        front=front,
        back=back,
        mu=to_double(train.mu),
        steps=train.steps,
    )
    await subject.part(EDGE, work(begin, started.tensor, start=place))
    one = to_double(1.0)
    for step in range(train.steps):
        count = (await half.part(ReadStep(job=1))).count
        for micro in range(count):
            forward = Forward(job=1, step=step, micro=micro, count=count, scale=one)
            tensor = (await half.part(Front(job=1, micro=micro))).tensor
            done = await subject.part(EDGE, work(forward, tensor, step=step > 0 and micro == 0))
            gradient = (await half.part(Back(job=1, micro=micro, hidden=done.tensor))).tensor
            last = micro == count - 1
            done = await subject.part(
                EDGE, work(Backward(job=1, step=step, micro=micro), gradient, last=last)
            )
            assert done.fault is None
            assert (done.norm2 > 0) == last
            await half.part(FrontBackward(job=1, micro=micro, gradient=done.tensor, waited=0.0))
        assert (await half.part(TakeStep(job=1, norm2=done.norm2))).scale == 1.0
    finished = await subject.part(EDGE, work(Finish(job=1, scale=one), step=True))
    outcome = (await half.part(FinishPart(job=1))).outcome
    assert isinstance(outcome, TrainOutcome)
    return outcome, finished


@pytest.mark.parametrize("cut", [(1, 1), (2, 1), (0, 1), (1, 0)])
def test_a_split_job_is_the_whole_one_bit_for_bit(cut: tuple[int, int]) -> None:
    subject = halves(front=cut[0], back=cut[1])
    start = np.linspace(-1, 1, 18).astype(np.float32)
    base = start * np.float32(0.5)
    train = TrainJob(
        data="a-0",
        base=base,
        start=start,
        steps=3,
        mu=0.1,
        progress=0.0,
        state=None,
        split=SplitJob(job=1, edge=EDGE, version=0, after=0, on_top=()),
    )
    done, finished = asyncio.run(job(subject, train))
    learner = QuadraticLearner(spec_of(settings()), 18, blocks=4)
    whole = learner.train(
        TrainJob(data="a-0", base=base, start=start, steps=3, mu=0.1, progress=0.0, state=None)
    )
    middle = subject.middle_of(*cut)
    assert 0 < middle.size < 18
    assert finished.moved is not None
    own = np.setdiff1d(np.arange(18), middle)
    assert np.array_equal(done.weights[own], whole.weights[own])
    assert np.array_equal(done.weights[middle], start[middle])
    assert np.array_equal(finished.moved[middle], whole.weights[middle] - start[middle])
    assert not finished.moved[own].any()
    assert (done.tokens, done.state, done.position) == (whole.tokens, whole.state, whole.position)
    assert done.loss_sum == pytest.approx(whole.loss_sum, rel=1e-12)
    assert done.held == (cut[0], 4 - cut[1])


def test_an_evaluation_with_an_edge_is_the_whole_one() -> None:
    subject = halves()
    half = subject.half("a", "a-0")
    weights = np.linspace(-1, 1, 18).astype(np.float32)
    place = place_of(weights, weights, (1, 1))

    async def evaluate() -> float:
        task = Evaluate(7, weights, edge=EDGE, job=1)
        [micro] = range((await half.part(ReadEvaluation(job=1, evaluate=task))).count)
        started = await half.part(StartEvaluation(job=1, evaluate=task, secret=bytes(32)))
        assert started.placed == Placed(front=1, back=1, in_flight=8)
        begin = Begin(job=1, version=0, on_top=(), after=0, front=1, back=1, mu=to_double(0.0), steps=1)
        await subject.part(EDGE, work(begin, start=place))
        look = Look(job=1, micro=micro, scale=to_double(1.0))
        shown = await half.part(ShowBatch(job=1, micro=micro))
        done = await subject.part(EDGE, work(look, shown.tensor))
        await half.part(JudgeBatch(job=1, micro=micro, hidden=done.tensor))
        found = (await half.part(FinishPart(job=1))).outcome
        assert isinstance(found, Evaluated)
        assert found.commit == 7
        return found.loss_sum

    whole = QuadraticLearner(spec_of(settings()), 18, blocks=4).evaluate("a-0", weights)
    assert asyncio.run(evaluate()) == whole.loss_sum


def test_what_is_no_tensor_is_refused_and_a_job_that_is_not_there_is_declined() -> None:
    subject = halves()
    forward = Forward(job=1, step=0, micro=0, count=MICROS, scale=to_double(1.0))
    strange = asyncio.run(subject.part(EDGE, work(forward, b"")))
    assert strange.fault is Decline.NOT_TRAINED
    weights = np.zeros(18, np.float32)
    place = place_of(weights, weights, (1, 1))
    begin = Begin(job=1, version=0, on_top=(), after=0, front=1, back=1, mu=to_double(0.0), steps=1)
    asyncio.run(subject.part(EDGE, work(begin, start=place)))
    for tensor in (b"", bytes(15), np.full(2 * subject.middle_of(1, 1).size, np.nan).tobytes()):
        assert asyncio.run(subject.part(EDGE, work(forward, tensor))).fault is Decline.BAD_TENSOR
    with pytest.raises(CodecError, match="rows"):
        asyncio.run(subject.half("a", "a-0").part(Back(job=1, micro=0, hidden=b"short")))


@pytest.mark.slow
def test_a_federation_of_split_quadratics_closes_with_parts() -> None:
    outcome = run(settings())
    check(outcome)
    assert any(edges for _, edges in parts_of(outcome))


@pytest.mark.parametrize(
    ("learner", "split", "message"),
    [
        ({"kind": "quadratic", "dim": 18}, {}, "no blocks to split: give it some"),
        ({"kind": "quadratic", "dim": 3, "blocks": 4}, {}, "4 of a vector of 3"),
        (STAND_IN, {"front": 3, "back": 1}, "leave no middle"),
        (STAND_IN, {"probes": 4}, "probes, perturbation and profiles are of models"),
        (STAND_IN, {"perturbation": 4}, "probes, perturbation and profiles are of models"),
    ],
)
def test_what_a_quadratic_has_not_is_refused(
    learner: dict[str, object], split: dict[str, object], message: str
) -> None:
    fields = settings().model_dump(mode="json", exclude_unset=True)
    fields["learner"] = learner
    fields["boundaries"][0]["split"] |= split
    with pytest.raises(ConfigError, match=message):
        parse(fields, "test")
