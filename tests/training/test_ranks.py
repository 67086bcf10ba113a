"""Several processes that train one job give what one process gives, up to the order of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from echelon.compute.pool import build_learner, spec_of
from echelon.config.experiments import LearnerSettings
from echelon.config.run import parse
from echelon.errors import ConfigError, TrainingError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.training.local import TorchLearner
from echelon.training.ranks import AmongRanks, DataParallelLearner, DividedLearner
from tests.preflight.test_check import fields

MakeSpec = Callable[..., Any]


def job(learner: TorchLearner, start: Vector, state: bytes | None = None) -> TrainJob:
    device = learner.spec.boundaries[0].devices[0]
    return TrainJob(data=device, base=start, start=start, steps=3, mu=0.1, progress=0.0, state=state)


Several = DataParallelLearner | DividedLearner


# A batch of three is not divided evenly, and the last part of an accumulation holds one sequence. Of a batch of one the
# second rank has none.
UNEVEN = {"batch_size": 3, "accumulation": 2}


@pytest.fixture(
    params=[(False, UNEVEN), (True, UNEVEN), (True, {"batch_size": 1, "accumulation": 3})],
    ids=["whole", "divided", "idle"],
)
def several(request: pytest.FixtureRequest, make_spec: MakeSpec) -> Iterator[Several]:
    divided, train = request.param
    spec = make_spec(train=train).model_copy(update={"ranks": 2, "divide_base": divided})
    made = build_learner(spec, LearnerSettings())
    assert isinstance(made, DividedLearner if divided else DataParallelLearner)
    yield made
    made.close()


def alone_of(several: Several) -> TorchLearner:
    return TorchLearner(several.spec.model_copy(update={"ranks": 1, "divide_base": False}))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with sums on a CPU, by gloo")
def test_two_ranks_train_as_one_does(several: Several) -> None:
    alone = alone_of(several)
    start = alone.initial_adapter()
    np.testing.assert_array_equal(start, several.initial_adapter())
    expected, found = alone.train(job(alone, start)), several.train(job(several, start))
    assert (found.tokens, found.loss_tokens) == (expected.tokens, expected.loss_tokens)
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    moved = np.abs(expected.weights - start).max()
    assert moved > 1e-3
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=moved * 1e-3)
    # The next job goes on from where the first one ended: all ranks have the same moments and place.
    expected = alone.train(job(alone, expected.weights, expected.state))
    found = several.train(job(several, found.weights, found.state))
    np.testing.assert_allclose(found.weights, expected.weights, rtol=0, atol=moved * 2e-3)
    evaluated, told = alone.evaluate("a0", start), several.evaluate("a0", start)
    assert (told.tokens, told.loss) == (evaluated.tokens, pytest.approx(evaluated.loss, rel=1e-6))
    assert several.generate(start, "a", 4) == alone.generate(start, "a", 4)
    assert several.model_digest == alone.model_digest
    # What cannot be trained ends the job for all ranks, and the next one is trained.
    with pytest.raises(TrainingError, match="cannot be trained"):
        several.train(replace(job(several, start), mu=-1.0))
    again = several.train(job(several, start))
    assert again.loss_sum == pytest.approx(alone.train(job(alone, start)).loss_sum, rel=1e-5)
    # A rank that is gone ends the job with a sentence.
    process, _ = several._others._members[0]
    process.kill()
    process.join()
    with pytest.raises(TrainingError, match="a rank of this training has ended"):
        several.train(job(several, start))


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="divides main memory, by gloo")
def test_a_divided_base_is_held_once_among_the_ranks(make_spec: MakeSpec) -> None:
    learner = DividedLearner(make_spec().model_copy(update={"ranks": 2, "divide_base": True}))
    try:
        frozen = [p for p in learner.model.parameters() if not p.requires_grad]
        assert all(isinstance(p, DTensor) for p in frozen)
        held = sum(p.to_local().numel() for p in frozen if isinstance(p, DTensor))
        assert held == sum(p.numel() for p in frozen) / 2
    finally:
        learner.close()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_parts_are_the_whole_batch(count: int) -> None:
    batch = np.arange(4)
    parts = [AmongRanks(rank, count).of(batch) for rank in range(count)]
    assert sorted(np.concatenate(parts)) == [0, 1, 2, 3]


def test_each_rank_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch, make_spec: MakeSpec) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"compute\.ranks 2 needs as many GPUs, and this machine has 1"):
        DataParallelLearner(make_spec().model_copy(update={"ranks": 2}))


def test_the_run_file_says_how_many() -> None:
    assert spec_of(parse(fields(compute={"ranks": 4}), "run.yaml")).ranks == 4
    boundary = {"name": "a", "devices": 3, "data": {"source": "text:x"}, "split": {}}
    with pytest.raises(ConfigError, match=r"compute\.ranks must be 1"):
        parse(fields(boundaries=[boundary], compute={"ranks": 2}), "run.yaml")


def test_the_run_file_says_that_the_base_is_divided() -> None:
    compute = {"ranks": 2, "divide_base": True}
    assert spec_of(parse(fields(compute=compute), "run.yaml")).divide_base
    with pytest.raises(ConfigError, match=r"divides the frozen weights among compute\.ranks, and there is 1"):
        parse(fields(compute={"divide_base": True}), "run.yaml")
    with pytest.raises(ConfigError, match="quantised ones are not divided"):
        parse(fields(compute=compute, model={"quantization": "nf4"}), "run.yaml")
