from __future__ import annotations

import math

import numpy as np
import pytest

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import PaceKind, PaceTerms
from echelon.pace.adacomm import AdaComm
from echelon.pace.base import MergedDelta, PaceInputs
from echelon.pace.qsr import QuadraticSync
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


def test_its_state_is_canonical() -> None:
    controller, fresh = adacomm().observe(PaceInputs(1, with_loss(3.0), ()))[0], adacomm()
    restored = fresh.decode(controller.encode())
    assert restored == controller
    assert restored.digest() != fresh.digest()
    for wrong in (
        b"",
        controller.encode() + b"\x00",
        b"echelon qsr v2\x00\x90",
        bytes(40),
        QuadraticSync(fresh.terms, START).encode(),
    ):
        with pytest.raises(CodecError):
            fresh.decode(wrong)
