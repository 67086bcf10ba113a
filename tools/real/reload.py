"""What a run's adapter gives where nothing of this project is between it and the model: transformers and peft alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from echelon.compute.pool import spec_of
from echelon.config.run import load
from echelon.errors import EchelonError
from echelon.training.learner import EvalResult
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads, model_path

TOLERANCE = 1e-4
"""Relative difference of losses: float32 sums in another order."""


def reload(run: Path) -> dict[str, tuple[float, float]]:
    """Each boundary's final validation loss: as the run reported it, and as the reloaded adapter gives it.

    Args:
        run: folder of a finished run of a language model, as `echelon run` wrote it.

    Raises:
        ConfigError: the run's settings, model or data cannot be read.
        EchelonError: a loss differs by more than `TOLERANCE`.
    """
    limit_threads()
    reported = json.loads((run / "summary.json").read_text())["final_loss"]
    learner = TorchLearner(spec_of(load(run / "config.yaml")))
    model = _stock(model_path(learner.spec.model), run / "adapter")
    losses: dict[str, tuple[float, float]] = {}
    for boundary in learner.spec.boundaries:
        total = EvalResult(0.0, 0)
        for held in learner.boundary_data(boundary.name).validation.values():
            total += _score(learner, held, model)
        losses[boundary.name] = reported[boundary.name], total.loss
    for name, (said, got) in losses.items():
        if not abs(said - got) <= TOLERANCE * said:
            raise EchelonError(
                f"{name}: the run reported a loss of {said:.5f}, the reloaded adapter has {got:.5f}"
            )
    return losses


def _stock(base: str, adapter: Path) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()


def _score(learner: TorchLearner, held: Any, model: Any) -> EvalResult:
    total = 0.0
    with torch.no_grad():
        for tokens, labels, mask in learner.task.held(held, learner.device).batches(8):
            logits = model(input_ids=tokens, attention_mask=mask).logits
            total += learner.task.loss_sum(logits, labels).item()
    return learner.task.measured(held, total, 0)
