"""Memory of services that train an adapter of 64 MB on real brokers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bench.memory_kafka import BOUNDARY, peaks
from echelon.compute.pool import build_learner, spec_of
from echelon.config.run import parse
from echelon.config.training import ModelSettings
from echelon.provision.broker_map import EXCHANGE
from echelon.training.model import model_path
from tools.kafka.stack import Stack

RANK = 64
MOST = {"controller": 6.5, "a.aggregator": 7.5, "a.gate": 7.0, "a.device": 19.0}
"""Vectors of the adapter in float32 by which the peak of each service may be above that with an adapter of rank 1.
Measured once: 4.8, 5.3, 4.5 and 15.8. A device sends base, start and moments (two vectors) to its training process and
gets them back, each time as one piece of bytes besides."""


def save_model(folder: Path) -> Path:
    """A model of the Llama family with about 100 million random weights, and the shipped tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(model_path(ModelSettings()))
    config = LlamaConfig(
        hidden_size=768,
        num_hidden_layers=17,
        num_attention_heads=12,
        num_key_value_heads=12,
        intermediate_size=2048,
        vocab_size=len(tokenizer),
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(1)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def run_file(model: Path, rank: int) -> dict[str, Any]:
    """The fields of the run file: one boundary of two devices, one commit of one window of one short step."""
    return {
        "name": "memory",
        "model": {"model": str(model)},
        "adapter": {"rank": rank, "alpha": rank},
        "training": {"lr": 1e-4, "batch_size": 1, "sequence_length": 16},
        "boundaries": [
            {
                "name": BOUNDARY,
                "devices": 2,
                "data": {"source": "stdlib:email", "max_documents": 8, "max_validation_tokens": 64},
            }
        ],
        "secure": {"k_min": 2, "colluding": 0},
        "budget": {"commits": 1},
        "sync": {"steps": 1, "windows": 1, "eval_tokens": 1, "deadline": 600},
        "window": {"deadline": 600, "round_timeout": 600, "patience": 60},
        "compute": {"workers": 1},
    }


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_services_hold_few_copies_of_a_large_adapter(requires_kafka: None, tmp_path: Path) -> None:
    """The audit of what the run left is part of `peaks`, which raises if it finds a fault."""
    model = save_model(tmp_path / "model")
    settings = parse(run_file(model, RANK), "memory")
    vector = 4 * build_learner(spec_of(settings), settings.learner).layout.dim
    assert 60e6 < vector < 68e6
    with Stack(tmp_path / "stack", [EXCHANGE, BOUNDARY]) as stack:
        small, large = (
            peaks(run_file(model, rank), tmp_path / f"rank-{rank}", stack)[0] for rank in (1, RANK)
        )
    vectors = {name: (large[name] - small[name]) / vector for name in large}
    assert vectors.keys() == MOST.keys()
    assert all(vectors[name] <= most for name, most in MOST.items()), vectors
