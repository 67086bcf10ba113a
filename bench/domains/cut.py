"""A small model cut from a large one: its first layers, and the rows of a smaller vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from bench.domains.vocabulary import Vocabulary
from echelon.errors import ConfigError

LAYERS = 4
CONTEXT = 2048
"""Most tokens of a sequence."""


def cut(large: Any, vocabulary: Vocabulary, layers: int = LAYERS) -> Any:
    """The first layers of a Llama with tied embeddings, with the rows that the vocabulary names; float32.

    A token that the large model has no row for gets the mean of all rows.

    Args:
        large: a causal language model of transformers.
        vocabulary: which rows are kept.
        layers: how many layers are kept.

    Raises:
        ConfigError: it is another kind of model, or has fewer layers.
    """
    config = large.config
    if config.model_type != "llama" or not config.tie_word_embeddings:
        raise ConfigError("only a Llama with tied embeddings can be cut: this is another model")
    if not 1 <= layers <= config.num_hidden_layers:
        raise ConfigError(f"the model has {config.num_hidden_layers} layers; {layers} cannot be kept of them")
    marks = vocabulary.tokenizer
    shape: Any = LlamaConfig(
        **{
            **config.to_dict(),
            "vocab_size": len(vocabulary.rows),
            "num_hidden_layers": layers,
            "max_position_embeddings": min(CONTEXT, config.max_position_embeddings),
            "bos_token_id": marks.bos_token_id,
            "eos_token_id": marks.eos_token_id,
            "pad_token_id": marks.pad_token_id,
            "unk_token_id": None,
            "_name_or_path": "",
            "dtype": "float32",
        },
    )
    small: Any = LlamaForCausalLM(shape)
    small.float()
    embedding = large.get_input_embeddings().weight.detach().to(torch.float32)
    rows = torch.tensor(vocabulary.rows)
    kept = embedding[rows.clamp(min=0)].clone()
    kept[rows < 0] = embedding.mean(0)
    state = {
        name: value.detach().to(torch.float32)
        for name, value in large.state_dict().items()
        if name in small.state_dict()
    }
    state["model.embed_tokens.weight"] = state["lm_head.weight"] = kept
    small.load_state_dict(state)
    small.tie_weights()
    return small
