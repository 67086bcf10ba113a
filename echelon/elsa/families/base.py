"""What split training must know of a model family: its sizes, linear layers and parameters, and what a block costs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

from echelon.errors import ConfigError

MAX_SIZE = 1 << 24


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


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Sizes of a model.

    Attributes:
        layers: number of blocks.
        hidden: width of the hidden state.
        heads: query heads.
        kv_heads: heads of keys and values.
        head_dim: width of a head.
        intermediate: width of the feed-forward layer.
        vocabulary: number of tokens.
        positions: learned positions; 0 where they are rotary.
        types: token types.
        tied: whether the output layer is the embedding.
        labels: classes of a classifier; None for a language model.
    """

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
    def query(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of all key heads together; values are as wide."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class ConfigReader:
    """Reads a transformers configuration: `config.to_dict()`, or the contents of `config.json`."""

    config: Mapping[str, object]

    def size(self, name: str, default: int | None = None) -> int:
        """The size of that name; the default where it is missing or null.

        Raises:
            ConfigError: it is no positive integer, or too large.
        """
        value = self.config.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIZE:
            raise ConfigError(
                f"model configuration: {name} is {value!r}, expected an integer of 1 to {MAX_SIZE}"
            )
        return value

    def tied(self, default: bool) -> bool:
        """Whether the output layer is the embedding."""
        return bool(self.config.get("tie_word_embeddings", default))


@dataclass(frozen=True, kw_only=True)
class Family(ABC):
    """One model family. A new one is a file of this package and a line in its registry.

    Attributes:
        model_type: the type that a transformers configuration names.
        causal: whether a token sees only those before it.
        kernels: kernels of one block's forward pass besides its linear layers.
    """

    model_type: str
    causal: bool = True
    kernels: int

    @abstractmethod
    def sizes(self, config: ConfigReader, labels: int | None) -> Sizes:
        """The sizes that a configuration names; `labels` makes it a classifier of so many classes.

        Raises:
            ConfigError: a size is missing or no positive integer.
        """

    @abstractmethod
    def block(self, sizes: Sizes) -> tuple[Linear, ...]:
        """The linear layers of one block."""

    def block_parameters(self, sizes: Sizes) -> int:
        """Frozen parameters of one block: weights, biases throughout, and two layer norms with a bias each."""
        linears = self.block(sizes)
        weights, biases = sum(linear.size for linear in linears), sum(linear.outputs for linear in linears)
        return weights + biases + 4 * sizes.hidden

    def embedding_parameters(self, sizes: Sizes) -> int:
        """Frozen parameters before the first block."""
        return (sizes.vocabulary + sizes.positions + sizes.types) * sizes.hidden

    @abstractmethod
    def head_parameters(self, sizes: Sizes) -> int:
        """Frozen parameters after the last block that the embeddings do not hold already."""

    def head_linears(self, sizes: Sizes) -> tuple[Linear, ...]:
        """Linear layers of the head other than the output layer, by the name that LoRA targets know: none."""
        return ()

    @abstractmethod
    def activations(self, sizes: Sizes) -> int:
        """Elements per token that one block keeps for its backward pass, LoRA left out.

        Attention keeps one number per head and token, not its matrix.
        """

    def widened(self, sizes: Sizes) -> int:
        """Elements per token that norms convert to float32 and keep besides, where weights have 2 bytes: none."""
        return 0
