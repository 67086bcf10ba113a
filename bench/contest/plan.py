"""Which runs a tier has: conditions, arms, seeds and tokens, fixed before anything is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from bench.contest.arms import (
    ABLATIONS,
    ARMS,
    BY_NAME,
    CONTESTANT,
    FIXED,
    Arm,
    Kind,
    Knobs,
    ablated,
)
from bench.contest.cells import CHURN, HOME, NETWORK, PARTITIONS, PRIMARY, STRAGGLERS, Cell
from echelon.errors import ConfigError

Part = Literal["dev", "test"]
_SINCE = frozenset(("adapter", "optimizer", "lr_factor"))
"""Knobs that came when figures were there already: where they are as they were then, a run has the key that it had."""
_DEFAULTS = {one.name: one.default for one in fields(Knobs) if one.name in _SINCE}
DEV_SEED = 101
FIRST_SEED = 1


@dataclass(frozen=True)
class Shape:
    """Model and local training: the same for every run of a tier, whatever the arm."""

    model: str
    rank: int
    lr: float
    batch: int
    length: int
    characters: int | None
    """Characters of each domain that are used; None: all."""
    eval_tokens: int
    """Tokens of each domain that a point of a curve is evaluated on."""
    points: int
    """At most so many points of a curve are evaluated, the last one among them."""
    speed: float
    """How fast a device is against the core that the cost model was measured on: devices of a federation are weak, and
    links must be neither free nor everything against a step."""

    @property
    def step_tokens(self) -> int:
        """Tokens of one local step."""
        return self.batch * self.length


@dataclass(frozen=True)
class Job:
    """One run. Everything that its figures depend on is in here, or in the data's digest and the cost model."""

    arm: str
    knobs: Knobs
    cell: Cell
    seed: int
    tokens: int
    part: Part
    shape: Shape
    data: str
    cost: tuple[float, float]
    """Seconds per trained and per evaluated token."""

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in hex: what a stored figure is found again by."""
        found = {name: value for name, value in asdict(self).items() if name != "arm"}
        found |= {"cell": self.cell.fields(), "knobs": fields_of(self.knobs)}
        if BY_NAME[self.arm].kind is not Kind.FEDERATED:
            found["arm"] = self.arm
        return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()

    @property
    def group(self) -> str:
        """Jobs of one group train alike as long as nothing depends on the links: they run in one process."""
        bare = replace(self, cell=replace(self.cell, latency_ms=0, mbit=0))
        return bare.key


@dataclass(frozen=True)
class Table:
    """Runs of one table: arms × cells × seeds at so many tokens, and the contestant with each of the ablations."""

    name: str
    arms: tuple[str, ...]
    cells: tuple[Cell, ...]
    seeds: int
    tokens: int
    ablations: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tier:
    """A size of the contest.

    Attributes:
        tuned: tuning is part of the tier; otherwise what is committed is taken.
        dev_tokens, dev_seeds: of every trial.
        stretch: what every H of the grids is multiplied with, as longer runs have room for longer intervals.
        arms: whose settings are tuned; the tables' arms are among them.
    """

    name: str
    about: str
    shape: Shape
    dev_tokens: int
    dev_seeds: int
    tables: tuple[Table, ...]
    tuned: bool = True
    stretch: int = 1
    arms: tuple[str, ...] = tuple(arm.name for arm in ARMS)


FEDERATED = tuple(arm.name for arm in ARMS if arm.kind is Kind.FEDERATED)
ALL = tuple(arm.name for arm in ARMS)
OVERLAPPED = ("diloco-overlap", "fedbuff", "echelon-fixed", "echelon-da")
BARRIER = ("fedavg", "diloco")
FOUR = ("fedavg", "diloco", "echelon-fixed", "echelon-da")
BEST_FIXED = "@best-fixed"
"""Stands for the arm that the dev split found to be the best with a fixed interval."""
TARGET_SHARE = 0.5
"""The target is this share of the improvement that the best trial made on the dev split, relative to the base."""


def _tables(
    *, t1: int, others: int, seeds: int, fewer: int, network: tuple[str, ...], four: tuple[str, ...]
) -> tuple[Table, ...]:
    """In the order in which they are run, so that what matters most is there first."""
    rest = tuple(cell for cell in NETWORK if cell != PRIMARY)
    return (
        Table("T1", ALL, (HOME,), seeds, t1),
        Table(
            name="primary",
            arms=(BEST_FIXED, FIXED, CONTESTANT),
            cells=(PRIMARY,),
            seeds=seeds,
            tokens=others,
            ablations=("pace",),
        ),
        Table("T2", network, (PRIMARY, *rest), fewer, others),
        Table("T3", four, PARTITIONS, fewer, others),
        Table("T4", four, (*CHURN, *STRAGGLERS), fewer, others),
        Table(
            name="T6",
            arms=(CONTESTANT,),
            cells=(HOME,),
            seeds=fewer,
            tokens=others,
            ablations=tuple(name for name, _, _ in ABLATIONS),
        ),
    )


MICRO = Shape(
    model="echelon:micro",
    rank=8,
    lr=4e-3,
    batch=2,
    length=64,
    characters=150_000,
    eval_tokens=1024,
    points=6,
    speed=0.1,
)
TINY = Shape(
    model="echelon:tiny",
    rank=8,
    lr=4e-3,
    batch=4,
    length=64,
    characters=None,
    eval_tokens=1536,
    points=8,
    speed=0.25,
)

TIERS: Mapping[str, Tier] = {
    tier.name: tier
    for tier in (
        Tier(
            "ci",
            "the mechanics: every table, few seeds, a 0.2M model, tuning as committed",
            MICRO,
            dev_tokens=16_384,
            dev_seeds=1,
            tables=_tables(
                t1=32_768,
                others=16_384,
                seeds=2,
                fewer=1,
                network=BARRIER[1:] + OVERLAPPED[2:],
                four=FOUR[2:],
            ),
            tuned=False,
        ),
        Tier(
            "small",
            "the shipped 1M model, five paired seeds, within about 70 CPU-minutes",
            TINY,
            dev_tokens=65_536,
            dev_seeds=1,
            tables=_tables(t1=98_304, others=65_536, seeds=5, fewer=3, network=FOUR[1:], four=FOUR[2:]),
            stretch=2,
        ),
        Tier(
            "full",
            "the shipped 1M model at the sizes that the contest was planned with: about 270 runs, 5 CPU-hours or more",
            replace(TINY, eval_tokens=4096, points=16),
            dev_tokens=196_608,
            dev_seeds=1,
            tables=_tables(
                t1=786_432, others=393_216, seeds=5, fewer=5, network=BARRIER + OVERLAPPED, four=FOUR
            ),
            stretch=4,
        ),
    )
}


@dataclass(frozen=True)
class Tuning:
    """What the dev split decided: the settings of every federated arm, and the target as a share of the base's loss."""

    chosen: Mapping[str, Knobs]
    target_share: float
    """The target is the base's loss on the test slice times (1 − this)."""
    best_fixed: str | None = None
    """The arm with a fixed interval that was fastest to the target on the dev split: whom the contestant meets."""


def fields_of(knobs: Knobs) -> dict[str, Any]:
    """Knobs as they stand in JSON: later ones only where they are not the defaults."""
    found = asdict(knobs)
    return {name: value for name, value in found.items() if name not in _DEFAULTS or value != _DEFAULTS[name]}


def knobs_from(stored: Mapping[str, Any]) -> Knobs:
    """Knobs as they stand in JSON."""
    extra = tuple((str(path), value) for path, value in stored.get("extra", ()))
    return Knobs(**{**stored, "extra": extra})


def check_tier(name: str) -> Tier:
    """The tier of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in TIERS:
        raise ConfigError(f"there is no tier {name!r}; there are {', '.join(TIERS)}")
    return TIERS[name]


def trials(tier: Tier, data: str, cost: tuple[float, float]) -> list[Job]:
    """Every tuning run: the same number for each federated arm, on the dev split, in the primary cell."""
    return [
        Job(
            arm=arm.name,
            knobs=replace(knobs, steps=knobs.steps * tier.stretch),
            cell=PRIMARY,
            seed=DEV_SEED + seed,
            tokens=tier.dev_tokens,
            part="dev",
            shape=tier.shape,
            data=data,
            cost=cost,
        )
        for arm in map(BY_NAME.__getitem__, tier.arms)
        if arm.kind is Kind.FEDERATED
        for knobs in arm.grid
        for seed in range(tier.dev_seeds)
    ]


def jobs_of(table: Table, tier: Tier, tuning: Tuning, data: str, cost: tuple[float, float]) -> list[Job]:
    """The runs of one table."""
    jobs = []
    for cell in table.cells:
        for seed in range(FIRST_SEED, FIRST_SEED + table.seeds):
            for arm, knobs in rows_of(table, tuning):
                jobs.append(
                    Job(
                        arm=arm.name,
                        knobs=knobs,
                        cell=cell,
                        seed=seed,
                        tokens=table.tokens,
                        part="test",
                        shape=tier.shape,
                        data=data,
                        cost=cost,
                    )
                )
    return jobs


def rows_of(table: Table, tuning: Tuning) -> list[tuple[Arm, Knobs]]:
    """The arms of a table with the settings that they run with, then the contestant's ablations."""
    names = [tuning.best_fixed if name == BEST_FIXED else name for name in table.arms]
    rows = [
        (BY_NAME[name], tuning.chosen.get(name, Knobs())) for name in dict.fromkeys(names) if name is not None
    ]
    rows += [
        (BY_NAME[CONTESTANT], ablated(tuning.chosen[CONTESTANT], ablation)) for ablation in table.ablations
    ]
    return rows


def planned(tier: Tier, tuning: Tuning, data: str, cost: tuple[float, float]) -> dict[str, list[Job]]:
    """The runs of every table, each run under the first table that has it."""
    seen: set[str] = set()
    jobs: dict[str, list[Job]] = {}
    for table in tier.tables:
        jobs[table.name] = []
        for job in jobs_of(table, tier, tuning, data, cost):
            if job.key not in seen:
                seen.add(job.key)
                jobs[table.name].append(job)
    return jobs


def groups(jobs: Iterable[Job]) -> list[list[Job]]:
    """Jobs that share their training, together, in the order in which the first of each came."""
    by_group: dict[str, list[Job]] = {}
    for job in jobs:
        by_group.setdefault(job.group, []).append(job)
    return list(by_group.values())


def trained_tokens(jobs: Sequence[Job]) -> int:
    """Tokens that will really be trained: a barrier's runs of a group train once."""
    total = 0
    for group in groups(jobs):
        barrier = not group[0].knobs.overlap and BY_NAME[group[0].arm].kind is Kind.FEDERATED
        total += group[0].tokens if barrier else sum(job.tokens for job in group)
    return total
