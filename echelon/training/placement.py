"""A frozen model that one process spreads over the GPUs of its machine, by accelerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from echelon.config.training import ModelSettings
from echelon.errors import ConfigError


def gpus() -> int:
    """How many GPUs torch finds."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_placement(settings: ModelSettings) -> None:
    """Look whether the GPUs that a map names are there.

    Raises:
        ConfigError: one of them is not.
    """
    if settings.device_map is None or settings.device_map == "auto":
        return
    found, named = gpus(), max(settings.device_map.values())
    if named >= found:
        raise ConfigError(
            f"model.device_map names GPU {named}, and torch finds {found or 'none'} on this machine, numbered from 0: "
            "name those that are there, or use auto"
        )


def placed(settings: ModelSettings) -> dict[str, Any]:
    """What transformers is told so that it spreads a model as it reads it; nothing where all of it is on one device.

    Raises:
        ConfigError: a GPU that the map names is not there.
    """
    check_placement(settings)
    return {"device_map": settings.device_map} if settings.device_map is not None and gpus() else {}


def check_placed(model: nn.Module, name: str) -> None:
    """Look whether all of a model is on GPUs.

    Args:
        model: as the library placed it.
        name: of the model, for the error.

    Raises:
        ConfigError: it left a part in main memory, or on disk, where nothing is trained.
    """
    places = getattr(model, "hf_device_map", {})
    away = [path for path, place in places.items() if str(place) in ("cpu", "disk")]
    if away and len(away) < len(places):
        raise ConfigError(
            f"model {name!r} does not fit {gpus()} GPUs: {away[0]} and what follows it would stay in main memory. Use "
            "more GPUs, model.dtype bf16 or model.quantization"
        )
