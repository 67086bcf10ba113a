"""Training one factor alone, on a real model: the other comes back with the very bits that it had."""

import numpy as np
import pytest

from echelon.messages.adapter import Factor, factor_mask
from echelon.training.local import TorchLearner
from echelon.training.state import TrainerState
from tests.training.jobs import trained


@pytest.mark.slow
@pytest.mark.parametrize("train", [{}, {"weight_decay": 0.1}, {"clip_norm": None}])
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_the_frozen_factor_keeps_weights_and_moments_bit_for_bit(make_spec, train, mu):
    """Also against what moves without a gradient: AdamW's moments, its decay, the proximal term."""
    learner = TorchLearner(make_spec(train=train))
    both = trained(learner, factor=None)  # moments everywhere, and B is not zero any more
    before = TrainerState.from_bytes(both.state, learner.dim)
    for factor in Factor:
        mask = factor_mask(learner.layout, factor)
        found = trained(learner, factor=factor, start=both.weights, state=both.state, mu=mu)
        after = TrainerState.from_bytes(found.state, learner.dim)
        for new, old in (
            (found.weights, both.weights),
            (after.first, before.first),
            (after.second, before.second),
        ):
            assert new[~mask].tobytes() == old[~mask].tobytes()
            assert (new[mask] != old[mask]).mean() > 0.9
        assert not (found.weights - both.weights)[~mask].any()  # what the device would offer: exact zeros


def test_from_genesis_b_moves_first(learner):
    """B is zero at first, so A has no gradient; B has."""
    mask = factor_mask(learner.layout, Factor.B)
    found = trained(learner, factor=Factor.B)
    assert found.weights[mask].any()
    assert found.weights[~mask].tobytes() == learner.initial_adapter()[~mask].tobytes()
    other = trained(learner, factor=Factor.A, steps=1)
    assert other.weights.tobytes() == learner.initial_adapter().tobytes()


def test_what_moves_moves_as_if_the_other_were_no_parameter(make_spec):
    """Clipping sees the gradient of what moves alone."""
    learner = TorchLearner(make_spec(train={"clip_norm": 1e-3, "eps": 1.0}))
    mask = factor_mask(learner.layout, Factor.B)
    start = np.random.default_rng(1).normal(0, 0.3, learner.dim).astype(np.float32)  # both gradients count
    alone, both = (
        trained(learner, factor=Factor.B, start=start, steps=1),
        trained(learner, factor=None, start=start, steps=1),
    )
    # With so large an eps a step is proportional to its clipped gradient: in a larger norm it is smaller.
    a, b = (np.linalg.norm((found.weights - start)[mask]) for found in (alone, both))
    assert a > 1.1 * b > 0


def test_alternating_lowers_the_loss(learner):
    weights, state = learner.initial_adapter(), None
    before = learner.evaluate("a0", weights).loss
    for number in range(6):
        found = trained(
            learner, factor=Factor.A if number % 2 else Factor.B, start=weights, state=state, steps=4
        )
        weights, state = found.weights, found.state
    assert learner.evaluate("a0", weights).loss < before
