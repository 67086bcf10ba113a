"""Training on a data shard that moves: the place in its data comes from outside, the moments from the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from echelon.compute.quadratic import QuadraticLearner
from echelon.jobs.training import TrainJob
from echelon.training.local import TorchLearner
from echelon.training.state import TrainerState


@pytest.fixture(params=["torch", "quadratic"])
def either(request: pytest.FixtureRequest, learner: TorchLearner) -> Any:
    return learner if request.param == "torch" else QuadraticLearner(learner.spec, 8)


def task(learner: Any, name: str, **fields: Any) -> TrainJob:
    start = learner.initial_adapter()
    return dataclasses.replace(
        TrainJob(data=name, base=start, start=start, steps=3, mu=0.0, progress=0.0), **fields
    )


def test_a_result_says_where_the_data_goes_on(either: Any) -> None:
    first = either.train(task(either, "a0"))
    assert first.position > 0
    second = either.train(task(either, "a0", position=first.position))
    assert second.position == 2 * first.position


def test_the_position_decides_what_is_read_and_the_state_does_not(either: Any) -> None:
    """A device that read far in one shard begins another at its start, and goes on where somebody else left it."""
    mine = either.train(task(either, "a0", steps=5))
    fresh = either.train(task(either, "b1"))
    moved = either.train(task(either, "b1", state=mine.state, position=0))
    # The first step is taken before moments matter: the same data, hence the same losses to begin with.
    one, other = (
        either.train(task(either, "b1", steps=1, state=state, position=0)) for state in (None, mine.state)
    )
    assert (one.loss_sum, one.tokens) == (other.loss_sum, other.tokens)
    assert moved.position == fresh.position
    later = either.train(task(either, "b1", steps=1, state=mine.state, position=fresh.position))
    alone = either.train(task(either, "b1", steps=1, position=fresh.position))
    assert (later.loss_sum, later.tokens) == (alone.loss_sum, alone.tokens)
    if isinstance(either, TorchLearner):
        assert one.loss_sum != alone.loss_sum


def test_moments_go_with_the_device_from_shard_to_shard(learner: TorchLearner) -> None:
    mine = learner.train(task(learner, "a0"))
    moved = learner.train(task(learner, "b1", state=mine.state, position=4))
    fresh = learner.train(task(learner, "b1", position=4))
    assert TrainerState.from_bytes(moved.state, learner.dim).steps == 6
    assert moved.weights.tobytes() != fresh.weights.tobytes()


def test_without_a_position_the_state_says_it_as_for_a_device_with_data_of_its_own(either: Any) -> None:
    first = either.train(task(either, "a0"))
    second = either.train(task(either, "a0", state=first.state))
    again = either.train(task(either, "a0", state=first.state, position=first.position))
    assert second.weights.tobytes() == again.weights.tobytes()
    assert second.position == again.position == 2 * first.position
