"""Tiny models of four families with three and more blocks, saved to disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

BLOCKS = 4
VOCABULARY = 60
WIDTH = 16


@pytest.fixture(scope="session")
def split_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny model with four blocks, by family."""
    root = tmp_path_factory.mktemp("split")
    ids = {"vocab_size": VOCABULARY, "eos_token_id": 0, "pad_token_id": 0, "bos_token_id": None}
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
    }

    def build(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            torch.manual_seed(5)
            if family == "llama":
                model = LlamaForCausalLM(LlamaConfig(**ids, **shape, tie_word_embeddings=True))
            elif family == "qwen2":
                model = Qwen2ForCausalLM(Qwen2Config(**ids, **shape, num_key_value_heads=1))
            elif family == "gpt2":
                narrow = {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 2, "n_positions": 64}
                model = GPT2LMHeadModel(GPT2Config(**ids, **narrow))
            else:
                model = BertForMaskedLM(BertConfig(**ids, **shape))
            model.save_pretrained(folder)
        return folder

    return build
