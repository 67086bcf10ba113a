"""FedSA-LoRA: A travels, B stays."""

from __future__ import annotations

import pytest

from echelon.adapters.fedsa import FedSa
from echelon.adapters.registry import FORMS


def test_both_factors_are_trained_and_b_stays() -> None:
    form = FedSa()
    assert (form.trains_a, form.exact, form.cores, form.scaled, form.width(8)) == (True, True, 0, False, 8)
    assert form.personal


@pytest.mark.parametrize(
    ("key", "stays"),
    [
        ("m.q.lora_A.weight", False),
        ("m.q.lora_B.weight", True),
        ("m.embed.lora_embedding_A", True),  # of embeddings the roles of the names are exchanged
        ("m.embed.lora_embedding_B", False),
        ("score.weight", False),
    ],
)
def test_what_starts_at_zero_stays(key: str, stays: bool) -> None:
    assert FedSa.stays(key) is stays


def test_of_no_other_kind_anything_stays() -> None:
    assert [form for form in FORMS.values() if form.personal] == [FedSa]
    others = [form for form in FORMS.values() if not form.personal]
    assert not any(form.stays("m.q.lora_B.weight") for form in others)
