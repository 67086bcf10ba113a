"""The small model is the large one's first layers, with the rows of its tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bench.domains.cut import cut
from bench.domains.vocabulary import Vocabulary
from echelon.errors import ConfigError
from tests.bench.domains.test_vocabulary import large as large_tokenizer
from tests.bench.domains.test_vocabulary import small


def large(**other: Any) -> Any:
    torch.manual_seed(1)
    shape = {
        "vocab_size": len(large_tokenizer()),
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    }
    return LlamaForCausalLM(LlamaConfig(**{**shape, **other}))


def test_layers_norm_and_rows_are_those_of_the_large_model() -> None:
    whole, vocabulary = large(), small()
    part = cut(whole, vocabulary, 2)
    before, after = whole.state_dict(), part.state_dict()
    for name, value in after.items():
        if "embed" not in name and "lm_head" not in name:
            assert torch.equal(value, before[name])
    assert len(part.model.layers) == 2
    rows = before["model.embed_tokens.weight"]
    for at, row in enumerate(vocabulary.rows):
        expected = rows.mean(0) if row < 0 else rows[row]
        assert torch.equal(after["model.embed_tokens.weight"][at], expected)
    assert part.lm_head.weight.data_ptr() == part.model.embed_tokens.weight.data_ptr()


def test_with_all_layers_and_rows_nothing_changes() -> None:
    whole = large()
    everything = Vocabulary(small().tokenizer, tuple(range(len(large_tokenizer()))))
    part = cut(whole, everything, 3).eval()
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(part(tokens).logits, whole.eval()(tokens).logits, atol=1e-6)


def test_its_marks_are_those_of_the_small_vocabulary() -> None:
    config = cut(large(), small(), 1).config
    assert (config.vocab_size, config.eos_token_id, config.pad_token_id, config.bos_token_id) == (
        300,
        0,
        0,
        1,
    )
    assert config.max_position_embeddings == 2048


def test_another_model_and_too_many_layers_are_refused() -> None:
    with pytest.raises(ConfigError, match="the model has 3 layers; 4 cannot be kept of them"):
        cut(large(), small(), 4)
    with pytest.raises(ConfigError, match="only a Llama with tied embeddings can be cut"):
        cut(large(tie_word_embeddings=False), small(), 2)
    with pytest.raises(ConfigError, match="only a Llama with tied embeddings can be cut"):
        cut(GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1)), small(), 1)
