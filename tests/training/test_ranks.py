"""Several processes that train one job give what one process gives, up to the order of sums."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from echelon.compute.pool import build_learner, spec_of
from echelon.config.experiments import LearnerSettings
from echelon.config.run import parse
from echelon.errors import ConfigError, TrainingError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.training.local import TorchLearner
from echelon.training.ranks import AmongRanks, DataParallelLearner
from tests.preflight.test_check import fields

MakeSpec = Callable[..., Any]


def job(learner: TorchLearner, start: Vector, state: bytes | None = None) -> TrainJob:
    device = learner.spec.boundaries[0].devices[0]
    return TrainJob(data=device, base=start, start=start, steps=3, mu=0.1, progress=0.0, state=state)


@pytest.fixture
def several(make_spec: MakeSpec) -> Iterator[DataParallelLearner]:
    # A batch of three is not divided evenly, and the last part of an accumulation holds one sequence.
    train = {"batch_size": 3, "accumulation": 2}
    made = build_learner(make_spec(train=train).model_copy(update={"ranks": 2}), LearnerSettings())
    assert isinstance(made, DataParallelLearner)
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="compares with sums on a CPU, by gloo")
def test_two_ranks_train_as_one_does(several: DataParallelLearner) -> None:
    alone = TorchLearner(several.spec.model_copy(update={"ranks": 1}))
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
    # A rank that is gone ends the job with a sentence.
    process, _ = several._others[0]
    process.kill()
    process.join()
    with pytest.raises(TrainingError, match="a rank of this training has ended"):
        several.train(job(several, start))


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
