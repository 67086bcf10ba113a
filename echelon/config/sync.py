"""Settings of the exchange: deltas, commits, the outer optimiser, the pace, and the witnesses of the logs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from pydantic import Field

from echelon.config.secure import StalenessSettings
from echelon.config.training import Settings
from echelon.config.values import Parameters, RuleName, Seconds
from echelon.messages.exchange import MAX_DENSITY_PPM, MIN_DENSITY_PPM
from echelon.messages.kinds import OuterKind, PaceKind
from echelon.messages.manifest import MILLION
from echelon.messages.names import WitnessName

if TYPE_CHECKING:  # names that are computed are no Literal to the checker
    OuterName: TypeAlias = str
    PaceName: TypeAlias = str
else:
    OuterName = Literal[tuple(kind.value for kind in OuterKind)]
    PaceName = Literal[tuple(kind.value for kind in PaceKind)]


DEFAULT_DENSITY = 0.2
"""Share of the coordinates that a sparse delta carries: the least that was measured whose loss is within 0.3 %
of what int16 gives (bench/results/sparse.json)."""

DEFAULT_FULL_EVERY = 256
"""Commits from one adapter on the exchange to the next: four bytes for each parameter are then 0.016 for each sync."""


class OuterSettings(Settings):
    """The outer optimiser, which turns boundary deltas into the next global adapter."""

    rule: RuleName | None = Field(
        default=None,
        description="An outer step of your own instead of `kind`: `package.module:Class` (docs/rules.md).",
    )
    parameters: Parameters = Field(default={}, description="Of `rule`: integers and texts.")
    kind: OuterName = Field(default="average", description=OuterKind.described())
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

    kind: PaceName = Field(
        default="fixed",
        description=f"{PaceKind.described()} All but fixed start at sync.steps and sync.windows.",
    )
    steps_min: int | None = Field(
        default=None, ge=1, le=100_000, description="Smallest H. None: an eighth of sync.steps, at least 1."
    )
    steps_max: int | None = Field(
        default=None, ge=1, le=100_000,
        description="Largest H. None: eight times sync.steps, of fda twice. Where the variance grows evenly, fda goes "
        "to half of it.",
    )  # fmt: skip
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
    eager: bool = Field(
        default=False,
        description="With overlap: whether a boundary takes the outer step with its own delta at once, in proportion "
        "to what the commit will make of it, as in eager updates (docs/assumptions.md). false: it trains on with its "
        "own delta in full. For average, nesterov and corrected.",
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
    codec: Literal["int16", "int32", "sparse"] = Field(
        default="int16",
        description="How a delta's coordinates cross: all as integers, or `sparse`: the largest, as signs and two "
        "magnitudes (docs/adapters.md#sparse-deltas).",
    )
    density: float | None = Field(
        default=None, ge=MIN_DENSITY_PPM / MILLION, le=MAX_DENSITY_PPM / MILLION, allow_inf_nan=False,
        description=f"Of sparse: the share of the coordinates that each delta carries. None: {DEFAULT_DENSITY}.",
    )  # fmt: skip
    inward: Literal["adapter", "relay"] = Field(
        default="adapter",
        description="What a commit brings to boundaries: the whole adapter, or `relay`: the decision alone, and each "
        "gate derives the adapter from the merged deltas (docs/adapters.md#relayed-commits).",
    )
    full_every: int | None = Field(
        default=None, ge=1, le=1_000_000,
        description=f"Of relay: commits from one that brings its adapter to the next. None: {DEFAULT_FULL_EVERY}.",
    )  # fmt: skip
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
    eval_share: float | None = Field(
        default=None, gt=0, le=1, allow_inf_nan=False,
        description="Most tokens that a device evaluates for each commit, as a share of those that it trains in "
        "sync.windows jobs of sync.steps, where that is less than sync.eval_tokens; one sequence at least. "
        "None: sync.eval_tokens alone counts.",
    )  # fmt: skip
    report_loss: bool = Field(
        default=True, description="Whether a boundary's summed losses cross with its deltas."
    )


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
