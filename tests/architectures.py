"""Tiny models of many architectures, drawn at random from configurations, saved to disk with a tokenizer of words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel

from tests.classifiers import save_tokenizer

VOCABULARY = 48
_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 4}
_USUAL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
_GROUPED = _USUAL | {"num_key_value_heads": 1, "head_dim": 8}
_GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}


@dataclass(frozen=True)
class Architecture:
    """A family: its sizes, and from which class of the library it is saved.

    Attributes:
        kind: the model type.
        sizes: of the configuration.
        saved: causal, masked, or bare: a model without any head.
        idle: layers whose adapter the library's forward pass goes around.
    """

    kind: str
    sizes: dict[str, Any]
    saved: str = "causal"
    idle: tuple[str, ...] = ()

    def save(self, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
        """Draw the model and write it with its tokenizer.

        Args:
            folder: where.
            dtype: of the weights in the file.
        """
        config = AutoConfig.for_model(self.kind, **(_TOKENS | self.sizes))
        library = {"causal": AutoModelForCausalLM, "masked": AutoModelForMaskedLM, "bare": AutoModel}[
            self.saved
        ]
        torch.manual_seed(5)
        model: PreTrainedModel = library.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1:  # as they are drawn, small models hardly look at their input
                    parameter.normal_(0, 0.25)
                elif "sinks" in name:
                    parameter.zero_()
        torch.nn.Module.to(model, dtype)  # in place
        model.save_pretrained(folder)
        save_tokenizer(folder, "bert" if self.saved != "causal" else "llama")
        return folder


CAUSAL = {
    found.kind: found
    for found in (
        Architecture("llama", _GROUPED),
        Architecture("mistral", _GROUPED),
        Architecture("qwen2", _GROUPED | {"tie_word_embeddings": True}),
        Architecture("qwen3", _GROUPED),
        Architecture("gemma", _GROUPED),
        Architecture("gemma2", _GROUPED),
        Architecture("gemma3_text", _GROUPED),
        Architecture("phi", _USUAL),
        Architecture("phi3", _GROUPED),
        Architecture("olmo2", _GROUPED),
        Architecture("stablelm", _GROUPED),
        Architecture("starcoder2", _GROUPED),
        Architecture("gpt2", _GPT),
        Architecture(
            "gpt_neo",
            {
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "max_position_embeddings": 64,
                "attention_types": [[["global", "local"], 1]],
            },
        ),
        Architecture("gpt_neox", _USUAL),
        Architecture("gptj", _GPT | {"rotary_dim": 4}),
        Architecture("gpt_bigcode", _GPT),
        Architecture("opt", _USUAL | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
        Architecture("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),
        Architecture("falcon", _USUAL | {"multi_query": True}),
        Architecture("mpt", {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 64}),
        Architecture("mixtral", _GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2}),
        Architecture("qwen2_moe", _GROUPED | _EXPERTS | {"shared_expert_intermediate_size": 12}),
        Architecture("qwen3_moe", _GROUPED | _EXPERTS),
        Architecture("olmoe", _GROUPED | _EXPERTS),
        Architecture("gpt_oss", _GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2}),
        Architecture(
            "deepseek_v3",
            _USUAL
            | {
                "num_key_value_heads": 2,
                "q_lora_rank": 8,
                "kv_lora_rank": 8,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 8,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "n_group": 2,
                "topk_group": 1,
                "moe_intermediate_size": 12,
                "first_k_dense_replace": 1,
            },
        ),
        Architecture("granitemoe", _GROUPED | {"num_local_experts": 3, "num_experts_per_tok": 2}),
        Architecture(
            "mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4}, idle=("dt_proj",)
        ),
    )
}
"""Language models."""

_BERT = _USUAL | {"type_vocab_size": 2}
ENCODERS = {
    f"{found.kind}-{found.saved}": found
    for found in (
        Architecture("bert", _BERT, "bare"),
        Architecture("bert", _BERT, "masked"),
        Architecture(
            "distilbert",
            {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2, "max_position_embeddings": 64},
            "masked",
        ),
        Architecture("roberta", _BERT | {"max_position_embeddings": 66}, "masked"),
        Architecture("xlm-roberta", _BERT | {"max_position_embeddings": 66}, "masked"),
        Architecture("camembert", _BERT | {"max_position_embeddings": 66}, "bare"),
        Architecture("deberta", _BERT, "bare"),
        Architecture("deberta-v2", _BERT, "bare"),
        Architecture("electra", _BERT | {"embedding_size": 8}, "bare"),
        Architecture("albert", _BERT | {"embedding_size": 8}, "masked"),
        Architecture("mpnet", _USUAL, "bare"),
        Architecture("modernbert", _USUAL | {"cls_token_id": 2, "sep_token_id": 3}, "masked"),
        Architecture(
            "t5",
            {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "eos_token_id": 3}
            | {"decoder_start_token_id": 0},
            "bare",
        ),
        Architecture(
            "bart",
            {
                "d_model": 16,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 24,
                "decoder_ffn_dim": 24,
                "max_position_embeddings": 64,
                "eos_token_id": 3,
                "decoder_start_token_id": 0,
            },
            "bare",
        ),
    )
}
"""Models that read a whole text, saved without a classifier's head."""

READS_PADDING = Architecture("xlnet", {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24}, "bare")
