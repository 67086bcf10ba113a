"""What is compared: every federated arm is a row of knobs over the same actors, and nothing else differs.

H local steps per update, R windows per delta, B deltas per commit, whether training goes on while a delta is under
way (overlap), the outer step, μ, and who sets the interval. The two controls are bare loops without any actor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """How an arm is run."""

    FEDERATED = "federated"
    CENTRALISED = "centralised"
    LOCAL = "local"


@dataclass(frozen=True)
class Knobs:
    """The row of a federated arm.

    Attributes:
        steps: H, local steps per update.
        windows: R, windows per boundary delta.
        deltas: B, deltas per commit; None: one of each boundary.
        overlap: whether boundaries train on while their delta is under way; without it, they wait for the commit.
        outer: kind of the outer step.
        outer_lr: its learning rate.
        momentum: its momentum.
        mu: μ of the proximal objective.
        staleness: rule that damps late updates and late deltas.
        pace: who sets the interval: `fixed`, or the name of a controller.
        extra: further settings of the run file by path below `sync`, such as `pace.hysteresis`.
        adapter: kind of the adapter; another kind than `lora` has the rank whose bytes are those of plain LoRA.
        optimizer: what takes the local steps.
        lr_factor: the tier's learning rate times this.
    """

    steps: int = 10
    windows: int = 2
    deltas: int | None = None
    overlap: bool = True
    outer: str = "average"
    outer_lr: float = 1.0
    momentum: float = 0.9
    mu: float = 0.0
    staleness: str = "polynomial"
    pace: str = "fixed"
    extra: tuple[tuple[str, Any], ...] = ()
    adapter: str = "lora"
    optimizer: str = "adamw"
    lr_factor: float = 1.0

    @property
    def interval(self) -> int:
        """Local steps between two deltas of a boundary, H·R."""
        return self.steps * self.windows

    def fields(self) -> dict[str, Any]:
        """The run file's `sync` block."""
        sync: dict[str, Any] = {
            "steps": self.steps,
            "windows": self.windows,
            "mu": self.mu,
            "deltas_per_commit": self.deltas,
            "staleness": {"rule": self.staleness},
            "outer": {"kind": self.outer, "lr": self.outer_lr, "momentum": self.momentum},
            "report_loss": False,
        }
        if not self.overlap:
            sync["overlap"] = False
        if self.pace != "fixed":
            sync["pace"] = {"kind": self.pace}
        for path, value in self.extra:
            place = sync
            *parents, last = path.split(".")
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = value
        return sync

    def words(self) -> str:
        """The row in short, as the tables print it."""
        parts = [f"H={self.steps}", f"R={self.windows}", f"B={self.deltas or 'M'}"]
        parts.append("overlap" if self.overlap else "barrier")
        outer = self.outer if self.outer_lr == 1.0 else f"{self.outer} {self.outer_lr:g}"
        parts.append(outer if self.outer == "average" else f"{outer}/{self.momentum:g}")
        parts.append(f"μ={self.mu:g}")
        if self.staleness != "polynomial":
            parts.append(f"staleness {self.staleness}")
        if self.pace != "fixed":
            parts.append(self.pace)
        parts += [f"{path}={value}" for path, value in self.extra]
        if self.adapter != "lora":
            parts.append(self.adapter)
        if self.optimizer != "adamw":
            parts.append(self.optimizer)
        if self.lr_factor != 1.0:
            parts.append(f"lr×{self.lr_factor:g}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Arm:
    """One arm: its name in the tables, how it is run, and the settings that its tuning tries."""

    name: str
    title: str
    kind: Kind = Kind.FEDERATED
    knobs: Knobs = field(default_factory=Knobs)
    grid: tuple[Knobs, ...] = ()

    @property
    def asynchronous(self) -> bool:
        """Whether its training depends on when things arrive; a barrier's does not."""
        return self.kind is Kind.FEDERATED and self.knobs.overlap

    @property
    def fixed_interval(self) -> bool:
        """Whether it is a federated arm whose interval nobody changes."""
        return self.kind is Kind.FEDERATED and self.knobs.pace == "fixed"


TRIALS = 6
"""Settings that each federated arm tries on the dev split; the same number for all."""


def intervals(base: Knobs, pairs: Iterable[tuple[int, int]]) -> tuple[Knobs, ...]:
    """Settings that differ in H and R alone, each (H, R) one."""
    return tuple(replace(base, steps=steps, windows=windows) for steps, windows in pairs)


def _federated(name: str, title: str, *grid: Knobs) -> Arm:
    if len(grid) != TRIALS or len(set(grid)) != TRIALS:
        raise ValueError(f"arm {name}: {len(set(grid))} different trials, and every arm has {TRIALS}")
    return Arm(name, title, knobs=grid[0], grid=grid)


_SYNC = Knobs(windows=1, overlap=False)
_PROX = tuple(replace(_SYNC, steps=h, mu=mu) for h in (4, 8) for mu in (0.001, 0.01, 0.1))
_DILOCO = tuple(
    replace(_SYNC, steps=h, outer="nesterov", outer_lr=0.7, momentum=m)
    for h in (4, 8, 16)
    for m in (0.9, 0.5)
)
_BUFFERED = ((2, 1), (4, 1), (4, 2), (8, 1), (8, 2), (4, 4))
NESTEROV = Knobs(outer="nesterov", outer_lr=0.7, momentum=0.5)
_ECHELON = (
    *intervals(NESTEROV, ((2, 1), (4, 1), (4, 2), (8, 1))),
    *intervals(Knobs(), ((4, 2), (4, 4))),
)
"""Tried with a fixed interval and by Echelon-DA alike: the two differ in nothing but who sets the interval."""

ARMS: tuple[Arm, ...] = (
    Arm("centralised", "Centralised LoRA", Kind.CENTRALISED),
    Arm("local", "Local only", Kind.LOCAL),
    _federated("fedavg", "FedAvg", *intervals(_SYNC, ((h, 1) for h in (2, 4, 6, 8, 12, 16)))),
    _federated("fedprox", "FedProx", *_PROX),
    _federated("diloco", "DiLoCo (barrier)", *_DILOCO),
    _federated("diloco-overlap", "DiLoCo (overlapped)", *(replace(k, overlap=True) for k in _DILOCO)),
    _federated("fedbuff", "FedBuff", *intervals(Knobs(deltas=1), _BUFFERED)),
    _federated("echelon-fixed", "Echelon, fixed interval", *_ECHELON),
    _federated("echelon-da", "Echelon-DA", *(replace(k, pace="echelon-da") for k in _ECHELON)),
)
"""All arms. The grids' H are for the short runs of the small tiers; longer tiers stretch them."""

_STEPS_AND_RATES = tuple((steps, factor) for steps in (8, 16) for factor in (0.5, 1.0, 2.0))


def _of_kind(kind: str, rates: float) -> tuple[Knobs, ...]:
    """Six trials of an adapter of that kind, with learning rates around `rates` times LoRA's."""
    plain = replace(NESTEROV, windows=1, adapter=kind)
    return tuple(replace(plain, steps=h, lr_factor=rates * factor) for h, factor in _STEPS_AND_RATES)


FURTHER: tuple[Arm, ...] = (
    _federated(
        "fda",
        "FDA-like (barrier)",
        *(
            replace(base, steps=h, pace="fda")
            for h in (4, 8, 16)
            for base in (_SYNC, replace(_SYNC, outer="nesterov", outer_lr=0.7, momentum=0.5))
        ),
    ),
    _federated(
        "cgad",
        "CGAD",
        *(
            Knobs(
                steps=h,
                windows=1,
                deltas=1,
                outer="fedadam",
                outer_lr=lr,
                extra=(("staleness.rule", "cosine"),),
            )
            for h in (4, 8)
            for lr in (0.0003, 0.001, 0.003)
        ),
    ),
    _federated(
        "heloco", "HeLoCo-like", *(replace(knobs, overlap=True, outer="corrected") for knobs in _DILOCO)
    ),
    _federated(
        "eager",
        "DiLoCo, eager",
        *(replace(knobs, overlap=True, extra=(("eager", True),)) for knobs in _DILOCO),
    ),
    _federated(
        "muloco",
        "MuLoCo (barrier)",
        *(
            replace(
                _SYNC,
                steps=h,
                outer="nesterov",
                outer_lr=0.7,
                momentum=0.5,
                optimizer="muon",
                lr_factor=factor,
            )
            for h, factor in _STEPS_AND_RATES
        ),
    ),
    _federated(
        "sparseloco",
        "SparseLoCo-like (barrier)",
        *(
            replace(_SYNC, steps=h, extra=(("codec", "sparse"), ("density", density)))
            for h in (4, 8, 16)
            for density in (0.05, 0.2)
        ),
    ),
    _federated("ffa", "FFA-LoRA at LoRA's bytes", *_of_kind("ffa", 1.0)),
    _federated("fed-sb", "Fed-SB at LoRA's bytes", *_of_kind("fed-sb", 2.0)),
    _federated("ravan", "Ravan at LoRA's bytes", *_of_kind("ravan", 2.0)),
)
"""Arms that a tier has only if it names them (`Tier.arms`). None of them is a published program: each is the row of
settings of this project that comes nearest to what its paper describes; what differs stands in docs/contest-arms.md."""
BY_NAME = {arm.name: arm for arm in (*ARMS, *FURTHER)}
CONTESTANT, FIXED = "echelon-da", "echelon-fixed"
"""The arm of the primary endpoint, and the plain one that it grew from."""

ABLATIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("pace", "the interval that it starts with, kept: nobody changes it", {"pace": "fixed"}),
    ("proximal", "with a proximal term, μ = 0.01", {"mu": 0.01}),
    ("staleness", "late updates and deltas count fully", {"staleness": "constant"}),
    ("window", "as many steps per delta, cut into another number of windows", {}),
    ("momentum", "the other outer step: the average, or delayed Nesterov 0.7 / 0.5", {}),
    ("correction", "delayed Nesterov 0.7 / 0.5 whose momentum does not know that the interval changes", {}),
    ("overlap", "a barrier at every sync", {"overlap": False}),
)  # fmt: skip
"""T6: name, what is changed about the tuned contestant in words, and the knobs."""


def ablated(knobs: Knobs, name: str) -> Knobs:
    """The knobs with one part taken out or put in.

    Raises:
        KeyError: there is no such ablation.
    """
    changes = {key: change for key, _, change in ABLATIONS}[name]
    nesterov = {"outer": "nesterov", "outer_lr": 0.7, "momentum": 0.5}
    if name == "momentum":
        changes = nesterov if knobs.outer == "average" else {"outer": "average", "outer_lr": 1.0}
    elif name == "correction":
        changes = {**nesterov, "extra": (*knobs.extra, ("outer.correct_interval", False))}
    elif name == "window":
        more = knobs.windows == 1 and knobs.steps % 2 == 0
        changes = (
            {"windows": 2, "steps": knobs.steps // 2} if more else {"windows": 1, "steps": knobs.interval}
        )
    return replace(knobs, **changes)
