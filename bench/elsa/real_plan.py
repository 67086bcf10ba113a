"""Which runs there are on tasks of real text: cells, arms, seeds, and trials on dev rows that choose learning rates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bench.elsa.data import LabelFault
from bench.elsa.plan import ABLATIONS, BY_NAME, ENCODINGS, RIVALS, TaskArmKind, TaskJob, TaskShape
from bench.harness.results import Line
from echelon.errors import ConfigError

DEV_SEED = 101
RATES = (1e-3, 3e-3, 1e-2)
"""Learning rates that are tried for each task and model, for federations and for centralised training."""
PROXIMAL = tuple(arm.name for arm in RIVALS if arm.mu)
"""FedProx with each μ that is tried, with the federations' rate."""
MAIN = ("centralised", "fedavg", "fedprox", "hierarchical", "split", "splitlora", "elsa")
SHORT = ("centralised", "fedavg", "split", "elsa", "elsa-int4")


@dataclass(frozen=True)
class TaskCell:
    """Runs that are compared with one another.

    Attributes:
        task: its name.
        model: its name.
        arms: that are run in it.
        unreliable: percent of devices.
        fault: what these do.
    """

    task: str
    model: str
    arms: tuple[str, ...]
    unreliable: int = 0
    fault: LabelFault = "random-labels"

    @property
    def base(self) -> tuple[str, str]:
        """What trials are made for."""
        return self.task, self.model

    @property
    def title(self) -> str:
        """For tables."""
        reliable = "all devices reliable" if not self.unreliable else f"{self.unreliable} % unreliable"
        return f"{self.task}, {self.model}, {reliable}" + (
            f" ({self.fault.replace('-', ' ')})" if self.unreliable else ""
        )


@dataclass(frozen=True)
class RealTier:
    """A size of the benchmark on real text.

    Attributes:
        name: of its files.
        cells: in the order in which they are run.
        shape: of all runs; the tasks of `domains` are dealt by domain.
        domains: tasks whose devices have one domain each.
        seeds: of reported runs, from 1.
    """

    name: str
    cells: tuple[TaskCell, ...]
    shape: TaskShape
    domains: tuple[str, ...]
    seeds: int

    def shape_of(self, task: str) -> TaskShape:
        """Training in a task."""
        return replace(self.shape, domains=task in self.domains)

    @property
    def bases(self) -> list[tuple[str, str]]:
        """Tasks and models that trials are made for, each once."""
        return list(dict.fromkeys(cell.base for cell in self.cells))


PARTS = tuple(arm.name for arm in ABLATIONS)
OTHERWISE = tuple(arm.name for arm in ENCODINGS if arm.name.startswith(("elsa-int4", "elsa-sketch")))
FAULTY: tuple[LabelFault, ...] = ("shuffled-labels", "same-wrong-label")

TIERS: Mapping[str, RealTier] = {
    tier.name: tier
    for tier in (
        RealTier(
            name="real-tiny",
            cells=(TaskCell("areas", "minilm", ("fedavg", "elsa", "apart-domains"), 20),),
            shape=TaskShape(steps=2, batch=4, commits=1, length=16, alpha=0.1, rows=64),
            domains=("areas",),
            seeds=1,
        ),
        RealTier(
            name="real",
            cells=(
                TaskCell("newsgroups", "minilm", MAIN),
                TaskCell("newsgroups", "minilm", (*MAIN, *PARTS, *OTHERWISE), 20),
                TaskCell("areas", "minilm", (*MAIN, "elsa-int4", "apart-domains", "apart-random")),
                TaskCell("newsgroups", "minilm", MAIN, 40),
                TaskCell("newsgroups", "decoder", SHORT),
                TaskCell("genres", "minilm", SHORT),
                *(TaskCell("newsgroups", "minilm", ("fedavg", "elsa"), 40, fault) for fault in FAULTY),
            ),
            shape=TaskShape(steps=6, commits=4, length=48, alpha=0.1, rows=600),
            domains=("areas",),
            seeds=3,
        ),
    )
}


@dataclass(frozen=True)
class Known:
    """What runs depend on besides the plan.

    Attributes:
        data: digest of each task.
        bases: digest of each model's weights.
        tokens_per_s: of the cost model, by model.
    """

    data: Mapping[str, str]
    bases: Mapping[str, str]
    tokens_per_s: Mapping[str, float]


@dataclass(frozen=True)
class _Maker:
    """Makes the runs of a cell."""

    tier: RealTier
    known: Known
    cell: TaskCell

    def job(self, arm: str, seed: int, lr: float) -> TaskJob:
        cell, known = self.cell, self.known
        return TaskJob(
            task=cell.task,
            model=cell.model,
            arm=arm,
            unreliable=cell.unreliable,
            seed=seed,
            shape=self.tier.shape_of(cell.task),
            data=known.data[cell.task],
            base=known.bases[cell.model],
            tokens_per_s=known.tokens_per_s[cell.model],
            fault=cell.fault,
            lr=lr,
        )


def rate_trials(tier: RealTier, known: Known) -> list[TaskJob]:
    """FedAvg and centralised training with every rate, in every task and model, on dev rows."""
    return [
        _Maker(tier, known, TaskCell(task, model, ())).job(arm, DEV_SEED, lr)
        for task, model in tier.bases
        for arm in ("fedavg", "centralised")
        for lr in RATES
    ]


def mu_trials(tier: RealTier, known: Known, rates: Mapping[str, Mapping[str, float]]) -> list[TaskJob]:
    """FedProx with every μ in the first cell's task and model, on dev rows."""
    maker = _Maker(tier, known, replace(tier.cells[0], unreliable=0))
    lr = rates["/".join(maker.cell.base)]["federated"]
    return [maker.job(arm, DEV_SEED, lr) for arm in PROXIMAL]


def best(lines: Iterable[Line]) -> Line:
    """The trial with the best accuracy; of equals the one with the least loss."""
    return min(lines, key=lambda line: (-line["accuracy"], line["loss"]))


def rates_of(jobs: Sequence[TaskJob], lines: Mapping[str, Line]) -> dict[str, dict[str, float]]:
    """The rates that trials chose, by `TASK/MODEL`, for `federated` and for `centralised`.

    Raises:
        ConfigError: a trial has no figures yet.
    """
    waited = [job.name for job in jobs if job.key not in lines]
    if waited:
        raise ConfigError(
            f"{len(waited)} trials have no figures yet, the first is {waited[0]}: run `trials` first"
        )
    found: dict[str, dict[str, float]] = {}
    for job in jobs:
        if job.arm in ("fedavg", "centralised"):
            kind = "centralised" if job.arm == "centralised" else "federated"
            mine = [one for one in jobs if (one.task, one.model, one.arm) == (job.task, job.model, job.arm)]
            chosen = best(lines[one.key] for one in mine)
            found.setdefault(f"{job.task}/{job.model}", {})[kind] = chosen["lr"]
    return found


def reported(tier: RealTier, known: Known, chosen: Mapping[str, Any]) -> Iterator[TaskJob]:
    """Every reported run, seed by seed, so that whole cells are there first.

    Args:
        tier: the size.
        known: what runs depend on.
        chosen: `rates` and `fedprox`, as trials chose them.
    """
    for seed in range(1, tier.seeds + 1):
        for cell in tier.cells:
            maker = _Maker(tier, known, cell)
            rates = chosen["rates"]["/".join(cell.base)]
            for name in cell.arms:
                arm = chosen["fedprox"] if name == "fedprox" else name
                centralised = BY_NAME[arm].kind is TaskArmKind.CENTRALISED
                lr = rates["centralised" if centralised else "federated"]
                yield maker.job(arm, seed, lr)
