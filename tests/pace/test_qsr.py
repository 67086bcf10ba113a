from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.config.training import TrainSettings
from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, PaceKind, PaceTerms, RateShape, RateTerms
from echelon.pace.adacomm import AdaComm
from echelon.pace.base import PaceInputs
from echelon.pace.qsr import QuadraticSync, cosine_ppm, rate_ppm
from echelon.training.local import learning_rate

START = Pace(steps=32, windows=2, mu_ppm=3)


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


def test_its_state_is_canonical() -> None:
    controller, fresh = qsr().observe(PaceInputs(1, (), (), 7))[0], qsr()
    restored = fresh.decode(controller.encode())
    assert restored == controller
    assert restored.digest() != fresh.digest()
    for wrong in (
        b"",
        controller.encode() + b"\x00",
        b"echelon qsr v2\x00\x90",
        bytes(40),
        AdaComm(fresh.terms, START).encode(),
    ):
        with pytest.raises(CodecError):
            fresh.decode(wrong)
