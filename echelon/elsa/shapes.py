"""The shape of a transformer, read from its configuration: what a split plan computes from, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from echelon.errors import ConfigError

MAX_SIZE = 1 << 24


class Family(StrEnum):
    """Model families that can be cut in three parts."""

    LLAMA = "llama"
    QWEN2 = "qwen2"
    GPT2 = "gpt2"
    BERT = "bert"


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer of a block by the name that LoRA targets know, with its inputs and outputs.

    `reads_block` says that it multiplies the block's own (normalised) input, as queries, keys and values do.
    """

    name: str
    inputs: int
    outputs: int
    reads_block: bool = False

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return self.inputs * self.outputs


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model. `labels` is the number of classes of a classifier, None for a language model.

    `positions` is the number of learned positions (0 where they are rotary), `types` of token types.
    """

    family: Family
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    positions: int
    types: int
    tied: bool
    labels: int | None = None

    @property
    def gated(self) -> bool:
        """Whether blocks are of the Llama kind: RMS norms, rotary positions, a gated feed-forward layer."""
        return self.family in (Family.LLAMA, Family.QWEN2)

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return self.family is not Family.BERT

    @property
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_dim

    @cached_property
    def block(self) -> tuple[Linear, ...]:
        """The linear layers of one block."""
        h, f, q, k = self.hidden, self.intermediate, self.query, self.key
        if self.gated:
            return (
                Linear("q_proj", h, q, True), Linear("k_proj", h, k, True), Linear("v_proj", h, k, True),
                Linear("o_proj", q, h), Linear("gate_proj", h, f), Linear("up_proj", h, f), Linear("down_proj", f, h),
            )  # fmt: skip
        if self.family is Family.GPT2:
            return (
                Linear("c_attn", h, 3 * h, True),
                Linear("c_proj", h, h),
                Linear("c_fc", h, f),
                Linear("c_proj", f, h),
            )
        return (
            Linear("query", h, h, True), Linear("key", h, h, True), Linear("value", h, h, True),
            Linear("dense", h, h), Linear("dense", h, f), Linear("dense", f, h),
        )  # fmt: skip

    @cached_property
    def block_parameters(self) -> int:
        """Frozen parameters of one block: weights, biases, norms."""
        weights = sum(linear.size for linear in self.block)
        if self.gated:
            biases = self.query + 2 * self.key if self.family is Family.QWEN2 else 0
            return weights + biases + 2 * self.hidden
        return weights + sum(linear.outputs for linear in self.block) + 4 * self.hidden

    @cached_property
    def embedding_parameters(self) -> int:
        """Frozen parameters before the first block."""
        norm = 2 * self.hidden if self.family is Family.BERT else 0
        return (self.vocabulary + self.positions + self.types) * self.hidden + norm

    @cached_property
    def head_parameters(self) -> int:
        """Frozen parameters after the last block that the embeddings do not hold already."""
        h = self.hidden
        norm = 0 if self.family is Family.BERT else h if self.gated else 2 * h
        if self.labels is not None:
            pooler = h * h + h + self.labels if self.family is Family.BERT else 0
            return norm + pooler + h * self.labels
        transform = h * h + 3 * h + self.vocabulary if self.family is Family.BERT else 0
        # Untied, BERT's output layer has weights of its own, and a second bias.
        output = self.vocabulary * (h + 1 if self.family is Family.BERT else h)
        return norm + transform + (0 if self.tied else output)

    @cached_property
    def head_linears(self) -> tuple[Linear, ...]:
        """Linear layers of the head other than the output layer, by the name that LoRA targets know."""
        return (Linear("dense", self.hidden, self.hidden),) if self.family is Family.BERT else ()

    @property
    def parameters(self) -> int:
        """All frozen parameters."""
        return self.embedding_parameters + self.layers * self.block_parameters + self.head_parameters


def read_shape(config: Mapping[str, object], *, labels: int | None = None) -> ModelShape:
    """The shape in a transformers configuration (`config.to_dict()`, or the contents of `config.json`).

    `labels` makes it a classifier of so many classes.

    Raises:
        ConfigError: a family that cannot be cut, or a size that is missing or no positive integer.
    """
    named = config.get("model_type")
    try:
        family = Family(str(named))
    except ValueError:
        raise ConfigError(
            f"model type {named!r} cannot be cut in three parts; families that can: {', '.join(Family)}"
        ) from None

    def size(name: str, default: int | None = None) -> int:
        value = config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise ConfigError(
                f"model configuration: {name} is {value!r}, expected an integer of 1 to {MAX_SIZE}"
            )
        return value

    if labels is not None and not 1 <= labels <= MAX_SIZE:
        raise ConfigError(f"{labels} labels: a classifier has at least one class")
    tied = bool(config.get("tie_word_embeddings", family not in (Family.LLAMA, Family.QWEN2)))
    if family is Family.GPT2:
        hidden, heads = size("n_embd"), size("n_head")
        layers, inner, positions = size("n_layer"), size("n_inner", 4 * hidden), size("n_positions")
        kv_heads, head_dim, types = heads, hidden // heads, 0
    else:
        hidden, heads, layers = size("hidden_size"), size("num_attention_heads"), size("num_hidden_layers")
        inner = size("intermediate_size")
        if family is Family.BERT:
            kv_heads, head_dim = heads, hidden // heads
            positions, types = size("max_position_embeddings"), size("type_vocab_size")
        else:
            kv_heads, head_dim = size("num_key_value_heads", heads), size("head_dim", hidden // heads)
            positions = types = 0
    return ModelShape(
        family=family,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=inner,
        vocabulary=size("vocab_size"),
        positions=positions,
        types=types,
        tied=tied,
        labels=labels,
    )
