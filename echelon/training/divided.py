"""Frozen weights that ranks divide among them, by torch's FSDP2 (Zhao et al. 2023, "PyTorch FSDP").

Each rank holds a part of every frozen tensor. The tensors of a block are gathered when the block is computed, and let
go after it. The adapter is small and every rank holds all of it, so its gradients are added up as without division.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from echelon.training.forms import FACTOR


def divide(model: PeftModel, device: torch.device) -> None:
    """Keep this rank's part of the frozen weights, and put it and the whole adapter on the device, in place.

    The ranks have met before. A block's weights are moved before the next one's, so that the device holds no more than
    its part and one block.

    Args:
        model: with its adapter, in main memory.
        device: of this rank.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    named = model.named_parameters()
    whole = {parameter for name, parameter in named if parameter.requires_grad or FACTOR in name}
    for block in blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=whole)
    fully_shard(model, mesh=mesh, ignored_params=whole)
    register_fsdp_forward_method(model, "generate")  # it goes around the model's own forward pass
    for parameter in whole:
        parameter.data = parameter.data.to(device)


def blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The members of a model's outermost lists of modules that have weights."""
    lists = [(path, found) for path, found in model.named_modules() if isinstance(found, nn.ModuleList)]
    for path, found in lists:
        if not any(path.startswith(f"{other}.") for other, _ in lists):
            yield from (one for one in found if next(one.parameters(), None) is not None)
