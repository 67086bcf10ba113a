"""One run of the benchmark: a whole federation on the virtual clock, or a bare loop, and the figures that it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.elsa.data import Snippet, Task, write_rows
from bench.elsa.fleet import TaskDevice, apart, clusters, domain_of, fleet, tokens_of, write_boundary
from bench.elsa.plan import (
    BOUNDARIES,
    BY_NAME,
    TaskArmKind,
    TaskJob,
)
from bench.elsa.run_files import HELD_OUT, base_at, model_settings, place_of, settings_of, train_settings
from echelon.compute.planning import planned
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings
from echelon.config.training import AdapterSettings, DataSettings, ModelSettings
from echelon.errors import EchelonError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.training.data.encode import encode_rows
from echelon.training.data.rows import longest_first, pad_rows, padding_of
from echelon.training.data.sources import RawDocument
from echelon.training.learner import BoundarySpec, EvalResult, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads, model_path
from echelon.virtual_loop import run_virtual

Line = dict[str, Any]
EVAL_BATCH = 64


class BenchmarkError(EchelonError):
    """A run gave no figures that could be reported."""


def run_job(job: TaskJob, task: Task, folder: Path, place: str | None = None) -> Line:
    """Run it; its line of raw figures.

    Args:
        job: the run.
        task: its snippets.
        folder: where rows for the run are written.
        place: what a run file calls the base; None: as `plan.MODELS` has it.

    Raises:
        BenchmarkError: the data or the base is not the one that the job names, or the audit has findings.
        EchelonError: the run failed.
    """
    limit_threads()
    if task.digest != job.data:
        raise BenchmarkError(f"{job.name}: the snippets are not those of the plan ({task.digest[:12]})")
    model = model_settings(place_of(job.model) if place is None else place, task)
    if base_at(model) != job.base:
        raise BenchmarkError(f"{job.name}: the base's weights are not those of the plan")
    begun, at = time.process_time(), time.monotonic()
    devices = fleet(job, task)
    scratch = folder / job.key
    scratch.mkdir(parents=True, exist_ok=True)
    run = Run(job, task, devices, model)
    # A row's id, by which it is dealt and ordered, has the path of its file in it as the run file names it: relative,
    # so that the same run has the same data wherever its rows lie.
    with contextlib.chdir(scratch):
        outcome = _trained(run)
    shutil.rmtree(scratch)
    return {
        "key": job.key,
        **job.fields,
        **outcome.facts,
        "unreliable_devices": [one.name for one in devices if not one.reliable],
        **_scores(run, outcome),
        "majority": _majority(task, job.shape.rows),
        "adapter_sha256": outcome.digest,
        "cpu_s": round(time.process_time() - begun, 2),
        "wall_s": round(time.monotonic() - at, 1),
    }


def _majority(task: Task, rows: int | None) -> float:
    """Accuracy of always giving the class that training rows have most of."""
    commonest = Counter(one.label for one in task.snippets["train"]).most_common(1)[0][0]
    tested = task.snippets["test"][:rows]
    return round(sum(one.label == commonest for one in tested) / len(tested), 4)


@dataclass(frozen=True)
class Run:
    """A run: what is trained on what, by whom."""

    job: TaskJob
    task: Task
    devices: Sequence[TaskDevice]
    model: ModelSettings


@dataclass(frozen=True)
class Trained:
    """What came of it.

    Attributes:
        learner: that can score it.
        facts: of the line.
        adapters: one for all devices, or one for each of these groups.
    """

    learner: TorchLearner
    facts: Line
    adapters: Sequence[tuple[Sequence[TaskDevice], Vector]]

    @property
    def digest(self) -> str:
        """SHA-256 of the adapters one after another, in hex."""
        return hashlib.sha256(b"".join(one.astype("<f4").tobytes() for _, one in self.adapters)).hexdigest()


def _trained(run: Run) -> Trained:
    kind = BY_NAME[run.job.arm].kind
    if kind is TaskArmKind.CENTRALISED:
        return _bare(run)
    if kind is TaskArmKind.APART:
        return _apart(run)
    if kind is TaskArmKind.CLUSTERS:
        return _federated(
            run, {f"cluster-{k}": members for k, members in enumerate(clusters(run.devices, run.job.seed))}
        )
    return _federated(
        run, {name: [one for one in run.devices if one.name.startswith(name)] for name in BOUNDARIES}
    )


def _scores(run: Run, outcome: Trained) -> Line:
    """Accuracy and loss on test rows; where devices have domains, what a device gets on its own domain's rows, too."""
    job, task, learner = run.job, run.task, outcome.learner

    def score(weights: Vector, snippets: Sequence[Snippet]) -> EvalResult:
        raw = [RawDocument(f"{one.path}:{one.line}", "test", one.text, one.label) for one in snippets]
        encoded = longest_first(encode_rows(raw, learner.tokenizer, task.labels, job.shape.length))
        return learner.score(
            pad_rows(encoded, job.shape.length, padding_of(learner.tokenizer)), weights, EVAL_BATCH
        )

    if not job.shape.domains:
        (_, weights) = outcome.adapters[0]
        after = score(weights, task.snippets["test"][: job.shape.rows])
        return {"rows": after.tokens, "accuracy": after.accuracy, "loss": round(after.loss, 5)}
    every = task.snippets["test"]
    names = sorted({one.domain for one in run.task.snippets["train"]})
    most = None if job.shape.rows is None else job.shape.rows // len(names)
    by_domain = {name: [one for one in every if one.domain == name][:most] for name in names}
    missing = [name for name, rows in by_domain.items() if not rows]
    if missing:
        raise BenchmarkError(
            f"{job.name}: no row to score has the domain {missing[0]!r} that devices train on"
        )
    # Of all devices: what each is told right of its own domain by the adapter that it has.
    told: list[tuple[float, float]] = []
    for members, weights in outcome.adapters:
        wanted = Counter(domain_of(one) for one in members)
        for domain, count in sorted(wanted.items()):
            after = score(weights, by_domain[domain])
            told += [(float(after.accuracy or 0.0), after.loss)] * count
    accuracies, losses = zip(*told, strict=True)
    return {
        "rows": sum(map(len, by_domain.values())),
        "accuracy": sum(accuracies) / len(told),
        "loss": round(sum(losses) / len(told), 5),
    }


def _federated(run: Run, groups: Mapping[str, Sequence[TaskDevice]]) -> Trained:
    """One federation of these boundaries."""
    job, devices = run.job, [one for members in groups.values() for one in members]
    tokenizer = AutoTokenizer.from_pretrained(model_path(run.model))
    sizes = tokens_of(devices, run.task, job.shape.length, tokenizer)
    ordered = {
        name: write_boundary(members, sizes, Path(f"{name}.jsonl")) for name, members in groups.items()
    }
    settings = settings_of(job, ordered, run.model)
    learner = TorchLearner(spec_of(settings))
    recorder = Recorder({one.name: len(one.device_list()) for one in settings.boundaries})
    at: list[float] = []
    kept_out: list[dict[str, Any]] = []

    def listen(line: dict[str, Any]) -> None:
        if line["kind"] == "commit":
            at.append(line["t"])
        elif line["kind"] == "standings":
            kept_out.append(
                {key: line[key] for key in ("boundary", "clusters", "trust", "out") if key in line}
            )

    recorder.listeners.append(listen)
    result = run_virtual(Federation(settings, None, recorder, learner=learner).run)
    if not result.audit.ok:
        raise BenchmarkError(f"{job.name}: the audit has findings: {result.audit.findings[0]}")
    summary = result.summary
    facts = {
        "seconds": round(at[-1], 3),
        "tokens": summary["tokens"],
        "commits": summary["commits"],
        "windows": summary["windows"],
        "windows_void": summary["windows_void"],
        "dropouts": summary["dropouts"],
        "jobs": len(recorder.trained),
        "trained": sum(tokens for _, tokens in recorder.trained),
        "split_bytes": summary["split_bytes"],
        "traffic": traffic(result.traffic, [one.name for one in devices]),
        "standings": kept_out,
        "cuts": cuts(settings),
        "settings_sha256": _settings_digest(settings),
        "audit": "ok",
    }
    return Trained(learner, facts, [(devices, result.adapter)])


SUMMED = ("tokens", "commits", "windows", "windows_void", "dropouts", "jobs", "trained")
"""Facts of federations that never meet which are added."""


def _apart(run: Run) -> Trained:
    """A federation for each cluster; they run at the same time, so the slowest one's seconds count."""
    arm = BY_NAME[run.job.arm]
    found = [
        _federated(run, {name: members})
        for name, members in apart(run.devices, arm.clusters, run.job.seed).items()
    ]
    traffics: Counter[str] = Counter()
    for one in found:
        traffics.update(one.facts["traffic"])
    facts = {
        **found[0].facts,
        **{key: sum(one.facts[key] for one in found) for key in SUMMED},
        "seconds": max(one.facts["seconds"] for one in found),
        "traffic": dict(sorted(traffics.items())),
        "settings_sha256": hashlib.sha256(
            "".join(one.facts["settings_sha256"] for one in found).encode()
        ).hexdigest(),
    }
    return Trained(found[0].learner, facts, [pair for one in found for pair in one.adapters])


def cuts(settings: RunSettings) -> dict[str, list[int]]:
    """(p, q, micro-batch) of every class, or of all devices."""
    by_class = {}
    for boundary in planned(settings).boundaries:
        if boundary.split is None:
            continue
        for device in boundary.device_list():
            kind = boundary.split.class_of(device.id)
            cut = [*boundary.split.cut_of(device.id), boundary.split.micro_of(device.id)]
            by_class["all" if kind is None else kind.name] = cut if boundary.split.splits(device.id) else []
    return dict(sorted(by_class.items()))


def _settings_digest(settings: RunSettings) -> str:
    """SHA-256 of the run file, whatever folder the base lies in."""
    plain = settings.model_dump(mode="json")
    plain["model"]["model"] = Path(plain["model"]["model"]).name
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def traffic(amounts: Mapping[str, int], devices: Sequence[str]) -> dict[str, int]:
    """Bytes by who and what: `device TOPIC out`, `edge …`, `aggregator …`, `gate …`, `exchange …`, both directions.

    `total` is what all actors wrote and read together; `device` what devices did.
    """
    sums: Counter[str] = Counter()
    for key, count in amounts.items():
        broker, who, topic, direction = key.split(" ")
        role = "exchange" if broker == "exchange" else "device" if who in devices else who.rpartition(".")[2]
        role = "edge" if role.startswith("edge-") else role
        kind = topic.partition(".")[0] if role == "exchange" else topic
        sums[f"{role} {kind} {direction}"] += count
        sums["total"] += count
        if role == "device":
            sums["device"] += count
    return dict(sorted(sums.items()))


def _bare(run: Run) -> Trained:
    """One loop over all devices' rows, unreliable ones among them, for as many steps as all devices take together.

    It is charged what the devices need together for the tokens, as if the work were split between them at no cost.
    """
    job, devices = run.job, run.devices
    write_rows([(row, "pool") for one in devices for row in one.rows], Path("pool.jsonl"))
    data = DataSettings(
        source="jsonl:pool.jsonl",
        label_field="label",
        domain_field="device",
        validation_fraction=HELD_OUT,
        max_validation_tokens=512,
    )
    learner = TorchLearner(
        LearnerSpec(
            model=run.model,
            adapter=AdapterSettings(rank=job.shape.rank, alpha=job.shape.scale * job.shape.rank),
            train=train_settings(job),
            boundaries=(BoundarySpec(name="pool", devices=("pool",), data=data),),
            seed=job.seed,
            base_seed=job.seed,
        )
    )
    steps = job.shape.trained // job.shape.batch
    weights, state, tokens, done = learner.initial_adapter(), None, 0, 0
    while done < steps:
        take = min(steps - done, max(1, steps // 50))
        result = learner.train(
            TrainJob(
                data="pool",
                base=weights,
                start=weights,
                steps=take,
                mu=0.0,
                progress=done / steps,
                state=state,
            )
        )
        weights, state, tokens, done = result.weights, result.state, tokens + result.tokens, done + take
    facts = {
        "seconds": round(tokens / job.tokens_per_s / sum(one.speed for one in devices), 3),
        "tokens": tokens, "trained": tokens,
        "commits": 0, "windows": 0, "windows_void": 0, "dropouts": 0, "jobs": 0,
        "split_bytes": {}, "traffic": {"device": 0, "total": 0}, "standings": [], "cuts": {},
        "settings_sha256": "", "audit": "none",
    }  # fmt: skip
    return Trained(learner, facts, [(devices, weights)])
