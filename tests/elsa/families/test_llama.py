"""Llama and Qwen2 against real models."""

from __future__ import annotations

from typing import Any

import transformers

from echelon.elsa.families.llama import LLAMA, QWEN2
from tests.worlds.family_contract import USUAL, VOCABULARY, FamilyContract


class TestLlama(FamilyContract):
    family = LLAMA

    def config(self, layers: int, **more: Any) -> Any:
        common = {**USUAL, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
        return transformers.LlamaConfig(num_hidden_layers=layers, **common, **more)


class TestQwen2(FamilyContract):
    family = QWEN2

    def config(self, layers: int, **more: Any) -> Any:
        common = {**USUAL, "vocab_size": VOCABULARY, "num_key_value_heads": 2}
        return transformers.Qwen2Config(num_hidden_layers=layers, **common, **more)
