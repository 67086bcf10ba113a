"""Weights that a model's files do not have: drawn alike in every process, and sent along with the adapter.

transformers draws what it misses by chance: poolers and heads of a classifier, for instance. An adapter without them
would not give the reported loss when it is loaded elsewhere, so every such module is trained whole and travels in the
adapter.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import nn

from echelon.errors import ConfigError


def new_modules(model: nn.Module, missing: Iterable[str], name: str) -> tuple[str, ...]:
    """Paths of the modules that have no weights in the model's files: the outermost of each.

    Args:
        model: as the library made it.
        missing: names of the tensors that the library did not find.
        name: of the model, for the error.

    Raises:
        ConfigError: something is missing that is no head: an embedding, a block, or a part of one.
    """
    parameters = dict(model.named_parameters())
    absent = {key for key in missing if key in parameters}  # what a model computes itself, it has in buffers
    return tuple(sorted({_outermost(model, key, absent, name) for key in absent}))


def _outermost(model: nn.Module, key: str, absent: set[str], name: str) -> str:
    found = ""
    parts = key.split(".")[:-1]
    for count in range(len(parts), 0, -1):
        path = ".".join(parts[:count])
        inside = (f"{path}.{own}" for own, _ in model.get_submodule(path).named_parameters())
        if not absent.issuperset(inside):
            break
        found = path
    above = [model.get_submodule(".".join(parts[:count])) for count in range(1, len(parts) + 1)]
    kept = [module for module in above if isinstance(module, nn.ModuleList)]
    if found and any(isinstance(module, nn.Embedding) for module in model.get_submodule(found).modules()):
        found = ""
    if not found or kept:
        raise ConfigError(f"model {name!r} has no weights {key}: it is damaged, or of another kind")
    return found


def draw_missing(model: nn.Module, missing: Iterable[str], scale: float) -> None:
    """Draw every missing parameter from its own name, in place: the same bits in every process.

    Matrices are uniform with the standard deviation that the library would draw with; it uses no function of libm.
    Scales of norms are 1, biases 0.

    Args:
        model: as the library made it.
        missing: names of the tensors that the library did not find.
        scale: standard deviation, the configuration's `initializer_range`.
    """
    parameters = dict(model.named_parameters())
    for name in sorted(set(missing) & parameters.keys()):
        parameter = parameters[name]
        with torch.no_grad():
            if parameter.ndim == 1:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            entropy = int.from_bytes(hashlib.sha256(f"missing\0{name}".encode()).digest(), "little")
            draw = np.random.Generator(np.random.PCG64(entropy)).random(parameter.numel(), dtype=np.float32)
            values = (draw * 2 - 1) * np.float32(scale * math.sqrt(3))
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))


def saved_whole(model: nn.Module, new: Sequence[str], heads: Sequence[str]) -> tuple[str, ...]:
    """Paths of the modules that are trained whole, the outermost of each.

    Args:
        model: with its head.
        new: of `new_modules`.
        heads: how names of modules end that PEFT trains whole by itself.
    """
    ending = tuple(heads)
    named = [name for name, _ in model.named_modules() if name and (name in new or name.endswith(ending))]
    return tuple(name for name in named if not any(name.startswith(f"{other}.") for other in named))
