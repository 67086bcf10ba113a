"""An exported adapter as anybody loads it: transformers and PEFT alone."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from echelon.adapters.exported import filled
from echelon.messages.adapter import Vector, adapter_files
from echelon.training.local import TorchLearner


def reloaded(learner: TorchLearner, weights: Vector, folder: Path, to: Path) -> Any:
    """The base as anybody loads it, heads drawn anew, with the exported adapter."""
    layout, terms = learner.layout, learner.adapter_terms
    if terms is not None:
        layout, weights = filled(terms, layout, weights)
    for name, content in adapter_files(layout, learner.adapter_config_json, weights).items():
        (to / name).write_bytes(content)
    torch.manual_seed(99)
    if learner.spec.model.task == "classify":
        base = AutoModelForSequenceClassification.from_pretrained(
            folder, num_labels=len(learner.spec.model.labels)
        )
    else:
        base = AutoModelForCausalLM.from_pretrained(folder)
    base.config.pad_token_id = learner.tokenizer.pad_token_id
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(not match|missing|unexpected).*")
        return PeftModel.from_pretrained(base, to).eval()


def measured(model: Any, learner: TorchLearner) -> tuple[float, float | None]:
    """Loss and accuracy on the validation split of boundary `a`, sequence by sequence."""
    parts = learner.boundary_data("a").validation.values()
    total, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for held, place, length in ((one, *each) for one in parts for each in enumerate(one.lengths)):
            if learner.spec.model.task == "classify":
                tokens = torch.from_numpy(held.tokens[place, :length].astype(np.int64))[None]
                logits, target = model(input_ids=tokens).logits, torch.tensor([held.labels[place]])
                correct += int(logits.argmax() == target)
                count += 1
            else:
                tokens = torch.from_numpy(held.tokens[place, : length + 1].astype(np.int64))[None]
                logits, target = model(input_ids=tokens[:, :-1]).logits[0], tokens[0, 1:]
                count += int(length)
            total += F.cross_entropy(logits.float(), target, reduction="sum").item()
    return total / count, correct / count if learner.spec.model.task == "classify" else None
