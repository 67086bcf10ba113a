"""The learner without torch: what it claims of itself is what the tests of everything else rest on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from echelon.compute.pool import spec_of
from echelon.compute.quadratic import RATE, STRETCH, TOKENS_PER_STEP, QuadraticLearner, gradient
from echelon.config.experiments import DeviceFault
from echelon.config.run import RunSettings
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Factor, factor_mask
from echelon.messages.boundary import Join
from echelon.messages.handshake import Consistency
from echelon.rounds.effects import Publish, Save
from echelon.run.vanishing import vanishing
from tests.memory import traced
from tests.run.runs import federation


def learner(seed: int = 1, dim: int = 16) -> QuadraticLearner:
    settings: RunSettings = federation(seed=seed, learner={"kind": "quadratic", "dim": dim})
    return QuadraticLearner(spec_of(settings), dim)


def task(start: np.ndarray, steps: int, *, mu: float = 0.0, state: bytes | None = None) -> TrainJob:
    return TrainJob(
        data="a-0",
        base=np.zeros(start.size, np.float32),
        start=start.astype(np.float32),
        steps=steps,
        mu=mu,
        progress=0.0,
        state=state,
    )


def test_it_is_the_same_from_the_same_seed_and_another_from_another() -> None:
    zeros = np.zeros(16)
    first, again, other = (learner(seed).train(task(zeros, 5)).weights for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert learner(1).model_digest == learner(1).model_digest != learner(2).model_digest


def test_two_jobs_are_one_job_of_as_many_steps() -> None:
    one = learner().train(task(np.zeros(16), 8))
    first = learner().train(task(np.zeros(16), 5))
    second = learner().train(task(first.weights, 3, state=first.state))
    np.testing.assert_allclose(second.weights, one.weights, rtol=0, atol=1e-6)
    assert second.state == one.state
    assert (one.tokens, one.loss_tokens) == (8 * TOKENS_PER_STEP, 8 * TOKENS_PER_STEP)


def test_training_goes_to_the_optimum_and_the_proximal_term_holds_it_back() -> None:
    subject = learner()
    optimum = subject.optimum("a-0")
    free = subject.train(task(np.zeros(16), 200)).weights
    held = subject.train(task(np.zeros(16), 200, mu=1.0)).weights
    np.testing.assert_allclose(free, optimum, rtol=0, atol=0.05)
    np.testing.assert_allclose(held, optimum / 2, rtol=0, atol=0.05)  # w - x + μ w = 0 at μ = 1
    assert subject.evaluate("a-0", free).loss_sum < subject.evaluate("a-0", held).loss_sum


def test_a_boundary_is_the_sum_of_its_devices() -> None:
    subject = learner()
    weights = np.ones(16, np.float32)
    parts = [subject.evaluate(f"b-{number}", weights) for number in range(4)]
    whole = subject.evaluate_boundary("b", weights)
    assert whole.tokens == sum(part.tokens for part in parts)
    assert whole.loss_sum == pytest.approx(sum(part.loss_sum for part in parts))


def test_a_device_vanishes_before_the_record_that_its_fault_names() -> None:
    assert vanishing(()) is None
    passes = vanishing(
        (DeviceFault(device="a-1", at="consistency", window=2), DeviceFault(device="a-2", at="start"))
    )
    assert passes is not None
    signature = Consistency(window=2, signature=bytes(64))
    assert passes("a-1", Publish("checkin", Join(), 0))
    assert passes("a-1", Publish("handshake", signature, 1))
    assert passes("a-1", Save())
    assert not passes("a-1", Publish("handshake", signature, 2))
    assert not passes("a-1", Publish("handshake", signature, 3))
    assert passes("a-0", Publish("handshake", signature, 2))
    assert not passes("a-2", Save())


LONG = 3 * STRETCH + 11


@pytest.mark.parametrize("factor", [None, Factor.A, Factor.B])
def test_a_long_vector_is_trained_as_if_it_were_whole(factor: Factor | None) -> None:
    """Bit for bit, as numpy computes with whole arrays."""
    subject, dice = learner(dim=LONG), np.random.default_rng(2)
    start, base = (dice.standard_normal(LONG).astype(np.float32) for _ in range(2))
    done = subject.train(replace(task(start, 2, mu=0.1), base=base, factor=factor))
    weights, optimum, loss = start.astype(np.float64), subject.optimum("a-0"), 0.0
    moving = True if factor is None else factor_mask(subject.layout, factor)
    for step in range(2):
        loss += subject.loss(weights, optimum)
        slope = gradient(weights, optimum, subject.noise("a-0", step), 0.1, base)
        weights = weights - RATE * np.where(moving, slope, 0.0)
    assert np.array_equal(done.weights, weights.astype(np.float32))
    assert done.loss_sum == loss * TOKENS_PER_STEP
    assert subject.evaluate("a-0", start).loss_sum == (
        subject.loss(start.astype(np.float64), optimum) * TOKENS_PER_STEP
    )


def test_a_long_vector_costs_what_comes_of_the_job() -> None:
    dim = 16 * STRETCH
    start = np.zeros(dim, np.float32)
    with traced() as peak:
        subject = learner(dim=dim)
        subject.train(task(start, 3))
        subject.evaluate("a-0", start)
        assert peak() < 4 * dim + 24 * 8 * STRETCH
