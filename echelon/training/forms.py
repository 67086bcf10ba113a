"""Kinds of adapters in a PEFT model: what is frozen, and cores between B and A."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import nn

from echelon.adapters.base import AdapterForm, uniform
from echelon.adapters.exported import CORE, SCALE
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, starts_random
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms
from echelon.training.layout import ADAPTER, plain_key

FACTOR = ".lora_"
"""In the name of every tensor of A and B, trained or frozen."""


class CoredFactor(nn.Module):
    """B·diag(s_1·H_1, …, s_h·H_h) in the place of a LoRA layer's B: float32[out, h·r], the H and the s trained."""

    def __init__(self, weight: torch.Tensor, form: AdapterForm) -> None:
        super().__init__()
        count, rank = form.cores, weight.shape[1] // form.cores
        self.basis: torch.Tensor
        self.register_buffer("basis", torch.zeros_like(weight), persistent=False)
        self.core = nn.Parameter(weight.new_zeros(count, rank, rank))
        self.scale = nn.Parameter(weight.new_ones(count)) if form.scaled else None

    @property
    def weight(self) -> torch.Tensor:
        """The product, float32[out, h·r]: what PEFT calls B."""
        count, rank, _ = self.core.shape
        cores = self.core if self.scale is None else self.core * self.scale[:, None, None]
        left = self.basis.view(-1, count, rank).transpose(0, 1)
        return torch.bmm(left, cores).transpose(0, 1).reshape(self.basis.shape)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As a linear layer without bias."""
        return F.linear(inputs, self.weight)


def take_form(wrapped: nn.Module, form: AdapterForm) -> None:
    """Make a model with LoRA one of this kind, in place: freeze A, and put cores behind B.

    Args:
        wrapped: with LoRA of the kind's width.
        form: the kind.

    Raises:
        ConfigError: a layer is adapted that cannot have cores.
    """
    if not form.trains_a:
        for name, parameter in wrapped.named_parameters():
            if FACTOR in name and starts_random(plain_key(name)):
                parameter.requires_grad_(False)
    if not form.cores:
        return
    for path, module in wrapped.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        factor = dict(module.lora_B.items()).get(ADAPTER)
        if not isinstance(factor, nn.Linear):
            raise ConfigError(
                f"adapter.kind {form.kind.value} is for linear layers, and {path} is none: name others in "
                "adapter.targets"
            )
        module.lora_B[ADAPTER] = CoredFactor(factor.weight.data, form)


def draw_bases(wrapped: nn.Module, seed: int) -> None:
    """Give the frozen factors their numbers, in place: those that `adapters.exported` draws again.

    Args:
        wrapped: after `take_form`.
        seed: of the run.
    """
    frozen = {plain_key(name): p for name, p in wrapped.named_parameters() if not p.requires_grad}
    found = {key: parameter.data for key, parameter in frozen.items() if FACTOR in key}
    for path, module in wrapped.named_modules():
        if isinstance(module, CoredFactor):
            found[plain_key(f"{path}.weight")] = module.basis
    for key, tensor in found.items():
        tensor.copy_(torch.from_numpy(uniform(key, tuple(tensor.shape), seed)))


def terms_of(wrapped: nn.Module, form: AdapterForm, seed: int) -> AdapterTerms | None:
    """What the manifest says of the kind; None for plain LoRA.

    Args:
        wrapped: after `take_form`.
        form: the kind.
        seed: of the run.
    """
    if form.kind is AdapterKind.LORA:
        return None
    shapes = {}
    for name, parameter in wrapped.named_parameters():
        if (parameter.requires_grad or FACTOR in name) and name.rpartition(".")[2] not in (CORE, SCALE):
            shapes[plain_key(name)] = tuple(parameter.shape)
    for path, module in wrapped.named_modules():
        if isinstance(module, CoredFactor):
            shapes[plain_key(f"{path}.weight")] = tuple(module.basis.shape)
    return AdapterTerms(kind=form.kind, seed=seed, files=AdapterLayout.of(shapes).json.decode())
