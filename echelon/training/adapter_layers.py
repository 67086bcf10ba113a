"""Which of a model's weights get an adapter, and which are left as they are.

Layers are named by their path, with `*` for the number of a block: `model.layers.*.self_attn.q_proj`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peft import LoraConfig
from peft.tuners.lora import LoraLayer, ParamWrapper
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from peft.utils import ModulesToSaveWrapper
from peft.utils import transformers_weight_conversion as conversion
from torch import nn
from transformers import PreTrainedModel

from echelon.config.training import AdapterSettings
from echelon.errors import ConfigError
from echelon.training.forms import FACTOR
from echelon.training.learner import AdapterLayers

_NUMBER = re.compile(r"\.\d+(?=\.|$)")
_WRAPPED = re.compile(r"\.base_layer(?=\.|$)")
_TO_BLOCK = re.compile(r".*\*\.")
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class Targets:
    """What PEFT is asked to adapt: modules by name, or `all-linear`, and parameters by name."""

    modules: str | tuple[str, ...]
    parameters: tuple[str, ...] = ()


def is_linear(module: nn.Module) -> bool:
    """Whether PEFT's LoRA takes the module for a linear layer."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def linear_names(model: nn.Module) -> list[str]:
    """Paths of a model's linear layers."""
    return [name for name, module in model.named_modules() if is_linear(module)]


def stacked_weights(model: nn.Module) -> list[str]:
    """Paths of parameters that hold the matrices of several experts, and of their routers' matrices.

    A module of experts says how many it has in `num_experts`, and its parameters have that many matrices. A router lies
    beside it, is no linear layer, and has a row for each expert.
    """
    found = []
    for path, module in model.named_modules():
        count = getattr(module, "num_experts", None)
        own = dict(module.named_parameters(recurse=False))
        stacks = [name for name, p in own.items() if p.ndim == 3 and p.shape[0] == count]
        found += [f"{path}.{name}" for name in stacks]
        if stacks and path:
            above = path.rpartition(".")[0]
            for name, beside in model.get_submodule(above).named_children():
                weight = getattr(beside, "weight", None)
                router = isinstance(weight, nn.Parameter) and weight.ndim == 2 and len(weight) == count
                if router and not is_linear(beside):
                    found.append(f"{above}.{name}.weight".removeprefix("."))
    return found


def choose_targets(model: nn.Module, settings: AdapterSettings, whole: Sequence[str]) -> Targets:
    """What PEFT is asked to adapt.

    Args:
        model: without an adapter.
        settings: of the adapter.
        whole: modules that are trained whole, which get none.

    Raises:
        ConfigError: stacked weights would need something that PEFT does not do for them.
    """
    targets = settings.targets
    chosen = _all_linear(model, whole) if isinstance(targets, str) else _named(model, targets)
    unfit = "adapter.dropout" if settings.dropout > 0 else "adapter.dora" if settings.dora else None
    unfit = f"adapter.kind {settings.kind}" if settings.form.cores else unfit
    if chosen.parameters and unfit is not None:
        raise ConfigError(
            f"{unfit} is not possible on stacked weights ({chosen.parameters[0]}): leave it out, or name linear "
            "layers in adapter.targets"
        )
    return chosen


def _named(model: nn.Module, targets: Iterable[str]) -> Targets:
    stacked = stacked_weights(model)
    parameters = [name for name in stacked if any(_ends_in(name, one) for one in targets)]
    modules = [one for one in sorted(targets) if not any(_ends_in(name, one) for name in stacked)]
    return Targets(tuple(modules), _minimal(parameters))


def _all_linear(model: nn.Module, whole: Sequence[str]) -> Targets:
    names, out = linear_names(model), _output(model)
    linear = [name for name in names if name != out and not any(_within(name, one) for one in whole)]
    stacked, renamed, refused = stacked_weights(model), _renamed(model), _refused(model, names)
    odd = renamed | refused
    if not stacked and odd.isdisjoint(map(_last, linear)):
        return Targets("all-linear")  # PEFT finds the same by itself
    modules = [name for name in linear if _last(name) not in odd]
    taken = [f"{name}.weight" for name in linear if _last(name) in renamed]
    return Targets(_minimal(modules), _minimal([*stacked, *taken]))


def _renamed(model: nn.Module) -> frozenset[str]:
    """Names that PEFT takes for experts' of an older version of the library in a model of this type.

    It would leave linear layers of these names out: those of dense blocks and of shared experts.
    """
    kind = str(getattr(getattr(model, "config", None), "model_type", ""))
    family = conversion._MODEL_TO_CONVERSION_PATTERN.get(kind, "")  # type: ignore[attr-defined]
    known = conversion._MOE_TARGET_MODULE_MAPPING.get(family, {})
    return frozenset(known if conversion._MOE_FUSED_TARGETS.get(family) else ())


def _refused(model: nn.Module, names: Iterable[str]) -> frozenset[str]:
    """Names of layers that PEFT refuses in a model of this type: their weights are used past the layer."""
    found = set()
    for name in set(map(_last, names)):
        try:
            _check_lora_target_modules_mamba(LoraConfig(), model, name)
        except ValueError:
            found.add(name)
    return frozenset(found)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _output(model: nn.Module) -> str | None:
    if not isinstance(model, PreTrainedModel) or (output := model.get_output_embeddings()) is None:
        return None
    return next((name for name, module in model.named_modules() if module is output), None)


def _within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _ends_in(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _short(name: str) -> str:
    """The name within its block."""
    return _TO_BLOCK.sub("", _NUMBER.sub(".*", name))


def _minimal(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({_short(name) for name in names}))


def adapted_names(wrapped: nn.Module) -> list[str]:
    """Paths of the layers and stacked weights that got A and B, as in the base."""
    found = []
    for path, module in wrapped.named_modules():
        name = _WRAPPED.sub("", path.removeprefix(_PREFIX))
        if isinstance(module, ParamWrapper):
            found.append(name if module.parameter_name == "weight" else f"{name}.{module.parameter_name}")
        elif isinstance(module, LoraLayer):
            found.append(name)
    return found


def layers_of(wrapped: nn.Module) -> AdapterLayers:
    """What the adapter of a PEFT model holds, read off the model."""
    found = Counter(_NUMBER.sub(".*", name) for name in adapted_names(wrapped))
    whole: Counter[str] = Counter()
    done: set[int] = set()
    for path, module in wrapped.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            whole[_plain(path)] += 1
            done.update(id(parameter) for parameter in module.parameters())
        elif isinstance(module, ParamWrapper):
            done.add(id(module.get_param()))
        elif isinstance(module, LoraLayer):
            done.update(id(parameter) for parameter in module.get_base_layer().parameters())
        elif isinstance(module, nn.Embedding):
            done.update(id(parameter) for parameter in module.parameters())
    left: Counter[str] = Counter()
    elements = 0
    for path, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            elements += parameter.numel()
        elif (
            parameter.ndim > 1
            and id(parameter) not in done
            and not path.endswith("bias")
            and FACTOR not in path
        ):
            left[_plain(path).removesuffix(".weight")] += 1
    return AdapterLayers(dict(found), dict(whole), dict(left), elements)


def _plain(path: str) -> str:
    return _NUMBER.sub(".*", _WRAPPED.sub("", path.removeprefix(_PREFIX)))
