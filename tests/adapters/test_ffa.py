"""FFA-LoRA: B alone is trained."""

from __future__ import annotations

from echelon.adapters.ffa import Ffa


def test_a_is_frozen_and_b_is_trained_itself() -> None:
    form = Ffa()
    assert (form.trains_a, form.exact, form.cores, form.scaled, form.width(8)) == (False, True, 0, False, 8)
