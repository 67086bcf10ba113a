"""The registry of families."""

from __future__ import annotations

import pytest

from echelon.elsa.families.registry import FAMILIES, family_of
from echelon.errors import ConfigError


def test_a_family_is_found_by_the_type_that_a_configuration_names() -> None:
    assert {family_of(name).model_type for name in FAMILIES} == set(FAMILIES)
    assert len(FAMILIES) >= 4


@pytest.mark.parametrize("named", ["t5", "Llama", None, 3])
def test_another_type_is_refused_with_the_types_that_can_be_cut(named: object) -> None:
    with pytest.raises(ConfigError, match=r"cannot be cut in three parts.* llama, qwen2, gpt2, bert"):
        family_of(named)
