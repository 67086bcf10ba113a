"""The shape of a transformer, read from its configuration: what a split plan computes from, without any weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from echelon.elsa.families.base import MAX_SIZE, ConfigReader, Family, Linear, Sizes
from echelon.elsa.families.registry import family_of
from echelon.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ModelShape(Sizes):
    """Sizes of a model, and what its family makes of them."""

    family: Family

    @cached_property
    def block(self) -> tuple[Linear, ...]:
        """The linear layers of one block."""
        return self.family.block(self)

    @cached_property
    def block_parameters(self) -> int:
        """Frozen parameters of one block: weights, biases, norms."""
        return self.family.block_parameters(self)

    @cached_property
    def embedding_parameters(self) -> int:
        """Frozen parameters before the first block."""
        return self.family.embedding_parameters(self)

    @cached_property
    def head_parameters(self) -> int:
        """Frozen parameters after the last block that the embeddings do not hold already."""
        return self.family.head_parameters(self)

    @cached_property
    def head_linears(self) -> tuple[Linear, ...]:
        """Linear layers of the head other than the output layer, by the name that LoRA targets know."""
        return self.family.head_linears(self)

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
    family = family_of(config.get("model_type"))
    if labels is not None and not 1 <= labels <= MAX_SIZE:
        raise ConfigError(f"{labels} labels: a classifier has at least one class")
    return ModelShape(family=family, **vars(family.sizes(ConfigReader(config), labels)))
