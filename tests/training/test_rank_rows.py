"""Training the first rows of A and columns of B alone, on a real model: the rest comes back with the bits it had."""

import numpy as np
import pytest

from echelon.errors import ConfigError
from echelon.messages.adapter import Factor, factor_mask, rank_rows
from echelon.training.local import TorchLearner
from echelon.training.state import TrainerState
from tests.training.jobs import trained

RANK, FULL = 2, 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "train", "mu"),
    [
        ({}, {}, 0.0),
        ({}, {"weight_decay": 0.1}, 0.5),
        ({}, {"optimizer": "muon", "weight_decay": 0.1}, 0.0),
        ({"dora": True}, {}, 0.0),
        ({"rslora": True}, {}, 0.0),
        ({"kind": "ffa"}, {"weight_decay": 0.1}, 0.0),
    ],
)
def test_rows_beyond_the_rank_keep_weights_and_moments_bit_for_bit(make_spec, adapter, train, mu):
    learner = TorchLearner(make_spec(adapter={"rank": FULL, **adapter}, train=train))
    whole = trained(learner, rank=0)  # moments everywhere, and B is not zero any more
    before = TrainerState.from_bytes(whole.state, learner.dim)
    beyond = rank_rows(learner.layout, FULL) >= RANK
    found = trained(learner, rank=RANK, start=whole.weights, state=whole.state, mu=mu)
    after = TrainerState.from_bytes(found.state, learner.dim)
    for new, old in (
        (found.weights, whole.weights),
        (after.first, before.first),
        (after.second, before.second),
    ):
        assert new[beyond].tobytes() == old[beyond].tobytes()
    assert (found.weights != whole.weights)[~beyond].mean() > 0.9
    assert not (found.weights - whole.weights)[beyond].any()  # what the device would offer: exact zeros


@pytest.mark.slow
def test_one_factor_of_the_first_rows_alone(make_spec):
    learner = TorchLearner(make_spec(adapter={"rank": FULL}))
    start = trained(learner, rank=0).weights
    moved = trained(learner, rank=RANK, start=start, factor=Factor.B).weights != start
    within = (rank_rows(learner.layout, FULL) < RANK) & factor_mask(learner.layout, Factor.B)
    assert not moved[~within].any()
    assert moved[within].mean() > 0.9


@pytest.mark.slow
def test_of_the_full_rank_nothing_is_frozen(make_spec):
    learner = TorchLearner(make_spec(adapter={"rank": FULL}))
    assert trained(learner, rank=FULL).weights.tobytes() == trained(learner, rank=0).weights.tobytes()


@pytest.mark.slow
def test_clipping_sees_the_gradient_of_the_rows_that_move(make_spec):
    learner = TorchLearner(make_spec(adapter={"rank": FULL}, train={"clip_norm": 1e-3, "eps": 1.0}))
    within = rank_rows(learner.layout, FULL) < RANK
    start = np.random.default_rng(1).normal(0, 0.3, learner.dim).astype(np.float32)
    alone, whole = (trained(learner, rank=rank, start=start) for rank in (RANK, 0))
    a, b = (np.linalg.norm((found.weights - start)[within]) for found in (alone, whole))
    assert a > 1.1 * b > 0


@pytest.mark.slow
def test_a_kind_that_keeps_a_part_on_the_device_has_no_ranks(make_spec):
    learner = TorchLearner(make_spec(adapter={"rank": FULL, "kind": "fedsa"}))
    with pytest.raises(ConfigError, match="need an adapter of which all that is trained travels"):
        trained(learner, rank=RANK)
