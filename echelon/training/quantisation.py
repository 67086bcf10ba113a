"""Frozen weights in 4 or 8 bits (QLoRA, Dettmers et al. 2023), by bitsandbytes on a GPU; adapters stay in float32."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import BitsAndBytesConfig

from echelon.config.training import ModelSettings
from echelon.errors import ConfigError

PACKAGE = "bitsandbytes"


def check_possible(settings: ModelSettings) -> None:
    """Look whether this machine can hold weights as the run file says.

    Raises:
        ConfigError: there is no GPU, or the package is not installed.
    """
    kind = settings.quantization
    if kind is None:
        return
    if not torch.cuda.is_available():
        raise ConfigError(
            f"model.quantization {kind} needs a GPU of NVIDIA, and torch finds none on this machine: run it where "
            "there is one, or leave it out"
        )
    if importlib.util.find_spec(PACKAGE) is None:
        raise ConfigError(
            f"model.quantization {kind} needs the package {PACKAGE}: pip install 'echelon[quantization]', or leave it "
            "out"
        )


def quantised_options(settings: ModelSettings, dtype: torch.dtype) -> dict[str, Any]:
    """What transformers is told so that it quantises a model's linear layers as it reads them.

    Args:
        settings: how the model is held.
        dtype: of all else, and of the forward pass.

    Raises:
        ConfigError: this machine cannot.
    """
    if settings.quantization is None:
        return {}
    check_possible(settings)
    if settings.quantization == "int8":
        chosen = BitsAndBytesConfig(load_in_8bit=True)
    else:
        chosen = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": chosen, "device_map": {"": torch.cuda.current_device()}}


def scales(parameter: torch.Tensor) -> list[torch.Tensor]:
    """What the numbers of a quantised weight are multiplied by; nothing where it is not quantised.

    bitsandbytes keeps them beside the parameter: `SCB` of 8 bits; of 4 bits `absmax`, itself quantised, and its offset.
    """
    state = getattr(parameter, "quant_state", None)
    found = [
        getattr(parameter, "SCB", None),
        getattr(state, "absmax", None),
        getattr(state, "offset", None),
        getattr(getattr(state, "state2", None), "absmax", None),
    ]
    return [one for one in found if isinstance(one, torch.Tensor)]
