"""Whether a model's configuration and its weights are of one model, and of such as can be trained on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from echelon.errors import ConfigError

UNPACKED = ("mxfp4",)
"""Methods of quantisation whose weights the library turns into floating-point numbers where they cannot be used."""
HEADS = ("classifier", "score")
"""Names of modules that tell classes apart."""
_ADVICE = "config.json and the weights are not of one model; fetch both again"


def check_quantised(name: str, config: Any) -> None:
    """Look for weights that are no floating-point numbers, unless the library unpacks them.

    Raises:
        ConfigError: there are such.
    """
    found = getattr(config, "quantization_config", None)
    if found is None:
        return
    method = str(found.get("quant_method") if isinstance(found, dict) else found.quant_method)
    if method not in UNPACKED:
        raise ConfigError(
            f"model {name!r} is quantised ({method}), and adapters are trained on its unquantised weights: name the "
            "model that it was made of"
        )


def check_shapes(name: str, report: Mapping[str, Any]) -> None:
    """Look at shapes that the library found other than it expected.

    Args:
        name: of the model, for the error.
        report: of the library, about what it loaded.

    Raises:
        ConfigError: weights have another shape than the configuration says.
    """
    for key, theirs, ours in sorted(report["mismatched_keys"])[:1]:
        head = not set(HEADS).isdisjoint(key.split("."))
        raise ConfigError(
            f"weights {key} of model {name!r} are {list(theirs)}, and {list(ours)} are wanted: "
            + ("name as many labels as its head has, or take a model without a head" if head else _ADVICE)
        )


def check_blocks(model: nn.Module, name: str, report: Mapping[str, Any]) -> None:
    """Look at weights for which a whole model has no place.

    Args:
        model: as it was loaded.
        name: of the model, for the error.
        report: of the library, about what it loaded.

    Raises:
        ConfigError: they are of blocks that the model does not have by its configuration.
    """
    lists = {path: len(one) for path, one in model.named_modules() if isinstance(one, nn.ModuleList)}
    for key in sorted(report["unexpected_keys"]):
        path, number = _block(key, lists)
        if path and number >= lists[path]:
            raise ConfigError(
                f"model {name!r} has weights {key}, and by config.json {path} has {lists[path]} blocks: {_ADVICE}"
            )


def _block(key: str, lists: Mapping[str, int]) -> tuple[str, int]:
    """The list of blocks that a tensor is in by its name, and its number; no path and -1 where there is none."""
    parts = key.split(".")
    for place, part in enumerate(parts):
        path = ".".join(parts[:place])
        if part.isdigit() and path in lists:
            return path, int(part)
    return "", -1
