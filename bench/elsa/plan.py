"""Which runs there are: tasks, models, arms, unreliable devices and seeds, fixed before anything is run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from bench.elsa.data import LabelFault

HERE = Path(__file__).resolve().parent
BOUNDARIES = ("east", "west")
EDGES = 2
"""Edges of a boundary."""
PROBES = 8
"""Public probes that a device of ELSA is looked at with after every job."""
PERTURBATION = 64
"""Rank of SS-OP. It costs what any rank costs; docs/split.md says that it hides nothing below the model's width."""


class TaskArmKind(StrEnum):
    """How an arm is run."""

    CENTRALISED = "centralised"
    FEDERATED = "federated"
    CLUSTERS = "clusters"
    SPLIT = "split"
    APART = "apart"
    """Clusters that never meet: each has a federation and an adapter of its own."""


WHOLE_WIDTH = -1


@dataclass(frozen=True)
class TaskSplit:
    """How devices and edges train together.

    Attributes:
        encoding: of all four streams.
        perturbation: rank of SS-OP; 0: none, `WHOLE_WIDTH`: the model's width.
        probes: after every job; 0: none, and with them no fingerprints, no clusters and no trust.
        clusters: whether devices are clustered by fingerprints.
        admission: whether devices that are not trusted are kept out.
        planned: whether cuts are planned from profiles; otherwise everybody has the first and the last block.
        far: seconds each way that the first of three edges is farther away; 0: there are two, equally near.
        distances: whether devices measure their round trips to edges.
        feedback: whether what gradients lost is added to those of the next step.
    """

    encoding: str = "bf16"
    perturbation: int = 0
    probes: int = 0
    clusters: bool = True
    admission: bool = True
    planned: bool = False
    far: float = 0.0
    distances: bool = False
    feedback: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """All of it; what came later only where it is used, so that the figures made before keep their keys."""
        later = {"far": self.far, "distances": self.far, "feedback": self.feedback}
        return {key: value for key, value in asdict(self).items() if later.get(key, True)}


ELSA = TaskSplit("int8", PERTURBATION, PROBES, planned=True)


@dataclass(frozen=True)
class TaskArm:
    """One arm.

    Attributes:
        name: in results.
        title: in tables.
        kind: how it is run.
        split: how devices and edges share the work, if they do.
        mu: of the proximal objective.
        windows: that a boundary merges by itself before all meet.
        clusters: of `APART`: `domains`, which nobody is told in a deployment, or drawn at `random`.
    """

    name: str
    title: str
    kind: TaskArmKind
    split: TaskSplit | None = None
    mu: float = 0.0
    windows: int = 1
    clusters: str = ""

    @property
    def fields(self) -> dict[str, Any]:
        """What came later than the first figures, where it is used."""
        later = {"mu": self.mu, "clusters": self.clusters}
        if self.kind is TaskArmKind.FEDERATED and self.windows > 1:
            later["windows"] = self.windows
        return {key: value for key, value in later.items() if value}


ARMS: tuple[TaskArm, ...] = (
    TaskArm("centralised", "Centralised LoRA", TaskArmKind.CENTRALISED),
    TaskArm("fedavg", "FedAvg", TaskArmKind.FEDERATED),
    TaskArm("fedavg-random", "FedAvg, random clusters", TaskArmKind.CLUSTERS, windows=2),
    TaskArm("split", "Split, uncompressed (bf16)", TaskArmKind.SPLIT, TaskSplit()),
    TaskArm("elsa", "ELSA", TaskArmKind.SPLIT, ELSA),
)
ABLATIONS: tuple[TaskArm, ...] = (
    TaskArm("elsa-clusters", "without clusters", TaskArmKind.SPLIT, replace(ELSA, clusters=False)),
    TaskArm("elsa-trust", "without trust", TaskArmKind.SPLIT, replace(ELSA, admission=False)),
    TaskArm(
        "elsa-compression", "without compression (bf16)", TaskArmKind.SPLIT, replace(ELSA, encoding="bf16")
    ),
    TaskArm("elsa-perturbation", "without SS-OP", TaskArmKind.SPLIT, replace(ELSA, perturbation=0)),
    TaskArm("elsa-plan", "without planned cuts", TaskArmKind.SPLIT, replace(ELSA, planned=False)),
)
FAR: tuple[TaskArm, ...] = (
    TaskArm(
        "far-measured", "ELSA, distances measured", TaskArmKind.SPLIT, replace(ELSA, far=0.1, distances=True)
    ),
    TaskArm("far-unknown", "without distances", TaskArmKind.SPLIT, replace(ELSA, far=0.1)),
)
"""One of three edges is far away, and each takes as many devices as it would if there were two."""
ENCODINGS: tuple[TaskArm, ...] = (
    TaskArm("elsa-error", "error:0.05", TaskArmKind.SPLIT, replace(ELSA, encoding="error:0.05")),
    TaskArm("elsa-int4", "int4", TaskArmKind.SPLIT, replace(ELSA, encoding="int4")),
    TaskArm("elsa-int4-feedback", "int4, feedback", TaskArmKind.SPLIT, replace(ELSA, encoding="int4", feedback=True)),
    TaskArm("elsa-sketch", "sketch:0.5", TaskArmKind.SPLIT, replace(ELSA, encoding="sketch:0.5")),
    TaskArm("elsa-sketch-feedback", "sketch:0.5, feedback", TaskArmKind.SPLIT,
        replace(ELSA, encoding="sketch:0.5", feedback=True)),
)  # fmt: skip
"""ELSA with tensors that are encoded otherwise."""
RIVALS: tuple[TaskArm, ...] = (
    *(TaskArm(f"fedprox-{mu:g}", "FedProx", TaskArmKind.FEDERATED, mu=mu) for mu in (0.001, 0.01, 0.1)),
    TaskArm("hierarchical", "Hierarchical FedAvg", TaskArmKind.FEDERATED, windows=2),
    TaskArm("splitlora", "SplitLoRA-like (exact tensors)", TaskArmKind.SPLIT, TaskSplit("exact")),
)
"""Further arms of the tasks of real text. `splitlora` is split federated learning with LoRA (arXiv 2407.00952): one cut
for everybody, tensors as they are, and the mean of the devices' and the edges' adapters."""
CLUSTERED: tuple[TaskArm, ...] = (
    TaskArm("apart-domains", "an adapter for each domain", TaskArmKind.APART, clusters="domains"),
    TaskArm("apart-random", "an adapter for each random cluster", TaskArmKind.APART, clusters="random"),
)
"""Whether several adapters are worth having where domains differ: with the true clusters, and with wrong ones."""
BY_NAME: Mapping[str, TaskArm] = {
    arm.name: arm for arm in (*ARMS, *ABLATIONS, *FAR, *ENCODINGS, *RIVALS, *CLUSTERED)
}


@dataclass(frozen=True)
class DeviceClass:
    """A class of devices: MiB that training may use, GFLOP/s, and how many of a boundary are of it."""

    name: str
    memory: int
    gflops: float
    count: int


CLASSES = (
    DeviceClass("sensor", 253, 1.0, 2),
    DeviceClass("phone", 253, 2.0, 2),
    DeviceClass("tablet", 253, 4.0, 2),
)
DEVICES = sum(one.count for one in CLASSES)
"""Devices of a boundary."""
EDGE_GFLOPS = 40.0
CORE_GFLOPS = 16.0
"""What the core that the cost model is measured on counts as: a device's speed is its class's share of that."""
KERNEL_US = 1000
"""Microseconds that a weak device takes to start one operation."""
UPLINK, DOWNLINK, ROUND_TRIP_MS = 20, 20, 20
"""Mbit/s and milliseconds between device and edge."""


@dataclass(frozen=True)
class TaskShape:
    """Training: the same for every arm.

    Attributes:
        rank: of LoRA.
        scale: alpha over rank. The head, which is trained whole, needs a lower rate than LoRA with a scale of 2.
        steps: H, local steps of one window.
        batch: rows of a step.
        commits: rounds in which all boundaries meet.
        length: most tokens of a row.
        alpha: of the Dirichlet draw of each class's shares.
        rows: test rows; None: all.
        domains: every device has one domain; nothing is drawn by classes then.
    """

    rank: int = 4
    scale: int = 8
    steps: int = 8
    batch: int = 8
    commits: int = 4
    length: int = 48
    alpha: float = 0.5
    rows: int | None = None
    domains: bool = False

    @property
    def fields(self) -> dict[str, Any]:
        """All of it; what came later only where it is used."""
        return {key: value for key, value in asdict(self).items() if key != "domains" or value}

    @property
    def trained(self) -> int:
        """Rows that are trained on if everybody takes part, an even number of windows."""
        return len(BOUNDARIES) * DEVICES * self.commits * self.steps * self.batch


@dataclass(frozen=True)
class TaskModel:
    """A base.

    Attributes:
        name: in results.
        title: in tables.
        place: what a run file calls it; of those of real text it is known when they are there.
        lr: for each task.
        centralised: the same for centralised training.
        devices: who trains it.
        blocks: of the model.
        block: parameters of one of them.
        whole_rotations: whether rotations are over its whole width; if not, they have the arm's rank.
    """

    name: str
    title: str
    place: str
    lr: Mapping[str, float]
    centralised: Mapping[str, float]
    devices: tuple[DeviceClass, ...] = CLASSES
    blocks: int = 0
    block: int = 0
    whole_rotations: bool = False

    def rate(self, task: str, kind: TaskArmKind) -> float:
        """The learning rate of an arm of that kind."""
        return (self.centralised if kind is TaskArmKind.CENTRALISED else self.lr)[task]


MODELS: Mapping[str, TaskModel] = {
    "llama": TaskModel(
        "llama",
        "Llama-like, 1.07M parameters",
        "echelon:tiny",
        {"kind": 1e-3, "package": 4e-3},
        {"kind": 1e-3, "package": 1e-3},
    ),
    "bert": TaskModel(
        "bert",
        "BERT-like, 0.58M parameters",
        "bert",
        {"kind": 3e-3, "package": 8e-3},
        {"kind": 3e-3, "package": 3e-3},
    ),
}
REAL_CLASSES = (
    DeviceClass("sensor", 420, 1.0, 2),
    DeviceClass("phone", 460, 2.0, 2),
    DeviceClass("tablet", 560, 4.0, 2),
)
"""Devices of the tasks of real text."""
REAL_MODELS: Mapping[str, TaskModel] = {
    "minilm": TaskModel(
        "minilm",
        "MiniLM-L6 (BERT, 22.7M parameters)",
        "",
        {},
        {},
        devices=REAL_CLASSES,
        blocks=6,
        block=1_774_464,
        whole_rotations=True,
    ),
    "decoder": TaskModel(
        "decoder",
        "the healed decoder (18.9M parameters)",
        "",
        {},
        {},
        devices=REAL_CLASSES,
        blocks=4,
        block=3_540_096,
        whole_rotations=True,
    ),
}
"""Bases of the tasks of real text. Their rates are read off trials: `bench.elsa.real_plan`."""


@dataclass(frozen=True)
class TaskJob:
    """One run. Everything that its figures depend on is in here, or behind one of the digests."""

    task: str
    model: str
    arm: str
    unreliable: int
    """Percent of devices whose labels say nothing."""
    seed: int
    shape: TaskShape
    data: str
    """Digest of the task's snippets."""
    base: str
    """Digest of the base's weights."""
    tokens_per_s: float
    """Of the cost model: what one core trains."""
    fault: LabelFault = "random-labels"
    """What unreliable devices do."""
    lr: float | None = None
    """In place of the model's."""

    @property
    def rate(self) -> float:
        """The learning rate."""
        return MODELS[self.model].rate(self.task, BY_NAME[self.arm].kind) if self.lr is None else self.lr

    @property
    def base_model(self) -> TaskModel:
        """The model, of whichever tasks."""
        return REAL_MODELS.get(self.model) or MODELS[self.model]

    @property
    def split(self) -> TaskSplit | None:
        """How its devices train with edges.

        On real text rotations are over the whole width: below it they hide nothing.
        """
        split = BY_NAME[self.arm].split
        if split is None or not split.perturbation or not self.base_model.whole_rotations:
            return split
        return replace(split, perturbation=WHOLE_WIDTH)

    @property
    def fields(self) -> dict[str, Any]:
        """All of it, with what the arm and the model stand for; JSON."""
        arm = BY_NAME[self.arm]
        plain = asdict(self)
        if self.fault == "random-labels":
            del plain["fault"]
        return {
            **plain,
            "shape": self.shape.fields,
            "kind": arm.kind.value,
            **arm.fields,
            "split": None if self.split is None else self.split.fields,
            "lr": self.rate,
            "devices": [asdict(one) for one in self.base_model.devices],
            "edges": [EDGES, EDGE_GFLOPS],
            "links": [UPLINK, DOWNLINK, ROUND_TRIP_MS, KERNEL_US, CORE_GFLOPS],
        }

    @property
    def key(self) -> str:
        """SHA-256 of all of it, in hex: what a stored figure is found again by."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """In short, for people."""
        fault = "" if self.fault == "random-labels" else f" {self.fault}"
        return f"{self.task} {self.model} {self.arm} {self.unreliable} %{fault} seed {self.seed}"


@dataclass(frozen=True)
class TaskTier:
    """A size of the benchmark."""

    name: str
    about: str
    shape: TaskShape
    tasks: tuple[str, ...]
    models: tuple[str, ...]
    arms: tuple[str, ...]
    unreliable: tuple[int, ...]
    seeds: int
    ablated: tuple[str, str, int] | None
    """Task, model and percent of unreliable devices of the ablations and encodings."""
    far: TaskShape | None = None
    """Training of the runs with a far edge, in the ablations' cell; None: there are none."""
    shapes: Mapping[str, TaskShape] = field(default_factory=dict)
    """Tasks whose training is another than `shape`."""
    most: int | None = None
    """Snippets of one class, in place of what the tasks have."""


TIERS: Mapping[str, TaskTier] = {
    tier.name: tier
    for tier in (
        TaskTier(
            name="tiny",
            about="the mechanics: two arms of one task, a few steps, 128 test rows; no claim",
            shape=TaskShape(steps=2, batch=4, commits=1, rows=128),
            tasks=("kind",),
            models=("bert",),
            arms=("split", "elsa"),
            unreliable=(20,),
            seeds=1,
            ablated=None,
            most=250,
        ),
        TaskTier(
            name="full",
            about="two tasks, two models, five arms, three paired seeds, five ablations, and five encodings",
            shape=TaskShape(),
            tasks=("kind", "package"),
            models=("bert", "llama"),
            arms=tuple(arm.name for arm in ARMS),
            unreliable=(0, 20),
            seeds=3,
            ablated=("kind", "bert", 20),
            # Devices have to measure for a while before they go by it.
            far=TaskShape(commits=8),
            # Twenty classes take more steps to be told apart at all.
            shapes={"package": TaskShape(commits=8)},
        ),
    )
}


def jobs_of(
    tier: TaskTier, data: Mapping[str, str], bases: Mapping[str, str], rates: Mapping[str, float]
) -> list[TaskJob]:
    """Every run in the order in which they are run, so that what matters most is there first.

    Task by task and seed by seed; within a seed reliable devices before unreliable ones. The ablations follow the runs
    of their task.
    """

    def job(
        *, task: str, model: str, arm: str, percent: int, seed: int, shape: TaskShape | None = None
    ) -> TaskJob:
        shape = shape or tier.shapes.get(task, tier.shape)
        return TaskJob(
            task=task,
            model=model,
            arm=arm,
            unreliable=percent,
            seed=seed,
            shape=shape,
            data=data[task],
            base=bases[model],
            tokens_per_s=rates[model],
        )

    seeds = range(1, tier.seeds + 1)
    jobs: list[TaskJob] = []
    for task in tier.tasks:
        jobs += [
            job(task=task, model=model, arm=arm, percent=percent, seed=seed)
            for seed in seeds
            for percent in tier.unreliable
            for model in tier.models
            for arm in tier.arms
        ]
        if tier.ablated is not None and tier.ablated[0] == task:
            _, model, percent = tier.ablated
            further = (*ABLATIONS, *ENCODINGS)
            jobs += [
                job(task=task, model=model, arm=arm.name, percent=percent, seed=seed)
                for seed in seeds
                for arm in further
            ]
            if tier.far is not None:
                jobs += [
                    job(task=task, model=model, arm=arm.name, percent=percent, seed=seed, shape=tier.far)
                    for seed in seeds
                    for arm in FAR
                ]
    return jobs
