"""The run file: everything that a federation needs, in one YAML document with defaults, units and bounds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from echelon.config.reading import MAX_DEPTH, load_yaml, read_map
from echelon.config.split import EdgeSettings, SplitSettings
from echelon.config.training import (
    AdapterSettings,
    DataSettings,
    ModelSettings,
    Settings,
    TrainSettings,
    check_task,
)
from echelon.errors import ConfigError
from echelon.messages.names import BoundaryName, WitnessName, check_member, edge_of

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9._-]{0,30}[a-z0-9])?$")]

RuleName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", max_length=256)
]
"""`package.module:Class`: a class of the user's own."""
ParameterName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
Parameters = Annotated[dict[ParameterName, StrictInt | StrictStr], Field(max_length=64)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]
MAX_FILE_BYTES = 1 << 20
COHORT_LIMIT = 200
"""Most devices of one cohort: each pair of them exchanges key shares."""
SPLIT_LIMIT = 512
"""Most devices of a boundary with edges: who has which edge is one record."""
ENROLLED_LIMIT = 4096
"""Most devices that one boundary enrols: its signed roster is one message."""


class DeviceSettings(Settings):
    """One device that needs settings of its own."""

    id: Name = Field(description="Name of the device, unique in the whole run.")
    speed: float = Field(
        default=1.0, gt=0, le=100, allow_inf_nan=False,
        description="Training speed against the others; 0.33 makes it three times slower.",
    )  # fmt: skip


class BoundarySettings(Settings):
    """One boundary: its devices and their data."""

    name: BoundaryName = Field(
        description="Name of the boundary, unique in the run: letters, digits, hyphens."
    )
    devices: Annotated[int, Field(ge=1, le=ENROLLED_LIMIT)] | tuple[DeviceSettings, ...] = Field(
        description="How many devices (named BOUNDARY-0, BOUNDARY-1, …), or a list of devices."
    )
    data: DataSettings = Field(
        description="Where the boundary's documents come from and how they are dealt out."
    )
    shards: int | None = Field(
        default=None, ge=1, le=1000,
        description="Deal the data into so many shards, which move between replicas of a device service as those come "
        "and go. None: to the devices, each of which has data of its own.",
    )  # fmt: skip
    split: SplitSettings | None = Field(
        default=None,
        description="Train the model in parts, the middle blocks on edges of the boundary. None: devices hold all.",
    )

    def device_list(self) -> tuple[DeviceSettings, ...]:
        """Every device, named."""
        if isinstance(self.devices, int):
            return tuple(DeviceSettings(id=f"{self.name}-{number}") for number in range(self.devices))
        return self.devices

    def edge_names(self) -> tuple[str, ...]:
        """Every edge, as topics name it; none in a boundary that is not split."""
        return () if self.split is None else tuple(self.edge_name(edge) for edge in self.split.edge_list())

    def edge_name(self, edge: EdgeSettings) -> str:
        """What topics call an edge."""
        return edge_of(self.name, edge.id)

    def shard_name(self, shard: int) -> str:
        """What a shard is called where data is dealt out; no device can have that name."""
        return f"{self.name}/{shard}"

    def data_names(self) -> tuple[str, ...]:
        """Whom the data is dealt to, in order: the shards if there are any, else the devices."""
        if self.shards is None:
            return tuple(device.id for device in self.device_list())
        return tuple(self.shard_name(shard) for shard in range(self.shards))


class StalenessSettings(Settings):
    """How much less a late update or delta counts, and how late is too late."""

    rule: Literal["constant", "polynomial", "hinge"] | RuleName = Field(
        default="polynomial",
        description="constant: 1; polynomial: (1 + τ)^-exponent; hinge: 1 up to knee, then falling; or a class of "
        "your own, `package.module:Class` (docs/rules.md).",
    )
    parameters: Parameters = Field(default={}, description="Of a class of your own: integers and texts.")
    exponent: float = Field(
        default=0.5, ge=0, le=10, allow_inf_nan=False, description="Of the polynomial rule."
    )
    slope: float = Field(default=10.0, ge=0, le=1000, allow_inf_nan=False, description="Of the hinge rule.")
    knee: int = Field(
        default=4, ge=0, le=255, description="Of the hinge rule: last age that counts fully, in versions."
    )
    horizon: int = Field(
        default=8, ge=0, le=255, description="Oldest age τ that is still taken, in versions."
    )


class SecureSettings(Settings):
    """Secure aggregation and the floors that every device enforces."""

    k_min: int = Field(
        default=3, ge=2, le=200, description="Floor: fewest honest updates that a revealed sum hides among."
    )
    colluding: int = Field(
        default=0, ge=0, le=100,
        description="c: devices that may work together with the aggregator; heads ≥ k_min + c, threshold 2t > n + c.",
    )  # fmt: skip
    cohort_max: int | None = Field(
        default=None, ge=2, le=COHORT_LIMIT,
        description="Most devices of one window; others stay ready, and who was in none for longest comes first. None: "
        "as many as the largest boundary enrols, at most 200.",
    )  # fmt: skip
    clip: float = Field(
        default=16.0,
        gt=0,
        le=1e6,
        allow_inf_nan=False,
        description="Largest Euclidean norm of one device's update.",
    )
    scale_bits: int | None = Field(
        default=None, ge=1, le=40,
        description="Fixed point: a coordinate x travels as x·2^scale_bits. None: as fine as the 32-bit ring allows.",
    )  # fmt: skip
    bucket_tokens: int = Field(
        default=1024, ge=1, le=1 << 39, description="Tokens per unit of an update's weight n."
    )
    n_max: int = Field(default=64, ge=1, le=65_536, description="Largest n of one update, in buckets.")
    staleness: StalenessSettings = Field(default=StalenessSettings(), description="Weights of late updates.")
    neighbours: int | None = Field(
        default=None, ge=4, le=COHORT_LIMIT, multiple_of=2,
        description="k: in cohorts of at least twice as many a device masks with k others, on a ring: its work does "
        "not grow with the cohort, and fewer may drop out near one another (docs/secagg.md). None: with all, always.",
    )  # fmt: skip

    @model_validator(mode="after")
    def _some_may_drop_out(self) -> Self:
        k, c = self.neighbours, self.colluding
        if k is not None and 2 * (k + 2 + c) > 3 * k:
            raise ValueError(
                f"neighbours = {k} with colluding = {c} would need every neighbour to stay: raise neighbours to "
                f"{2 * (c + 2)} or more"
            )
        return self


class WindowSettings(Settings):
    """Participation windows of a boundary."""

    cohort: int | None = Field(
        default=None,
        ge=2,
        le=COHORT_LIMIT,
        description="K: ready devices that close a window at once. None: as many as a cohort holds.",
    )
    deadline: Seconds = Field(
        default=30.0, description="Seconds after which a window closes with whoever is ready."
    )
    round_timeout: Seconds = Field(
        default=10.0, description="Seconds that each round of secure aggregation may take."
    )
    patience: Seconds = Field(
        default=2.0,
        description="Seconds a device waits for a new adapter after an offer, before it trains on.",
    )
    ahead: int = Field(
        default=2,
        ge=1,
        le=64,
        description="Training jobs a device may run while one of its offers is undecided.",
    )


class OuterSettings(Settings):
    """The outer optimiser, which turns boundary deltas into the next global adapter."""

    rule: RuleName | None = Field(
        default=None,
        description="An outer step of your own instead of `kind`: `package.module:Class` (docs/rules.md).",
    )
    parameters: Parameters = Field(default={}, description="Of `rule`: integers and texts.")
    kind: Literal["average", "nesterov", "fedadam", "corrected"] = Field(
        default="average",
        description="average; nesterov (DiLoCo's 0.7 / 0.9, for long runs); fedadam; corrected: nesterov, after what "
        "a delta says against the momentum was damped.",
    )
    weighting: Literal["equal", "tokens"] = Field(
        default="equal", description="Whether boundaries count alike or by tokens."
    )
    lr: float = Field(default=1.0, gt=0, le=100, allow_inf_nan=False, description="Outer learning rate.")
    momentum: float = Field(
        default=0.9, ge=0, lt=1, allow_inf_nan=False, description="Nesterov's or Adam's β1."
    )
    beta2: float = Field(default=0.99, ge=0, lt=1, allow_inf_nan=False, description="Adam's β2.")
    epsilon: float = Field(default=1e-6, ge=0, le=1, allow_inf_nan=False, description="Adam's ε.")
    correct_interval: bool = Field(
        default=True,
        description="Whether momentum remembers the same number of local steps when sync.pace changes the interval.",
    )
    delay: int | None = Field(
        default=None, ge=1, le=4096,
        description="N: deltas per advance of Nesterov's momentum (delayed Nesterov). None: one per boundary.",
    )  # fmt: skip
    correction: float = Field(
        default=0.5, ge=0, le=1, allow_inf_nan=False,
        description="Of the corrected rule: how much of the component against the momentum is taken out.",
    )  # fmt: skip


class PaceSettings(Settings):
    """What decides how long boundaries train before they meet: H (`sync.steps`) and R (`sync.windows`)."""

    kind: Literal["fixed", "echelon-da", "adacomm", "qsr"] = Field(
        default="fixed",
        description="fixed; echelon-da: by measured drift, never shorter than what hides a sync; adacomm: "
        "H by the loss; qsr: H by the learning rate. All but fixed start at sync.steps and sync.windows.",
    )
    steps_min: int | None = Field(
        default=None, ge=1, le=100_000, description="Smallest H. None: an eighth of sync.steps, at least 1."
    )
    steps_max: int | None = Field(
        default=None, ge=1, le=100_000, description="Largest H. None: eight times sync.steps."
    )
    windows_max: int | None = Field(
        default=None, ge=1, le=24, description="Largest R. None: four times sync.windows, within limits."
    )
    period: int = Field(
        default=2, ge=1, le=1000, description="Commits that one measurement takes (echelon-da, adacomm)."
    )
    hysteresis: float = Field(
        default=0.05, ge=0, le=1, allow_inf_nan=False,
        description="Change of coherence below which two intervals count as equally good (echelon-da).",
    )  # fmt: skip
    hide_sync: bool = Field(default=True, description="Keep R·H as long as a sync takes (echelon-da).")
    decay: float = Field(
        default=0.5, ge=0, lt=1, allow_inf_nan=False,
        description="γ of adacomm: H is multiplied by it when the loss does not fall.",
    )  # fmt: skip
    growth: float = Field(
        default=2.0, gt=0, le=10_000, allow_inf_nan=False,
        description="α of qsr over the peak learning rate: H = max(sync.steps, (α/η)²).",
    )  # fmt: skip


class WitnessSettings(Settings):
    """Who watches that no log of the exchange is rewritten."""

    gates: bool = Field(
        default=True,
        description="Whether each boundary's gate cosigns `global` and the delta logs of other boundaries.",
    )
    names: tuple[WitnessName, ...] = Field(
        default=(), max_length=64,
        description="Witnesses besides the gates: each is a service of its own, `echelon witness`.",
    )  # fmt: skip
    every: float = Field(
        default=2.0, ge=0.1, le=3600, allow_inf_nan=False,
        description="Seconds after which a witness looks for new delta heads although `global` stands still.",
    )  # fmt: skip


class SyncSettings(Settings):
    """Deltas and commits: how boundaries meet."""

    steps: int = Field(default=10, ge=1, le=100_000, description="H: local steps per update.")
    windows: int = Field(default=2, ge=1, le=24, description="R: windows per boundary delta.")
    mu: float = Field(
        default=0.0, ge=0, le=1000, allow_inf_nan=False, description="μ of the proximal objective."
    )
    deltas_per_commit: int | None = Field(
        default=None,
        ge=1,
        le=64,
        description="B: deltas that make a commit. None: one per boundary, at least 1.",
    )
    deadline: Seconds = Field(
        default=120.0, description="Seconds after which a commit is made of fewer deltas."
    )
    overlap: bool = Field(
        default=True,
        description="Whether boundaries train on while a delta of theirs is undecided. false: a barrier, as in FedAvg "
        "and DiLoCo: after R windows nothing is trained until the commit is there.",
    )
    pending_max: int = Field(
        default=2, ge=1, le=16, description="P: deltas of one boundary that may be under way."
    )
    windows_max: int | None = Field(
        default=None,
        ge=1,
        le=24,
        description="R_max: windows a boundary runs ahead before it pauses. None: 2·R, within limits.",
    )
    codec: Literal["int16", "int32"] = Field(
        default="int16", description="Integers that a delta's coordinates cross as."
    )
    staleness: StalenessSettings = Field(default=StalenessSettings(), description="Weights of late deltas.")
    merge_within: int | None = Field(
        default=None, ge=2, le=4096,
        description="Commits within which the controller must have read a delta that stands on the exchange: else the "
        "audit says that it was withheld. None: two more than sync.staleness.horizon, at least 4.",
    )  # fmt: skip
    outer: OuterSettings = Field(default=OuterSettings(), description="The outer optimiser.")
    pace: PaceSettings = Field(default=PaceSettings(), description="What decides H and R as the run goes on.")
    pace_rule: RuleName | None = Field(
        default=None,
        description="A pace controller of your own: `package.module:Class` (docs/rules.md). None: ours.",
    )
    pace_parameters: Parameters = Field(default={}, description="Of `pace_rule`: integers and texts.")
    eval_tokens: int = Field(
        default=1024,
        ge=1,
        le=1 << 40,
        description="About how many tokens of its validation slice a device evaluates for each commit.",
    )
    report_loss: bool = Field(
        default=True, description="Whether a boundary's summed losses cross with its deltas."
    )


class BudgetSettings(Settings):
    """When the run ends: at the first bound that is reached."""

    commits: int | None = Field(default=None, ge=1, le=1_000_000, description="Global commits.")
    tokens: int | None = Field(
        default=None, ge=1, le=1 << 62, description="Tokens trained by merged windows."
    )
    seconds: int | None = Field(default=None, ge=1, le=31_536_000, description="Seconds since genesis.")
    patience: int | None = Field(
        default=None, ge=1, le=10_000, description="Commits without a better validation loss."
    )


class ComputeSettings(Settings):
    """Where training runs."""

    workers: int | None = Field(
        default=None,
        ge=1,
        le=256,
        description="Training processes, one torch thread each. None: one per core.",
    )
    threads: int = Field(default=1, ge=1, le=256, description="torch threads per process.")


class LinkSettings(Settings):
    """Faults of one kind of link, for experiments."""

    latency: float = Field(default=0.0, ge=0, le=600, allow_inf_nan=False, description="Seconds each way.")
    jitter: float = Field(
        default=0.0, ge=0, le=600, allow_inf_nan=False, description="Seconds, uniform, on top."
    )
    bandwidth: float | None = Field(
        default=None, gt=0, allow_inf_nan=False, description="Bytes per second; None: unlimited."
    )
    duplicate: float = Field(
        default=0.0,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Probability that a record is written twice.",
    )
    loss: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        allow_inf_nan=False,
        description="Probability that a call loses its connection.",
    )


class DeviceFault(Settings):
    """A device that leaves without a word."""

    device: Name = Field(description="Which device.")
    at: Literal["start", "advertise", "sealed", "masked", "consistency", "unmask"] = Field(
        description="Before which of its records: at the start, or in a round of secure aggregation."
    )
    window: int = Field(default=0, ge=0, description="From which window on.")


class SimulationSettings(Settings):
    """Experiments: links that are slow or lose records, devices that vanish."""

    boundary_link: LinkSettings = Field(
        default=LinkSettings(), description="Between devices, aggregator, gate and their broker."
    )
    exchange_link: LinkSettings = Field(
        default=LinkSettings(), description="Between gates, controller and the exchange."
    )
    faults: tuple[DeviceFault, ...] = Field(default=(), description="Devices that vanish.")


class CostSettings(Settings):
    """What compute costs on the virtual clock."""

    seconds_per_token: float = Field(
        default=1e-4, ge=0, le=10, allow_inf_nan=False, description="Seconds of one device per trained token."
    )
    seconds_per_eval_token: float = Field(
        default=4e-5,
        ge=0,
        le=10,
        allow_inf_nan=False,
        description="Seconds of one device per evaluated token.",
    )


class LearnerSettings(Settings):
    """What does the learning: the language model, or a stand-in without torch for tests of everything else."""

    kind: Literal["lora", "quadratic"] = Field(
        default="lora",
        description="lora: the model. quadratic: a quadratic per device with a known optimum, no torch.",
    )
    dim: int = Field(default=64, ge=1, le=10_000_000, description="Length of the quadratic's vector.")
    blocks: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Blocks of the quadratic's vector, of which edges can train those in the middle. 0: it has none.",
    )
    seconds: float = Field(
        default=0.0,
        ge=0,
        le=3600,
        allow_inf_nan=False,
        description="Seconds that one quadratic training job takes.",
    )


class LoggingSettings(Settings):
    """What is written beside the run folder's own files."""

    tensorboard: bool = Field(
        default=False, description="Write aggregated metrics as TensorBoard events to RUN/tensorboard."
    )
    samples: tuple[str, ...] = Field(
        default=(), max_length=8, description="Prompts that are continued before and after, for the report."
    )
    sample_tokens: int = Field(default=48, ge=1, le=1024, description="Tokens of each continuation.")


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
