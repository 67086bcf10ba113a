"""What a check finds: faults, warnings, and what there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echelon.errors import ConfigError
from echelon.training.learner import DataFacts

MAX_FAULTS = 20
"""Most faults of one boundary that are described; others are counted."""


@dataclass(frozen=True, slots=True)
class RunFault:
    """Something without which a run cannot be.

    Attributes:
        where: a boundary's name in words, `model`, `rules` or `brokers`.
        message: what is wrong, at which file and line, and what to do.
    """

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def together(faults: Sequence[RunFault], what: str) -> ConfigError:
    """All faults of `what` as one error, the list in its message."""
    if len(faults) == 1:
        return ConfigError(str(faults[0]))
    lines = "".join(f"\n  {fault}" for fault in faults)
    return ConfigError(f"{len(faults)} things are wrong with {what}:{lines}")


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """The data of a boundary.

    Attributes:
        facts: its counts.
        exact: whether every document was made tokens; if not, tokens and splits are estimates from a sample.
    """

    facts: DataFacts
    exact: bool


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """Bytes that one process of training needs, by what needs them; see `echelon.preflight.memory`."""

    weights: int
    adapter: int
    activations: int
    libraries: int

    @property
    def total(self) -> int:
        """All together."""
        return self.weights + self.adapter + self.activations + self.libraries


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The model.

    Attributes:
        name: as the run file has it.
        parameters: numbers of the frozen model.
        adapter: numbers of the adapter.
        adapted: how many layers of each name get an adapter.
        left: how many linear-like layers of each name get none.
        width: hidden size of the model; 0 where its configuration states none.
        blocks: number of its layers, likewise.
        positions: most tokens of a sequence; None where the model states no bound.
        memory: what one process needs.
    """

    name: str
    parameters: int
    adapter: int
    adapted: Mapping[str, int]
    left: Mapping[str, int]
    width: int
    blocks: int
    positions: int | None
    memory: MemoryNeeds


@dataclass
class Checked:
    """Everything that a check found.

    Attributes:
        sources: the data of each boundary that could be read.
        model: None where it could not be read, or where there is none.
        brokers: address of each broker, as services will read it.
        rules: file of each rule of the run's own, by its name.
        faults: all of them, in order.
        warnings: sentences about what may be wrong.
    """

    sources: dict[str, SourceFacts] = field(default_factory=dict)
    model: ModelFacts | None = None
    brokers: dict[str, str] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    faults: list[RunFault] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
