from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.training import TrainSettings
from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceKind, PaceTerms, RateShape, RateTerms
from echelon.pace.base import MergedDelta, PaceInputs
from echelon.pace.schedules import AdaComm, QuadraticSync, cosine_ppm, rate_ppm
from echelon.training.local import learning_rate
from tests.worlds.drift_world import UNIT, merged, window

START = Pace(steps=32, windows=2, mu_ppm=3)


def with_loss(nats: float, tokens: int = 1000) -> list[MergedDelta]:
    summary, mean = window(0, [np.ones(4)] * 3, [UNIT] * 3)
    told = summary.model_copy(update={"loss": round(nats * tokens * 65536), "loss_tokens": tokens})
    return [merged(0, mean, [told])]


def adacomm(**changes: object) -> AdaComm:
    terms = PaceTerms(kind=PaceKind.ADACOMM, steps_min=2, steps_max=64, period=1)
    return AdaComm(terms.model_copy(update=changes), START)


def run(controller: AdaComm, losses: list[float]) -> list[int]:
    found = []
    for number, loss in enumerate(losses, 1):
        controller, pace = controller.observe(PaceInputs(number, with_loss(loss), ()))
        found.append(pace.steps)
        assert (pace.windows, pace.mu_ppm) == (START.windows, START.mu_ppm)
    return found


def test_adacomm_follows_the_square_root_of_the_loss() -> None:
    assert run(adacomm(), [4.0, 3.0, 2.0, 1.0]) == [32, 28, 23, 16]
    assert [math.ceil(32 * math.sqrt(part / 4)) for part in (3, 2, 1)] == [28, 23, 16]


def test_adacomm_decays_where_the_loss_does_not_fall() -> None:
    assert run(adacomm(), [2.0] * 6) == [32, 16, 8, 4, 2, 2]
    assert run(adacomm(decay_ppm=750_000), [2.0, 2.0, 2.5]) == [32, 24, 18]


def test_adacomm_waits_for_a_period_and_for_losses() -> None:
    assert run(adacomm(period=2), [4.0, 4.0, 1.0, 1.0]) == [32, 32, 32, 16]
    controller, pace = adacomm().observe(PaceInputs(1, with_loss(0.0, tokens=0), ()))
    assert pace == START
    assert "no boundary" in controller.decision.reason


def qsr(**changes: object) -> QuadraticSync:
    terms = PaceTerms(
        kind=PaceKind.QSR, steps_min=1, steps_max=4096, growth_ppm=4 * MILLION,
        rate=RateTerms(shape=RateShape.COSINE, final_ppm=100_000),
    )  # fmt: skip
    return QuadraticSync(terms.model_copy(update=changes), START)


def test_qsr_is_the_inverse_square_of_the_learning_rate() -> None:
    controller, steps = qsr(), []
    for number in range(1, 101):
        controller, pace = controller.observe(PaceInputs(number, (), (), number * 10_000))
        steps.append(pace.steps)
    train = TrainSettings(lr=1.0, schedule="cosine", final_lr=0.1)
    for number in (1, 30, 50, 70):
        expected = max(32, math.floor((4 / learning_rate(train, number / 100)) ** 2))
        assert steps[number - 1] == pytest.approx(expected, abs=1)
    assert steps[-1] == 1600
    assert all(after <= 2 * before for before, after in pairwise(steps))


@given(st.integers(0, MILLION))
def test_the_integer_cosine_is_the_cosine(turn: int) -> None:
    assert abs(cosine_ppm(turn) - math.cos(math.pi * turn / MILLION) * MILLION) <= 1.5


@given(
    st.sampled_from(list(RateShape)), st.integers(0, MILLION), st.sampled_from([0.0, 0.1, 0.5]),
    st.sampled_from([0.0, 0.1, 1.0]),
)  # fmt: skip
def test_the_rate_is_the_one_that_devices_use(
    shape: RateShape, progress: int, warmup: float, final: float
) -> None:
    train = TrainSettings(lr=1.0, schedule=shape.value, warmup=warmup, final_lr=final)
    terms = RateTerms(shape=shape, warmup_ppm=round(warmup * MILLION), final_ppm=round(final * MILLION))
    expected = learning_rate(train, progress / MILLION) * MILLION
    assert rate_ppm(terms, progress) == pytest.approx(expected, abs=4)


def test_states_are_canonical() -> None:
    controllers = [
        adacomm().observe(PaceInputs(1, with_loss(3.0), ()))[0],
        qsr().observe(PaceInputs(1, (), (), 7))[0],
    ]
    for controller, fresh in zip(controllers, (adacomm(), qsr()), strict=True):
        restored = fresh.decode(controller.encode())
        assert restored == controller
        assert restored.digest() != fresh.digest()
        for wrong in (b"", controller.encode() + b"\x00", b"echelon qsr v2\x00\x90", bytes(40)):
            with pytest.raises(CodecError):
                fresh.decode(wrong)
