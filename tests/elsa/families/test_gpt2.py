"""GPT-2 against real models."""

from __future__ import annotations

from typing import Any

import transformers

from echelon.elsa.families.gpt2 import GPT2
from tests.worlds.family_contract import HIDDEN, INNER, VOCABULARY, FamilyContract


class TestGpt2(FamilyContract):
    family = GPT2

    def config(self, layers: int, **more: Any) -> Any:
        sizes = {"n_embd": HIDDEN, "n_inner": INNER, "n_head": 4, "n_positions": 64, "vocab_size": VOCABULARY}
        quiet = {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}
        return transformers.GPT2Config(n_layer=layers, **sizes, **quiet, **more)
