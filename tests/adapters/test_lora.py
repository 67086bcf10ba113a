"""Plain LoRA: all of it is trained, and sums are not exact (tests/training/test_forms.py shows that they are not)."""

from __future__ import annotations

from echelon.adapters.lora import Lora


def test_both_factors_are_trained_and_no_exactness_is_claimed() -> None:
    form = Lora()
    assert (form.trains_a, form.exact, form.cores, form.scaled, form.width(8)) == (True, False, 0, False, 8)
