"""How much memory one process of training needs, by a formula, and how much there is.

    weights      N · bytes of `model.dtype`, or quantised ones  N numbers of the frozen model, or a rank's part of them
    adapter      d · 4 · 6                                      values, gradient, two moments, start and base; float32
    activations  b · s · h · L · 17 · bytes, and b · s · V · 4 · 3 for the logits
    libraries    0.8 GB                                         Python, torch and transformers

b is `training.batch_size`, s `training.sequence_length`, h the hidden size, L the layers, V the outputs. 34 · s · b · h
bytes a layer in 16 bit (17 numbers) are those of Korthikanti et al. 2022, "Reducing activation recomputation in large
transformer models", section 4.1, without the attention scores, which sdpa does not keep; eager attention keeps
5 · a · s² · b bytes more, a heads. With gradient checkpointing the activations of one layer, and the inputs of all, are
kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from echelon.config.training import ModelSettings, TrainSettings
from echelon.preflight.findings import MemoryNeeds

COPIES = 6
"""Vectors of the adapter that one training job holds at a time."""
PER_LAYER = 17
"""Numbers of the hidden size that a layer keeps for its backward pass, for each token."""
LOGITS = 3
"""Logits, their softmax, and their gradient."""
LIBRARIES = 800_000_000
BYTES = {"fp32": 4, "bf16": 2}
QUANTISED = {"nf4": 0.52, "int8": 1.0}
"""Bytes of a weight with its share of the scales (Dettmers et al. 2023, section 3: 0.127 bits with double scales)."""
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Shape:
    """What the formula needs of a model: its numbers, the adapter's, and its sizes."""

    parameters: int
    adapter: int
    hidden: int
    layers: int
    heads: int
    outputs: int


def estimate(shape: Shape, model: ModelSettings, train: TrainSettings, parts: int = 1) -> MemoryNeeds:
    """The memory of one process; see the module's docstring.

    Args:
        shape: of the model.
        model: how it is held.
        train: how long and how many sequences are.
        parts: among how many processes the frozen weights are divided.
    """
    width = BYTES[model.dtype]
    tokens = train.batch_size * train.sequence_length
    layer = tokens * shape.hidden * PER_LAYER * width
    if model.attention == "eager":
        layer += 5 * shape.heads * train.sequence_length * tokens * width // 2
    if model.gradient_checkpointing:
        activations = layer + tokens * shape.hidden * shape.layers * width
    else:
        activations = layer * shape.layers
    logits = tokens * shape.outputs * 4 * LOGITS
    return MemoryNeeds(
        weights=math.ceil(shape.parameters * QUANTISED.get(model.quantization or "", width) / parts),
        adapter=shape.adapter * 4 * COPIES,
        activations=activations + logits,
        libraries=LIBRARIES,
    )


def available() -> int | None:
    """Bytes of main memory that this process could still take; None where the system does not say."""
    return min((found for found in (_free(), _left_of_group()) if found is not None), default=None)


def _free() -> int | None:
    try:
        lines = _MEMINFO.read_text().splitlines()
    except OSError:  # another system
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _left_of_group() -> int | None:
    """What the control group of a container leaves."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:  # no such group
        return None
    return None if limit == "max" else int(limit) - used
