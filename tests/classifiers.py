"""Tiny classifiers of two families with a tokenizer, saved to disk, and rows of three classes that are easily told."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from echelon.jobs.training import TrainOutcome
from echelon.training.local import TorchLearner
from echelon.training.state import TrainerState

LABELS = ("sport", "money", "weather")
WORDS = {
    "sport": ["goal", "match", "team", "player", "score", "league", "coach", "referee"],
    "money": ["bank", "loan", "share", "profit", "market", "price", "bond", "interest"],
    "weather": ["rain", "wind", "cloud", "storm", "sunny", "frost", "snow", "thunder"],
}
COMMON = ["the", "a", "of", "and", "in", "on", "today", "was", "very", "near", "under", "again"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "<end>"]
WIDTH, BLOCKS = 32, 4


def save_tokenizer(folder: Path, family: str) -> None:
    """Whole words. BERT's frames a text and pads; Llama's has an end mark alone."""
    words = [*SPECIAL, *COMMON, *(word for members in WORDS.values() for word in members)]
    found = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, "[UNK]"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    if family == "bert":
        ends = [("[CLS]", 2), ("[SEP]", 3)]
        found.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
        named = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    else:
        named = {"eos_token": "<end>", "unk_token": "[UNK]"}
    PreTrainedTokenizerFast(tokenizer_object=found, **named).save_pretrained(folder)


def save_model(folder: Path, family: str) -> Path:
    """A model of four blocks without a classifier's head, as a pretrained one comes."""
    shape: dict[str, Any] = {
        "vocab_size": 48,
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.15,
    }
    torch.manual_seed(7)
    if family == "bert":
        BertModel(BertConfig(**shape, pad_token_id=0)).save_pretrained(folder)
    else:
        LlamaForCausalLM(LlamaConfig(**shape, eos_token_id=4, bos_token_id=None)).save_pretrained(folder)
    save_tokenizer(folder, family)
    return folder


def write_rows(path: Path, count: int = 480, seed: int = 0) -> Path:
    """Rows {text, label} of 6 to 18 words, half of them words of the label's own, classes in turn."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for number in range(count):
            label = LABELS[number % 3]
            own = draw.choices(WORDS[label], k=draw.randint(3, 9))
            words = own + draw.choices(COMMON, k=len(own))
            draw.shuffle(words)
            file.write(json.dumps({"text": " ".join(words), "label": label}) + "\n")
    return path


def model_of(folder: Path) -> dict[str, Any]:
    """The run file's `model`."""
    return {"model": str(folder), "task": "classify", "labels": list(LABELS)}


def data_of(rows: Path, **changes: Any) -> dict[str, Any]:
    """The run file's `data`."""
    return {"source": f"jsonl:{rows}", "label_field": "label", "validation_fraction": 0.2} | changes


def gradient_of_first_step(learner: TorchLearner, result: TrainOutcome) -> np.ndarray:
    """The gradient of a job's only step, float32[d]: Adam's first moment is (1 - beta1) of it."""
    first = TrainerState.from_bytes(result.state, learner.dim).first
    return first / np.float32(1 - learner.spec.train.beta1)
