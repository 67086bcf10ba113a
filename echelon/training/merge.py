"""An adapter and its base made into one full model, for whoever serves it without PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from echelon.config.training import AdapterSettings, ModelSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.training.layout import FlatAdapter
from echelon.training.model import attach_adapter, base_digest, load_base


@dataclass(frozen=True)
class Weights:
    """An adapter and what it belongs to.

    Attributes:
        layout: how its tensors lie in the vector.
        vector: float32[d].
        base_sha256: of the base that it was trained against, in hex.
    """

    layout: AdapterLayout
    vector: Vector
    base_sha256: str


def merge_into(folder: Path, model: ModelSettings, adapter: AdapterSettings, weights: Weights) -> None:
    """Write the base with the adapter merged into its weights, and the tokenizer.

    Args:
        folder: where to; it is made.
        model: the base.
        adapter: settings of the adapter.
        weights: the adapter.

    Raises:
        ConfigError: the base cannot be loaded, is another one, or was quantised.
    """
    if model.quantization is not None:
        raise ConfigError(
            f"the adapter was trained on weights held as {model.quantization}, and merged into others it would not "
            "give the losses of the run: use it as an adapter (peft)"
        )
    model = model.model_copy(update={"device_map": None})
    base = load_base(model, torch.device("cpu"))
    wrapped = attach_adapter(base.model, adapter, checkpointing=False, task=model.task, new=base.new)
    if base_digest(wrapped).hex() != weights.base_sha256:
        raise ConfigError(
            f"model {model.model!r} has other weights than the base that the adapter was trained on "
            f"({weights.base_sha256[:16]}…): "
            "name that base with --base, and hold it in the same dtype"
        )
    flat = FlatAdapter(wrapped)
    if flat.layout != weights.layout:
        raise ConfigError(
            f"the adapter does not fit the layers of {model.model!r}: name its own base with --base"
        )
    flat.load(weights.vector)
    merged: Any = wrapped.merge_and_unload()
    merged.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
