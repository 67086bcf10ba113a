"""The search for a regime in which arms part, on dev seeds and dev text alone: nothing here is reported.

The arms are those of the contest (`bench.contest.arms`), run by its own code: centralised, local only, and FedAvg with
a short, a middle and a long interval. `plan.json` says the sizes. A run that has a line in the results is not repeated.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench.contest.arms import Knobs
from bench.contest.cells import Cell
from bench.contest.data import SPLITS, Corpus, File
from bench.contest.learner import SharedLearner
from bench.contest.plan import Job, Shape
from bench.contest.runs import run_job
from bench.domains.documents import DOMAINS, LARGEST
from bench.domains.prepare import Split, rank, texts
from bench.harness.results import Results, read_json
from bench.harness.tables import markdown, percent
from echelon.errors import ConfigError

APART = 0.05
"""What local training must lose against centralised training at least, as a share of its loss."""


@dataclass(frozen=True)
class Plan:
    """Sizes of the search; the fields of `plan.json`.

    Attributes:
        boundaries: numbers of boundaries; each boundary has a domain of its own, or a mixture of these domains.
        characters: training text of each domain that is used; None: all of it. The less it is, the sooner a boundary
            that stays alone knows it by heart.
        devices: of each boundary.
        dev_seeds: every run is made with each.
        eval_tokens: dev tokens of each domain.
        intervals: H of FedAvg, local steps per update.
        length, batch, lr, rank: of local training and of the adapter.
        piece: characters of a piece that training text is dealt in: a mixture needs several pieces of each domain.
        partitions: how domains are dealt.
        points: of a curve.
        seconds_per_token: of the cost model; no loss depends on it in these arms.
        tokens_of_each_boundary: the budget of a run is this times the boundaries.
    """

    boundaries: tuple[int, ...]
    characters: int | None
    devices: int
    dev_seeds: tuple[int, ...]
    eval_tokens: int
    intervals: tuple[int, ...]
    length: int
    batch: int
    lr: float
    rank: int
    piece: int
    partitions: tuple[str, ...]
    points: int
    seconds_per_token: float
    tokens_of_each_boundary: int


def load_plan(path: Path) -> Plan:
    """The plan of a file.

    Raises:
        ConfigError: the file is not there, or has other fields.
    """
    try:
        return Plan(**_fields(read_json(path, "the plan")))
    except TypeError as error:
        raise ConfigError(f"{path} has other fields than a plan has: {error}") from error


def load_trials(path: Path, plan: Plan) -> dict[str, Plan]:
    """What a file of trials makes of the plan, by the trial's name: each says what it changes.

    Raises:
        ConfigError: the file is not there, or a trial changes what no plan has.
    """
    trials: dict[str, dict[str, Any]] = read_json(path, "the trials")
    made = {}
    for name, changes in trials.items():
        try:
            made[name] = replace(plan, **_fields(changes))
        except TypeError as error:
            raise ConfigError(f"{path}: {name!r} changes what a plan does not have: {error}") from error
    return made


def _fields(given: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}


def corpus_of(text: Path, count: int, piece: int = LARGEST) -> Corpus:
    """The first `count` domains as the contest's data.

    Args:
        text: a folder that `prepare` made.
        count: how many domains.
        piece: characters of a piece of training text; held-out documents stay whole.

    Raises:
        ConfigError: there are fewer domains, or their text is not there.
    """
    if not 1 <= count <= len(DOMAINS):
        raise ConfigError(f"there are {len(DOMAINS)} domains, not {count}")
    return Corpus(
        {
            split: tuple(
                File(f"{name}/{number:05}", name, one, rank(one).hex())
                for name in list(DOMAINS)[:count]
                for number, one in enumerate(_rows(text, name, split, piece))
            )
            for split in SPLITS
        },
        {},
    )


def _rows(text: Path, name: str, split: Split, piece: int) -> list[str]:
    found = texts(text, name, split)
    if split != "train":
        return found
    return [one[start : start + piece] for one in found for start in range(0, len(one), piece)]


def jobs_of(plan: Plan, model: str, data: Mapping[int, str]) -> list[Job]:
    """Every run, those with few boundaries first.

    Args:
        plan: the sizes.
        model: what runs call it.
        data: digest of the data by number of boundaries.
    """
    shape = Shape(
        model=model,
        rank=plan.rank,
        lr=plan.lr,
        batch=plan.batch,
        length=plan.length,
        characters=plan.characters,
        eval_tokens=plan.eval_tokens,
        points=plan.points,
        speed=1.0,
    )
    average = [Knobs(steps=steps, windows=1, overlap=False) for steps in plan.intervals]
    return [
        Job(
            arm=arm,
            knobs=knobs,
            cell=Cell(partition=partition, boundaries=count, devices=plan.devices),
            seed=seed,
            tokens=plan.tokens_of_each_boundary * count,
            part="dev",
            shape=shape,
            data=data[count],
            cost=(plan.seconds_per_token, plan.seconds_per_token / 3),
        )
        for count in plan.boundaries
        for partition in plan.partitions
        for seed in plan.dev_seeds
        for arm, knobs in [
            ("centralised", Knobs()),
            ("local", Knobs()),
            *(("fedavg", one) for one in average),
        ]
    ]


def search(
    plan: Plan,
    text: Path,
    model: str,
    *,
    base: Path | None,
    folder: Path,
    results: Results,
    say: Callable[[str], None],
) -> list[Job]:
    """Run every job that has no line yet, each line written as it comes; all jobs.

    Args:
        plan: the sizes.
        text: a folder that `prepare` made.
        model: what runs call the model; results are found again by it.
        base: the model's folder, linked under that name; None: it is a shipped model's name.
        folder: where rows for the runs are written.
        results: the lines.
        say: told how it goes.

    Raises:
        ConfigError: text or model is not there.
        EchelonError: a run failed.
    """
    corpora = {count: corpus_of(text, count, plan.piece) for count in plan.boundaries}
    jobs = jobs_of(plan, model, {count: corpus.digest for count, corpus in corpora.items()})
    target = None if base is None else base.absolute()  # of the working directory that is the caller's
    learner: SharedLearner | None = None
    last: str | None = None
    for job in jobs:
        if job.key in results:
            continue
        if job.data != last:
            learner, last = None, job.data  # a learner keeps its slices: other domains need another one
        with _inside(folder / job.data[:12]) as here:
            if target is not None and not (here / model).exists():
                (here / model).symlink_to(target)
            line, learner = run_job(job, corpora[job.cell.boundaries], Path(), learner)
        results.append({**line, "shape": asdict(job.shape), "piece": plan.piece})
        say(f"{words(job)}: {line['final']['loss']:.4f}")
    return jobs


@contextmanager
def _inside(folder: Path) -> Iterator[Path]:
    """The working directory for a while: a row's id has its file's path in it, as the run file names it."""
    folder.mkdir(parents=True, exist_ok=True)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield Path.cwd()
    finally:
        os.chdir(before)


def words(job: Job) -> str:
    """A run in short."""
    arm = f"fedavg H={job.knobs.steps}" if job.arm == "fedavg" else job.arm
    return f"{job.cell.boundaries} boundaries, {job.cell.partition}, {arm}, seed {job.seed}"


def parted(jobs: Sequence[Job], results: Results) -> list[dict[str, Any]]:
    """How far arms part in each condition whose runs are all there; JSON.

    `local` is what local training loses against centralised training, `longest` what FedAvg loses at its longest
    interval against its best, both as a share of the loss, means over the seeds; `apart` whether local training
    loses `APART` at least.
    """
    rows = []
    for count, partition in dict.fromkeys((job.cell.boundaries, job.cell.partition) for job in jobs):
        mine = [job for job in jobs if (job.cell.boundaries, job.cell.partition) == (count, partition)]
        if any(job.key not in results for job in mine):
            continue
        loss: dict[tuple[str, int], list[float]] = {}
        for job in mine:
            found = results.lines[job.key]["final"]["loss"]
            loss.setdefault((job.arm, job.knobs.steps if job.arm == "fedavg" else 0), []).append(found)
        mean = {key: sum(values) / len(values) for key, values in loss.items()}
        average = {steps: value for (arm, steps), value in mean.items() if arm == "fedavg"}
        local = mean["local", 0] / mean["centralised", 0] - 1
        rows.append(
            {
                "boundaries": count,
                "partition": partition,
                "centralised": round(mean["centralised", 0], 4),
                "local_only": round(mean["local", 0], 4),
                "fedavg": {str(steps): round(value, 4) for steps, value in sorted(average.items())},
                "local": round(local, 5),
                "longest": round(average[max(average)] / min(average.values()) - 1, 5),
                "apart": local >= APART,
            }
        )
    return rows


def as_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The conditions as a table in Markdown."""
    head = [
        "condition",
        "centralised",
        "local only",
        "against centralised",
        "FedAvg, by H",
        "longest H against best",
    ]
    return markdown(
        head,
        [
            [
                f"{row['boundaries']} boundaries, {row['partition']}",
                f"{row['centralised']:.4f}",
                f"{row['local_only']:.4f}",
                percent(row["local"]),
                ", ".join(f"{steps}: {value:.4f}" for steps, value in row["fedavg"].items()),
                percent(row["longest"]),
            ]
            for row in rows
        ],
    )
