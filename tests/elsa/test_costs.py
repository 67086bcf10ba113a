"""Work and memory of parts; tests/elsa/families holds the counts of each family against real models."""

from __future__ import annotations

import pytest

from echelon.elsa.costs import (
    Load,
    block_activations,
    block_backward,
    block_forward,
    head_both,
    lora_parameters,
)
from echelon.elsa.families.registry import FAMILIES
from echelon.elsa.shapes import ModelShape
from echelon.errors import ConfigError


def shape_of(family: str, labels: int | None = None) -> ModelShape:
    return ModelShape(
        family=FAMILIES[family], layers=4, hidden=48, heads=4, kv_heads=2 if family == "llama" else 4, head_dim=12,
        intermediate=112, vocabulary=500, positions=64, types=2, tied=True, labels=labels,
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_work_grows_with_what_is_computed(family: str) -> None:
    shape, load = shape_of(family), Load(32, 4, 8)
    one, two = block_forward(shape, load, 1), block_forward(shape, load, 2)
    assert two.flops == 2 * one.flops
    assert two.kernels == one.kernels
    assert block_backward(shape, load, 1, first=True).flops < block_backward(shape, load, 1).flops
    none = Load(32, 4, 8, frozenset())
    assert block_forward(shape, none, 1).flops < one.flops
    assert lora_parameters(shape.block, none) == 0


def test_narrow_weights_keep_less_but_what_adapters_and_norms_widen() -> None:
    none, all_of_it = frozenset[str](), None
    for family, widened in (("llama", 4 * 2 * 48), ("gpt2", 0), ("bert", 0)):
        shape = shape_of(family)
        wide, narrow = (block_activations(shape, Load(32, element, 8, none)) for element in (4, 2))
        assert narrow == wide // 2 + widened
        inputs = sum(linear.inputs for linear in shape.block)
        adapted = block_activations(shape, Load(32, 2, 8, all_of_it))
        assert adapted == narrow + 4 * 8 * len(shape.block) + 4 * inputs


def test_a_classifiers_head_works_once_for_a_sequence_with_its_pooler_where_it_has_one() -> None:
    load = Load(32, 4, 8)
    assert head_both(shape_of("llama", 7), load, 3).flops == 4 * 48 * 7 * 3
    assert head_both(shape_of("bert", 7), load, 3).flops == 4 * 48 * (7 + 48) * 3


def test_a_load_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 or 4 bytes"):
        Load(16, 3, 8)
