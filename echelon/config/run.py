"""The run file: everything that a federation needs, in one YAML document with defaults, units and bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from echelon.config.boundary import BoundarySettings
from echelon.config.experiments import CostSettings, LearnerSettings, SimulationSettings
from echelon.config.process import BudgetSettings, ComputeSettings, LoggingSettings
from echelon.config.reading import MAX_DEPTH, load_yaml, read_map
from echelon.config.secure import SecureSettings
from echelon.config.split import SplitSettings
from echelon.config.sync import SyncSettings, WitnessSettings
from echelon.config.training import AdapterSettings, ModelSettings, Settings, TrainSettings, check_task
from echelon.config.values import COHORT_LIMIT, ENROLLED_LIMIT, SPLIT_LIMIT, Name
from echelon.config.window import WindowSettings
from echelon.errors import ConfigError
from echelon.messages.names import check_member

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
        min_length=1, max_length=64, description="The boundaries."
    )
    secure: SecureSettings = Field(default=SecureSettings(), description="Secure aggregation and floors.")
    window: WindowSettings = Field(default=WindowSettings(), description="Participation windows.")
    sync: SyncSettings = Field(default=SyncSettings(), description="Deltas and commits.")
    witnesses: WitnessSettings = Field(default=WitnessSettings(), description="Witnesses of the logs.")
    budget: BudgetSettings = Field(description="When the run ends; at least one bound.")
    compute: ComputeSettings = Field(default=ComputeSettings(), description="Where training runs.")
    cost: CostSettings = Field(default=CostSettings(), description="What compute costs on the virtual clock.")
    simulation: SimulationSettings = Field(
        default=SimulationSettings(), description="Faults, for experiments."
    )
    learner: LearnerSettings = Field(default=LearnerSettings(), description="What does the learning.")
    logging: LoggingSettings = Field(default=LoggingSettings(), description="Optional logs and samples.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [boundary.name for boundary in self.boundaries]
        _unique("boundaries", names)
        _unique("witnesses, or a witness and a boundary,", [*names, *self.witnesses.names])
        devices = [device.id for boundary in self.boundaries for device in boundary.device_list()]
        _unique("devices", devices)
        # Names are principals on a broker and files of a run: a device must not be taken for somebody else.
        for name in devices:
            check_member(name)
        _unique(
            "edges or devices",
            [*devices, *(edge for boundary in self.boundaries for edge in boundary.edge_names())],
        )
        floor = self.secure.k_min + self.secure.colluding
        if self.model.task == "classify" and self.logging.samples:
            raise ValueError("logging.samples: a classifier does not continue texts: leave them out")
        for boundary in self.boundaries:
            check_task(self.model, boundary.data, boundary.name)
            count = len(boundary.device_list())
            if boundary.split is not None:
                self._check_split(boundary, boundary.split, count, floor)
            if count < floor:
                raise ValueError(
                    f"boundary {boundary.name!r} has {count} devices, and secure.k_min + secure.colluding = "
                    f"{floor}: no window could ever close. Add devices or lower the floor"
                )
            if count > ENROLLED_LIMIT:
                raise ValueError(
                    f"boundary {boundary.name!r} has {count} devices; at most {ENROLLED_LIMIT} can be "
                    f"enrolled: split it"
                )
            for setting, bound in (
                ("window.cohort", self.window.cohort),
                ("secure.cohort_max", self.secure.cohort_max),
            ):
                if bound is not None and bound < floor:
                    raise ValueError(
                        f"{setting} = {bound} in boundary {boundary.name!r} is below secure.k_min + "
                        f"secure.colluding = {floor}: raise {setting} or lower the floor"
                    )
            if floor > COHORT_LIMIT:
                raise ValueError(
                    f"secure.k_min + secure.colluding = {floor}, and a cohort holds at most {COHORT_LIMIT} devices: "
                    f"lower the floor"
                )
            if boundary.shards is not None and boundary.shards < floor:
                raise ValueError(
                    f"boundary {boundary.name!r} has {boundary.shards} shards, and no two devices of a window train "
                    f"one shard: at least secure.k_min + secure.colluding = {floor} are needed. Raise shards or lower "
                    f"the floor"
                )
        for place, parameters, own in (
            ("secure.staleness", self.secure.staleness.parameters, ":" in self.secure.staleness.rule),
            ("sync.staleness", self.sync.staleness.parameters, ":" in self.sync.staleness.rule),
            ("sync.outer", self.sync.outer.parameters, self.sync.outer.rule is not None),
            ("sync.pace_rule", self.sync.pace_parameters, self.sync.pace_rule is not None),
        ):
            if parameters and not own:
                raise ValueError(
                    f"{place}: parameters are for a class of your own, and none is named: leave them out, or name it "
                    f"as package.module:Class"
                )
        budget = self.budget
        if (
            budget.commits is None
            and budget.tokens is None
            and budget.seconds is None
            and budget.patience is None
        ):
            raise ValueError(
                "budget has no bound: set budget.commits, budget.tokens, budget.seconds or budget.patience"
            )
        if self.windows_max() * (self.sync.pending_max + 1) > 24 or self.windows_max() < self.sync.windows:
            raise ValueError(
                f"sync: windows_max × (pending_max + 1) = {self.windows_max()} × {self.sync.pending_max + 1} must be "
                f"at most 24, and windows_max at least windows = {self.sync.windows}: lower sync.windows or "
                f"sync.pending_max"
            )
        self._check_pace()
        unknown = [fault.device for fault in self.simulation.faults if fault.device not in devices]
        if unknown:
            raise ValueError(
                f"simulation.faults names {unknown[0]!r}, which is not a device; devices are {', '.join(devices[:8])}…"
            )
        return self

    def _check_pace(self) -> None:
        steps, (low, high) = self.sync.steps, self.steps_bounds()
        if not low <= steps <= high:
            raise ValueError(
                f"sync.steps = {steps} is outside sync.pace's bounds {low}..{high}: a run starts within them"
            )
        if not self.sync.windows <= self.pace_windows_max() <= self.windows_max():
            raise ValueError(
                f"sync.pace.windows_max = {self.pace_windows_max()} must be at least sync.windows = "
                f"{self.sync.windows} and at most sync.windows_max = {self.windows_max()}"
            )
        if self.sync.pace.kind == "adacomm" and not self.sync.report_loss:
            raise ValueError(
                "sync.pace.kind = adacomm needs losses: set sync.report_loss, or choose another kind"
            )

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
        return low, 8 * steps if pace.steps_max is None else pace.steps_max

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

    def _check_split(self, boundary: BoundarySettings, split: SplitSettings, count: int, floor: int) -> None:
        where = f"boundary {boundary.name!r}: split"
        if self.learner.kind != "lora":
            self._check_split_stand_in(where, split)
        if self.adapter.factors != "both":
            raise ValueError(f"{where}: adapter.factors must be both; alternating ones are not split")
        edges = len(boundary.edge_names())
        devices = [device.id for device in boundary.device_list()]
        strangers = sorted({device for one in split.classes for device in one.devices} - set(devices))
        if strangers:
            raise ValueError(f"{where}.classes names {strangers[0]!r}, which is no device of the boundary")
        for device in devices:
            front, back = split.cut_of(device)
            if front + back < 1:
                raise ValueError(
                    f"{where}: front + back of {device} is 0; it must be at least 1, or the device would train nothing"
                )
        splitting = sum(split.splits(device) for device in devices)
        if splitting < edges * floor:
            raise ValueError(
                f"{where}: {splitting} devices on {edges} edges are fewer than secure.k_min + secure.colluding = "
                f"{floor} each, and an edge releases nothing below that: use fewer edges, more devices, or lower it"
            )
        for edge in split.edge_list():
            if edge.most is not None and edge.most < floor:
                raise ValueError(
                    f"{where}: {edge.id} takes {edge.most} devices at most, and an edge releases nothing below "
                    f"secure.k_min + secure.colluding = {floor}: raise `most`, or leave it out"
                )
        limits = [edge.most for edge in split.edge_list()]
        if None not in limits and (room := sum(most or 0 for most in limits)) < splitting:
            raise ValueError(
                f"{where}: {splitting} devices need an edge, and the edges take {room} at most: raise `most` of one"
            )
        if count > SPLIT_LIMIT:
            raise ValueError(
                f"{where}: {count} devices; their assignment to edges is one record of at most {SPLIT_LIMIT}: "
                "divide the boundary"
            )

    def _check_split_stand_in(self, where: str, split: SplitSettings) -> None:
        """The quadratic has blocks if it is given some, and nothing that only a model has."""
        blocks = self.learner.blocks
        if not blocks:
            raise ValueError(
                f"{where}: learner {self.learner.kind!r} has no blocks to split: give it some (learner.blocks), or "
                "take split out"
            )
        if blocks > self.learner.dim:
            raise ValueError(
                f"learner.blocks = {blocks} of a vector of {self.learner.dim} numbers: use fewer"
            )
        if split.probes or split.perturbation or any(one.profile is not None for one in split.classes):
            raise ValueError(
                f"{where}: probes, perturbation and profiles are of models, a {self.learner.kind} has none: leave "
                "them out"
            )
        for front, back in sorted(split.cuts):
            if front + back >= blocks:
                raise ValueError(
                    f"{where}: front {front} and back {back} leave no middle of learner.blocks = {blocks}: lower them"
                )

    def windows_max(self) -> int:
        """R_max."""
        if self.sync.windows_max is not None:
            return self.sync.windows_max
        return max(self.pace_windows_max(), min(2 * self.sync.windows, 24 // (self.sync.pending_max + 1)))


def _unique(what: str, names: list[str]) -> None:
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"two {what} are called {twice[0]!r}: give each a name of its own")


def load(path: Path, overrides: tuple[str, ...] = ()) -> RunSettings:
    """Read a run file.

    Args:
        path: the YAML file.
        overrides: `a.b=value` each, the value in YAML.

    Raises:
        ConfigError: not readable, not YAML, an unknown key or a value out of bounds; the message says which and where.
    """
    fields = read_map(path, "run file", MAX_FILE_BYTES)
    for override in overrides:
        _override(fields, override)
    return parse(fields, str(path))


def parse(fields: dict[str, Any], where: str) -> RunSettings:
    """Validate the fields of a run file.

    Raises:
        ConfigError: every problem, one line each, with the path of the setting.
    """
    try:
        return RunSettings.model_validate(fields)
    except ValidationError as error:
        lines = []
        for problem in error.errors(include_url=False):
            at = ".".join(str(part) for part in problem["loc"]) or "the file"
            message = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                message = "unknown setting; check its spelling against docs/settings.md"
            lines.append(f"  {at}: {message}")
        raise ConfigError(f"{where}:\n" + "\n".join(lines)) from None


def _override(fields: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {override!r}: write it as a.b=value")
    if len(override) > MAX_FILE_BYTES:
        raise ConfigError(f"--set {override[:80]!r}… is longer than {MAX_FILE_BYTES} characters")
    value = load_yaml(text, f"--set {override!r}: the value")
    *parents, last = path.split(".")
    if len(parents) >= MAX_DEPTH:
        raise ConfigError(
            f"--set {override[:80]!r}: it leads deeper than {MAX_DEPTH} levels; no setting does"
        )
    place: Any = fields
    for part in parents:
        if isinstance(place, list) and (found := _place(part, place)) is not None:
            place = place[found]
        elif isinstance(place, dict):
            place = place.setdefault(part, {})
        else:
            raise ConfigError(f"--set {override!r}: {part!r} leads nowhere")
    if isinstance(place, list) and (found := _place(last, place)) is not None:
        place[found] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise ConfigError(f"--set {override!r}: {last!r} leads nowhere")


def _place(part: str, items: list[Any]) -> int | None:
    """The index that a part of a path names, if there is such an item."""
    if not (part.isascii() and part.isdigit() and len(part) < 10):
        return None
    return int(part) if int(part) < len(items) else None


def dump(settings: RunSettings) -> str:
    """The run file as used, with every default."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
