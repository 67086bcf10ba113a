"""Which runs answer which question: studies, fixed in a file that is committed before anything reported is run.

A study is rows × cells × seeds at so many tokens. A row is an arm of the contest with its settings: those that the dev
split chose, or, where a question is about settings, given ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any, Self

from bench.contest.arms import BY_NAME, CONTESTANT, FIXED, NESTEROV, Kind, Knobs, intervals
from bench.contest.cells import CHANGES, Cell
from bench.contest.plan import Job, Part, Shape, Tuning
from bench.harness.results import read_json
from echelon.errors import ConfigError

RIVAL = "diloco"
"""With secure aggregation and a barrier: whom the paper's own endpoint compares with."""
_OVERLAPPED = (
    *intervals(NESTEROV, ((4, 1), (4, 2), (4, 4), (8, 2))),
    *intervals(replace(NESTEROV, momentum=0.9), ((4, 4),)),
    *intervals(Knobs(), ((4, 4),)),
)
GRIDS: Mapping[str, tuple[Knobs, ...]] = {
    FIXED: _OVERLAPPED,
    CONTESTANT: tuple(replace(knobs, pace=CONTESTANT) for knobs in _OVERLAPPED),
}
"""Trials that the studies make of an arm in place of the contest's: as many, with the intervals and the momenta that
the others' grids have, too."""
TARGET, QUALITY, UNTUNED, CHANGING, SPREAD = "target", "quality", "untuned", "changing", "spread"


@dataclass(frozen=True)
class Row:
    """One arm with its settings.

    Attributes:
        arm: its name in the contest.
        knobs: its settings; those of bare loops say nothing.
        label: what tables call it.
    """

    arm: str
    knobs: Knobs
    label: str

    @property
    def fixed(self) -> bool:
        """Whether it is a federated arm whose interval nobody changes."""
        return BY_NAME[self.arm].kind is Kind.FEDERATED and self.knobs.pace == "fixed"


@dataclass(frozen=True)
class Study:
    """Runs that answer one question."""

    name: str
    rows: tuple[Row, ...]
    cells: tuple[Cell, ...]
    seeds: int
    tokens_of_each_boundary: int
    first_seed: int

    @property
    def each_seed(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def tokens(self, cell: Cell) -> int:
        """A run's budget in a cell."""
        return self.tokens_of_each_boundary * cell.boundaries


@dataclass(frozen=True)
class Runs:
    """How often, and how long: seeds and tokens of each boundary."""

    seeds: int
    tokens: int


@dataclass(frozen=True)
class Finals(Runs):
    """The second round of trials: of each arm the best `keep` of the first, as long as a reported run.

    What is best after a third of the tokens is not what is best after all of them: an outer momentum needs commits to
    grow, and a run that ends before it has grown recommends too large a one.
    """

    keep: int


@dataclass(frozen=True)
class Plan:
    """The file's fields.

    Attributes:
        boundaries: M of every study but `spread`; each boundary has a domain of its own where nothing else is said.
        devices: of each boundary.
        rank, lr, batch, length, eval_tokens, points, speed, characters: as `bench.contest.plan.Shape`.
        piece: characters of a piece of training text, as text is dealt.
        cost: seconds for each trained and each evaluated token.
        arms: federated arms of the study `quality`.
        dev_seed: of the trials.
        trials: how long a trial of the first round is.
        finals: the second round.
        first_seed: of the reported runs.
        intervals: H of the fixed intervals of `untuned` and `changing`, with one window a delta.
        latencies_ms, mbits, partitions, stragglers: the cells of `untuned` are their product,
        half: or half of it: cells in which an even number of these four is at its second value. With two values each,
            every effect of one of them is then seen apart from the others' and from those of two of them together.
        changes: what changes in the cells of `changing`, of `bench.contest.cells.CHANGES`.
        stretch: what every H of the arms' grids is multiplied with, as longer runs have room for longer intervals.
        spread_boundaries: M of the study `spread`.
        runs: by study.
    """

    boundaries: int
    devices: int
    rank: int
    lr: float
    batch: int
    length: int
    eval_tokens: int
    points: int
    speed: float
    characters: int | None
    piece: int
    cost: tuple[float, float]
    arms: tuple[str, ...]
    dev_seed: int
    trials: Runs
    finals: Finals
    first_seed: int
    intervals: tuple[int, ...]
    latencies_ms: tuple[int, ...]
    mbits: tuple[int, ...]
    partitions: tuple[str, ...]
    stragglers: tuple[str, ...]
    half: bool
    changes: tuple[str, ...]
    stretch: int
    spread_boundaries: tuple[int, ...]
    runs: Mapping[str, Runs]

    @classmethod
    def load(cls, path: Path) -> Self:
        """The plan of a file.

        Raises:
            ConfigError: the file is not there, or has other fields, arms or studies.
        """
        given: Any = read_json(path, "the plan of the studies")
        known = {one.name for one in fields(cls)}
        if set(given) != known:
            odd = ", ".join(sorted(set(given) ^ known))
            raise ConfigError(f"{path} has other fields than a plan has: {odd}")
        made: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in given.items()
        }
        try:
            made["trials"] = Runs(**given["trials"])
            made["finals"] = Finals(**given["finals"])
            made["runs"] = {name: Runs(**runs) for name, runs in given["runs"].items()}
        except TypeError as error:
            raise ConfigError(f"{path}: {error}") from error
        for what, known_names in (("arms", BY_NAME), ("changes", CHANGES)):
            unknown = [name for name in made[what] if name not in known_names]
            if unknown:
                raise ConfigError(f"{path}: `{what}` has {unknown[0]!r}; there are {', '.join(known_names)}")
        missing = {TARGET, QUALITY, UNTUNED, CHANGING, SPREAD} ^ set(made["runs"])
        if missing:
            raise ConfigError(f"{path}: `runs` lacks or does not know {', '.join(sorted(missing))}")
        return cls(**made)

    def shape(self, model: str) -> Shape:
        """Model and local training of every run."""
        return Shape(
            model=model, rank=self.rank, lr=self.lr, batch=self.batch, length=self.length,
            characters=self.characters, eval_tokens=self.eval_tokens, points=self.points, speed=self.speed,
        )  # fmt: skip

    @property
    def home(self) -> Cell:
        """Where `quality` is measured."""
        return Cell(boundaries=self.boundaries, devices=self.devices)

    @property
    def far(self) -> Cell:
        """Where `target` is measured and arms are tuned: 200 ms each way, 10 Mbit/s."""
        return replace(self.home, latency_ms=200, mbit=10)

    def grid(self) -> tuple[Cell, ...]:
        """The cells of `untuned`."""
        factors = (self.partitions, self.stragglers, self.mbits, self.latencies_ms)
        places = product(*map(range, map(len, factors)))
        return tuple(
            replace(self.home, latency_ms=latency, mbit=mbit, partition=partition, stragglers=slow)
            for place, (partition, slow, mbit, latency) in zip(
                places,
                product(self.partitions, self.stragglers, self.mbits, self.latencies_ms),
                strict=True,
            )
            if not (self.half and sum(place) % 2)
        )


def tuned(tuning: Tuning, arm: str) -> Row:
    """An arm with the settings that the dev split chose."""
    return Row(arm, tuning.chosen.get(arm, Knobs()), BY_NAME[arm].title)


def given_intervals(tuning: Tuning, intervals: Sequence[int]) -> tuple[Row, ...]:
    """Overlapped and barrier arms at given intervals; all else as the dev split chose it."""
    rows = []
    for arm in (FIXED, RIVAL):
        knobs = tuning.chosen.get(arm, BY_NAME[arm].knobs)
        rows += [
            Row(arm, replace(knobs, steps=steps, windows=1), f"{BY_NAME[arm].title}, H={steps}")
            for steps in intervals
        ]
    return tuple(rows)


def studies(plan: Plan, tuning: Tuning) -> tuple[Study, ...]:
    """Every study, in the order in which they are run: what matters most is there first.

    Args:
        plan: the file.
        tuning: what the dev split decided.
    """
    contestant = tuned(tuning, CONTESTANT)
    kept = (contestant, *given_intervals(tuning, plan.intervals))
    both = tuple(
        replace(plan.home, boundaries=count, partition=partition)
        for count in plan.spread_boundaries
        for partition in ("by-domain", "iid")
    )
    made = {
        TARGET: ((contestant, tuned(tuning, RIVAL)), (plan.far,)),
        QUALITY: (
            tuple(tuned(tuning, arm) for arm in ("centralised", "local", *plan.arms)),
            (plan.home,),
        ),
        UNTUNED: (kept, plan.grid()),
        CHANGING: (
            kept,
            tuple(replace(plan.far, change=name) for name in plan.changes),
        ),
        SPREAD: (tuple(tuned(tuning, arm) for arm in ("centralised", "local", "fedavg", CONTESTANT)), both),
    }
    return tuple(
        Study(
            name, rows, cells,
            seeds=plan.runs[name].seeds, tokens_of_each_boundary=plan.runs[name].tokens, first_seed=plan.first_seed,
        )
        for name, (rows, cells) in made.items()
    )  # fmt: skip


@dataclass(frozen=True)
class Fixed:
    """What every job has in common: the model, the data by number of boundaries, and the cost."""

    shape: Shape
    data: Mapping[int, str]
    cost: tuple[float, float]

    def job(self, row: Row, cell: Cell, seed: int, *, tokens: int, part: Part) -> Job:
        """One run."""
        return Job(
            arm=row.arm, knobs=row.knobs, cell=cell, seed=seed, tokens=tokens, part=part, shape=self.shape,
            data=self.data[cell.boundaries], cost=self.cost,
        )  # fmt: skip


def trials(plan: Plan, fixed: Fixed) -> list[Job]:
    """The first round: each setting of each federated arm's grid, on dev text, in the far cell."""
    arms = dict.fromkeys((*plan.arms, CONTESTANT, FIXED, RIVAL))
    grids = {arm: GRIDS.get(arm, BY_NAME[arm].grid) for arm in arms}
    stretched = {
        arm: [replace(knobs, steps=knobs.steps * plan.stretch) for knobs in grid]
        for arm, grid in grids.items()
    }
    return _tried(plan, fixed, plan.trials, stretched)


def finals(plan: Plan, fixed: Fixed, best: Mapping[str, Sequence[Knobs]]) -> list[Job]:
    """The second round.

    Args:
        plan: the file.
        fixed: what every job has.
        best: of each arm the settings that the first round kept.
    """
    return _tried(plan, fixed, plan.finals, best)


def _tried(plan: Plan, fixed: Fixed, runs: Runs, settings: Mapping[str, Sequence[Knobs]]) -> list[Job]:
    return [
        fixed.job(
            Row(arm, knobs, BY_NAME[arm].title), plan.far, plan.dev_seed + number,
            tokens=runs.tokens * plan.boundaries, part="dev",
        )
        for arm, every in settings.items()
        for knobs in every
        for number in range(runs.seeds)
    ]  # fmt: skip


def jobs_of(study: Study, fixed: Fixed) -> Iterator[tuple[Row, Cell, int, Job]]:
    """Every run of a study with its row, cell and seed: cell after cell, seed after seed."""
    for cell in study.cells:
        for seed in study.each_seed:
            for row in study.rows:
                yield row, cell, seed, fixed.job(row, cell, seed, tokens=study.tokens(cell), part="test")
