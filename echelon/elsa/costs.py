"""What a part of a model costs: floating-point operations, memory traffic, kernel starts, and bytes in memory.

Counts are from the shapes of the layers; docs/elsa.md derives them. A backward pass through frozen weights computes the
gradient of inputs alone, so it costs what the forward pass does; LoRA's own weights are extra.
"""

from __future__ import annotations

from dataclasses import dataclass

from echelon.elsa.families.base import Linear
from echelon.elsa.shapes import ModelShape
from echelon.errors import ConfigError

TRAINED_BYTES = 16
"""Of one LoRA parameter: weight, gradient and AdamW's two moments, each float32."""
LORA_KERNELS = 5
"""Of one adapted layer's forward pass: two products, scale, sum, and the conversion of its input."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is trained: tokens per sequence, bytes per element of weights, LoRA rank, and the layers it is on.

    `targets` are names of linear layers; None means all of them but the output layer.
    """

    sequence: int
    element: int
    rank: int
    targets: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.sequence < 1 or self.element not in (2, 4) or self.rank < 1:
            raise ConfigError(f"{self}: sequence and rank are at least 1, elements have 2 or 4 bytes")

    def adapted(self, linear: Linear) -> bool:
        """Whether the layer carries LoRA."""
        return self.targets is None or linear.name in self.targets


@dataclass(frozen=True, slots=True)
class Work:
    """Floating-point operations (a multiply-add is two), bytes read and written element-wise, kernel starts."""

    flops: float = 0.0
    traffic: float = 0.0
    kernels: float = 0.0

    def __add__(self, other: Work) -> Work:
        """Both, one after the other."""
        return Work(self.flops + other.flops, self.traffic + other.traffic, self.kernels + other.kernels)

    def __mul__(self, times: int) -> Work:
        """So many times."""
        return Work(self.flops * times, self.traffic * times, self.kernels * times)


def lora_parameters(linears: tuple[Linear, ...], load: Load) -> int:
    """Parameters of LoRA on these layers: r (in + out) each."""
    return sum(load.rank * (linear.inputs + linear.outputs) for linear in linears if load.adapted(linear))


def block_activations(shape: ModelShape, load: Load) -> int:
    """Bytes that one block keeps for its backward pass, per token.

    What the family's block keeps, and the rank for every adapted layer. Weights of 2 bytes: adapters, and norms of some
    families, convert what they read to float32, which is kept besides.
    """
    adapted = [linear for linear in shape.block if load.adapted(linear)]
    wide = 0
    if load.element == 2:
        wide = 4 * (sum(linear.inputs for linear in adapted) + shape.family.widened(shape))
    return shape.family.activations(shape) * load.element + 4 * load.rank * len(adapted) + wide


def logits_bytes(shape: ModelShape, load: Load) -> int:
    """Bytes per token of logits, their log-softmax and a gradient of each, float32; a classifier has few of them."""
    return 16 * shape.vocabulary if shape.labels is None else 16 * shape.labels // load.sequence + 1


def workspace_bytes(shape: ModelShape, load: Load) -> int:
    """Bytes per token of what a kernel of the widest layer needs for a moment: its input, output, and two gradients."""
    return 2 * load.element * (shape.hidden + max(shape.intermediate, 3 * shape.hidden))


def block_forward(shape: ModelShape, load: Load, sequences: int) -> Work:
    """One block's forward pass over so many sequences.

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        sequences: of a micro-batch.
    """
    tokens = sequences * load.sequence
    flops = _attention(shape, load) * 2 * tokens
    kernels = shape.family.kernels
    for linear in shape.block:
        flops += 2 * linear.size * tokens
        kernels += 1
        if load.adapted(linear):
            flops += 2 * load.rank * (linear.inputs + linear.outputs) * tokens
            kernels += LORA_KERNELS
    return Work(flops, 2 * block_activations(shape, load) * tokens, kernels)


def block_backward(shape: ModelShape, load: Load, sequences: int, *, first: bool = False) -> Work:
    """One block's backward pass over so many sequences.

    `first`: nothing trainable stands before it, so the layers that read its input need no gradient of that. Attention
    computes its weights again and then four products, 2.5 times its forward pass (Dao et al. 2022, appendix B).

    Args:
        shape: sizes of the model.
        load: sequence length, bytes of an element, rank and targets.
        sequences: of a micro-batch.
        first: nothing trainable stands before the block.
    """
    tokens = sequences * load.sequence
    flops = _attention(shape, load) * 5 * tokens
    kernels = 1.5 * shape.family.kernels
    for linear in shape.block:
        if not (first and linear.reads_block):
            flops += 2 * linear.size * tokens
            kernels += 1
        if load.adapted(linear):
            flops += 4 * load.rank * (linear.inputs + linear.outputs) * tokens
            kernels += 2 * LORA_KERNELS
    return Work(flops, 4 * block_activations(shape, load) * tokens, kernels)


def _attention(shape: ModelShape, load: Load) -> int:
    """Multiply-adds per token of scores and of their product with values; half of them where attention is causal."""
    both = 2 * load.sequence * shape.query
    return both // 2 if shape.family.causal else both


def embedding_forward(shape: ModelShape, load: Load, sequences: int) -> Work:
    """Looking tokens up; frozen, it has no backward pass.

    Args:
        shape: sizes of the model.
        load: sequence length and bytes of an element.
        sequences: of a micro-batch.
    """
    tokens = sequences * load.sequence
    return Work(0.0, 2 * shape.hidden * load.element * tokens, 6)


def head_both(shape: ModelShape, load: Load, sequences: int) -> Work:
    """Final norm, output layer and loss, forward and backward, over so many sequences.

    Args:
        shape: sizes of the model; with `labels` it is a classifier.
        load: sequence length, bytes of an element, rank and targets.
        sequences: of a micro-batch.
    """
    tokens = sequences * load.sequence
    if shape.labels is not None:
        pooled = sum(linear.outputs for linear in shape.head_linears)
        flops = 4.0 * shape.hidden * (shape.labels + pooled) * sequences
        return Work(flops, 8.0 * shape.hidden * load.element * tokens, 30)
    flops = 4.0 * shape.hidden * shape.vocabulary * tokens
    for linear in shape.head_linears:
        flops += 4.0 * linear.size * tokens
        if load.adapted(linear):
            flops += 6.0 * load.rank * (linear.inputs + linear.outputs) * tokens
    # Logits are written, read twice for log-softmax and written; backward reads two and writes one.
    traffic = (6 * 4 * shape.vocabulary + 8 * shape.hidden * load.element) * tokens
    return Work(flops, traffic, 30)
