"""The run file: everything that a federation needs, in one YAML document with defaults, units and bounds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from echelon.config.boundary import BoundarySettings
from echelon.config.checks import check_run
from echelon.config.experiments import CostSettings, LearnerSettings, SimulationSettings
from echelon.config.metrics import MetricSettings
from echelon.config.overrides import override
from echelon.config.problems import RUN_FILE, describe
from echelon.config.process import BudgetSettings, LoggingSettings, ProcessSettings
from echelon.config.reading import read_map
from echelon.config.secure import SecureSettings
from echelon.config.sync import SyncSettings, WitnessSettings
from echelon.config.training import AdapterSettings, ModelSettings, Settings, TrainSettings
from echelon.config.values import COHORT_LIMIT, Name
from echelon.config.window import RetentionSettings, WindowSettings
from echelon.errors import ConfigError
from echelon.messages.exchange import MAX_BOUNDARIES, MAX_METRICS

MAX_FILE_BYTES = 1 << 20


class RunSettings(Settings):
    """A whole federation."""

    name: Name = Field(description="Name of the run, for people.")
    seed: int = Field(
        default=1, ge=0, lt=1 << 31, description="Seed of data order and of the initial adapter."
    )
    clock: Literal["real", "virtual"] = Field(
        default="real",
        description="real; or virtual: one process, no waiting, same seed same bits, insecure seeded keys.",
    )
    model: ModelSettings = Field(default=ModelSettings(), description="The language model.")
    adapter: AdapterSettings = Field(default=AdapterSettings(), description="The LoRA adapter.")
    training: TrainSettings = Field(default=TrainSettings(), description="Local training.")
    boundaries: tuple[BoundarySettings, ...] = Field(
        min_length=1, max_length=MAX_BOUNDARIES, description="The boundaries."
    )
    secure: SecureSettings = Field(default=SecureSettings(), description="Secure aggregation and floors.")
    window: WindowSettings = Field(default=WindowSettings(), description="Participation windows.")
    retention: RetentionSettings = Field(
        default=RetentionSettings(), description="What may be deleted from a boundary's brokers meanwhile."
    )
    sync: SyncSettings = Field(default=SyncSettings(), description="Deltas and commits.")
    metrics: tuple[MetricSettings, ...] = Field(
        default=(),
        max_length=MAX_METRICS,
        description="What devices measure of each commit besides its loss, by functions of your own; released as sums "
        "above the floor.",
    )
    witnesses: WitnessSettings = Field(default=WitnessSettings(), description="Witnesses of the logs.")
    budget: BudgetSettings = Field(description="When the run ends; at least one bound.")
    compute: ProcessSettings = Field(default=ProcessSettings(), description="Where training runs.")
    cost: CostSettings = Field(default=CostSettings(), description="What compute costs on the virtual clock.")
    simulation: SimulationSettings = Field(
        default=SimulationSettings(), description="Faults, for experiments."
    )
    learner: LearnerSettings = Field(default=LearnerSettings(), description="What does the learning.")
    logging: LoggingSettings = Field(default=LoggingSettings(), description="Optional logs and samples.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        check_run(self)
        return self

    def witness_names(self) -> tuple[str, ...]:
        """Every witness: boundaries whose gates are, in order, then those that are services of their own."""
        gates = tuple(boundary.name for boundary in self.boundaries) if self.witnesses.gates else ()
        return (*gates, *self.witnesses.names)

    def steps_bounds(self) -> tuple[int, int]:
        """Smallest and largest H."""
        steps, pace = self.sync.steps, self.sync.pace
        if pace.kind == "fixed":
            return steps, steps
        low = max(1, steps // 8) if pace.steps_min is None else pace.steps_min
        longest = (2 if pace.kind == "fda" else 8) * steps  # fda goes to half of the largest H
        return low, longest if pace.steps_max is None else pace.steps_max

    def pace_windows_max(self) -> int:
        """Largest R."""
        windows, pace = self.sync.windows, self.sync.pace
        if pace.kind == "fixed":
            return windows
        if pace.windows_max is not None:
            return pace.windows_max
        return max(windows, min(4 * windows, self.sync.windows_max or 24 // (self.sync.pending_max + 1)))

    def cohort_max(self) -> int:
        """Most devices of one cohort, in any boundary."""
        largest = max(len(boundary.device_list()) for boundary in self.boundaries)
        return min(largest, self.secure.cohort_max or COHORT_LIMIT)

    def windows_max(self) -> int:
        """R_max."""
        if self.sync.windows_max is not None:
            return self.sync.windows_max
        return max(self.pace_windows_max(), min(2 * self.sync.windows, 24 // (self.sync.pending_max + 1)))


def load(path: Path, overrides: tuple[str, ...] = ()) -> RunSettings:
    """Read a run file.

    Args:
        path: the YAML file.
        overrides: `a.b=value` each; a text as it stands, any other value in YAML.

    Raises:
        ConfigError: not readable, not YAML, an unknown key or a value out of bounds; the message says which and where.
    """
    fields = read_map(path, "run file", MAX_FILE_BYTES)
    for change in overrides:
        override(fields, change, RunSettings)
    return parse(fields, str(path))


def parse(fields: dict[str, Any], where: str) -> RunSettings:
    """Validate the fields of a run file.

    Raises:
        ConfigError: every problem, one line each, with the path of the setting.
    """
    try:
        return RunSettings.model_validate(fields)
    except ValidationError as error:
        lines = describe(error, fields, RunSettings, RUN_FILE)
        raise ConfigError(f"{where}:\n" + "\n".join(lines)) from None


def dump(settings: RunSettings) -> str:
    """The run file as used, with every default."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
