"""BERT against real models."""

from __future__ import annotations

from typing import Any

import transformers

from echelon.elsa.families.bert import BERT
from tests.worlds.family_contract import USUAL, VOCABULARY, FamilyContract


class TestBert(FamilyContract):
    family = BERT

    def config(self, layers: int, **more: Any) -> Any:
        sizes = {**USUAL, "max_position_embeddings": 64, "vocab_size": VOCABULARY}
        quiet = {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0}
        return transformers.BertConfig(num_hidden_layers=layers, **sizes, **quiet, **more)
