"""The model families that can be cut in three parts, by the type that a configuration names."""

from __future__ import annotations

from echelon.elsa.families.base import Family
from echelon.elsa.families.bert import BERT
from echelon.elsa.families.gpt2 import GPT2
from echelon.elsa.families.llama import LLAMA, QWEN2
from echelon.errors import ConfigError

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, QWEN2, GPT2, BERT)}
"""Every family, by model type. Others may do more between embedding and first block than can be seen from outside."""


def family_of(model_type: object) -> Family:
    """The family of a model type.

    Raises:
        ConfigError: models of that type cannot be cut.
    """
    found = FAMILIES.get(str(model_type))
    if found is None:
        raise ConfigError(
            f"model type {model_type!r} cannot be cut in three parts; families that can: {', '.join(FAMILIES)}"
        )
    return found
