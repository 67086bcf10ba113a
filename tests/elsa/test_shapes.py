"""Shapes that are read from configurations."""

from __future__ import annotations

import pytest

from echelon.elsa.shapes import read_shape
from echelon.errors import ConfigError

LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 500,
}


def test_a_shape_has_the_sizes_of_the_configuration_and_what_the_family_makes_of_them() -> None:
    shape = read_shape(LLAMA)
    assert (shape.layers, shape.hidden, shape.kv_heads, shape.head_dim, shape.key) == (2, 48, 4, 12, 48)
    assert shape.block == shape.family.block(shape)
    assert shape.parameters == 500 * 48 * 2 + 48 + 2 * (4 * 48 * 48 + 3 * 48 * 112 + 2 * 48)
    assert shape == read_shape(dict(LLAMA))
    assert read_shape(LLAMA, labels=3).head_parameters == 4 * 48


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "t5"}, "cannot be cut"),
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"vocab_size": True}, "vocab_size"),
    ],
)
def test_families_and_sizes_that_cannot_be_read_are_refused(changes: dict[str, object], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        read_shape({**LLAMA, **changes})


def test_a_classifier_without_a_class_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least one class"):
        read_shape(LLAMA, labels=0)
