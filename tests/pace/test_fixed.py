from __future__ import annotations

import pytest

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.pace.base import PaceInputs
from echelon.pace.fixed import FixedPace

PACE = Pace(steps=10, windows=2, mu_ppm=5)


def test_a_fixed_pace_never_moves() -> None:
    controller = FixedPace(PACE)
    after, pace = controller.observe(PaceInputs(1, (), (5, -3)))
    assert (after, pace) == (controller, PACE)
    assert after.digest() == controller.digest()


def test_its_state_is_its_terms() -> None:
    controller = FixedPace(PACE)
    assert controller.decode(controller.encode()) == controller
    other = FixedPace(Pace(steps=11, windows=2, mu_ppm=5))
    assert other.digest() != controller.digest()
    with pytest.raises(CodecError):
        other.decode(controller.encode())
