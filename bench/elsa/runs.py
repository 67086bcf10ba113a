"""One run of the benchmark: a whole federation on the virtual clock, or a bare loop, and the figures that it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from bench.elsa.data import Snippet, Task, deal, deal_domains, rank, spoilt, unreliable, write_rows
from bench.elsa.plan import (
    BOUNDARIES,
    BY_NAME,
    CORE_GFLOPS,
    DEVICES,
    DOWNLINK,
    EDGE_GFLOPS,
    EDGES,
    HERE,
    KERNEL_US,
    MODELS,
    ROUND_TRIP_MS,
    UPLINK,
    WHOLE_WIDTH,
    TaskArmKind,
    TaskJob,
)
from echelon.compute.planning import planned
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings, parse
from echelon.config.training import AdapterSettings, DataSettings, ModelSettings, TrainSettings
from echelon.errors import ConfigError, EchelonError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.training.data.encode import encode_rows
from echelon.training.data.rows import longest_first, pad_rows, padding_of
from echelon.training.data.sources import RawDocument
from echelon.training.learner import BoundarySpec, EvalResult, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads, model_config, model_path
from echelon.virtual_loop import run_virtual

Line = dict[str, Any]
HELD_OUT = 1e-3
"""Share of a boundary's rows that the run itself holds out, at least one; the benchmark has its own test rows."""
LEAST = 2
"""Batches of rows that every device has at least."""
WAIT = 20
"""A window waits at most so many times as long as the slowest device would train alone for it."""
EVAL_BATCH = 64
EVAL_COST = 0.4
"""An evaluated token costs so much of a trained one on the virtual clock."""


class BenchmarkError(EchelonError):
    """A run gave no figures that could be reported."""


@dataclass(frozen=True)
class TaskDevice:
    """One device of a run: its name, the rows that it trains on, its class, and whether its labels say anything."""

    name: str
    rows: tuple[Snippet, ...]
    kind: str
    speed: float
    reliable: bool


def place_of(model: str) -> str:
    """What a run file calls the model."""
    place = MODELS[model].place
    return place if ":" in place else str(HERE / place)


def model_settings(place: str, task: Task) -> ModelSettings:
    """The model as a classifier of the task, by what a run file calls it."""
    return ModelSettings(model=place, task="classify", labels=task.labels)


def train_settings(job: TaskJob) -> TrainSettings:
    """Local training, the same for every federated arm."""
    return TrainSettings(
        lr=job.rate,
        schedule="cosine",
        batch_size=job.shape.batch,
        sequence_length=job.shape.length,
    )


def fleet(job: TaskJob, task: Task) -> list[TaskDevice]:
    """Every device of the run: paired seeds give each arm the same devices with the same rows.

    The device classes take turns, so that each boundary has the same number of each; the unreliable devices are a draw.
    """
    count = len(BOUNDARIES) * DEVICES
    if job.shape.domains:
        hands = deal_domains(task.snippets["train"], devices=count, seed=job.seed)
    else:
        hands = deal(
            snippets=task.snippets["train"],
            labels=task.labels,
            devices=count,
            alpha=job.shape.alpha,
            least=LEAST * job.shape.batch,
            seed=job.seed,
        )
    bad = unreliable(count, round(count * job.unreliable / 100), job.seed)
    kinds = [one for one in job.base_model.devices for _ in range(one.count)]
    devices = []
    for number, hand in enumerate(hands):
        boundary, place = divmod(number, DEVICES)
        kind = kinds[place]
        rows = spoilt(hand, job.fault, task.labels, seed=job.seed, device=number) if number in bad else hand
        devices.append(
            TaskDevice(
                f"{BOUNDARIES[boundary]}-{place}",
                tuple(rows),
                kind.name,
                kind.gflops / CORE_GFLOPS,
                number not in bad,
            )
        )
    return devices


def clusters(devices: Sequence[TaskDevice], seed: int) -> list[list[TaskDevice]]:
    """The devices dealt at random to as many clusters as there are edges."""
    order = sorted(devices, key=lambda one: rank("elsa clusters", seed, one.name))
    count = len(BOUNDARIES) * EDGES
    return [order[number::count] for number in range(count)]


def domain_of(device: TaskDevice) -> str:
    """The domain of a device whose rows have one."""
    return device.rows[0].domain


def apart(devices: Sequence[TaskDevice], how: str, seed: int) -> dict[str, list[TaskDevice]]:
    """Devices whose adapters are merged with each other and no others': those of a domain, or drawn at random."""
    by_domain: dict[str, list[TaskDevice]] = {}
    for one in devices:
        by_domain.setdefault(domain_of(one), []).append(one)
    domains = [members for _, members in sorted(by_domain.items())]
    if how == "domains":
        return {f"cluster-{k}": members for k, members in enumerate(domains)}
    order = sorted(devices, key=lambda one: rank("elsa clusters", seed, one.name))
    ends = [0]
    for members in domains:
        ends.append(ends[-1] + len(members))
    return {f"cluster-{k}": order[a:b] for k, (a, b) in enumerate(itertools.pairwise(ends))}


# ---- data ----------------------------------------------------------------------------------------------------


def write_boundary(
    devices: Sequence[TaskDevice], learner_tokens: Mapping[str, int], path: Path
) -> list[TaskDevice]:
    """The rows of a boundary's devices; the devices in the order in which `by-domain` deals the rows to them.

    That is by tokens, the most first; each device's rows are a domain of their own.
    """
    ordered = sorted(devices, key=lambda one: (-learner_tokens[one.name], one.name))
    write_rows([(row, one.name) for one in ordered for row in one.rows], path)
    return ordered


def tokens_of(devices: Sequence[TaskDevice], task: Task, length: int, tokenizer: Any) -> dict[str, int]:
    """Tokens of each device's rows, as the learner counts them."""
    tokens = {}
    for one in devices:
        raw = [RawDocument(str(k), one.name, row.text, row.label) for k, row in enumerate(one.rows)]
        tokens[one.name] = sum(document.size for document in encode_rows(raw, tokenizer, task.labels, length))
    return tokens


# ---- run files -----------------------------------------------------------------------------------------------


def settings_of(
    job: TaskJob, groups: Mapping[str, Sequence[TaskDevice]], model: ModelSettings
) -> RunSettings:
    """The run file of a job, given the devices of each boundary in order; their rows are beside it."""
    shape, arm = job.shape, BY_NAME[job.arm]
    cost = 1 / job.tokens_per_s
    slowest = (
        shape.steps
        * shape.batch
        * shape.length
        * cost
        / min(one.gflops / CORE_GFLOPS for one in job.base_model.devices)
    )
    windows = arm.windows
    boundaries = []
    for name, devices in groups.items():
        fields: dict[str, Any] = {
            "name": name,
            "devices": [{"id": one.name, "speed": one.speed} for one in devices],
            "data": {
                "source": f"jsonl:{name}.jsonl",
                "label_field": "label",
                "domain_field": "device",
                "partition": "by-domain",
                "validation_fraction": HELD_OUT,
                "max_validation_tokens": 512,
            },
        }
        if arm.kind is TaskArmKind.SPLIT:
            fields["split"] = split_fields(job, devices, int(model_config(model).hidden_size))
        boundaries.append(fields)
    link = {"latency": ROUND_TRIP_MS / 4000, "bandwidth": UPLINK * 1e6 / 8}
    return parse(
        {
            "name": "elsa-benchmark",
            "clock": "virtual",
            "seed": job.seed,
            "model": model.model_dump(),
            "adapter": {"rank": shape.rank, "alpha": shape.scale * shape.rank},
            "training": train_settings(job).model_dump(),
            "boundaries": boundaries,
            "secure": {"k_min": 2, "bucket_tokens": shape.batch * shape.length, "n_max": 64},
            # Nobody trains while others are waited for: every arm has the same number of windows.
            "window": {"deadline": WAIT * slowest, "patience": WAIT * slowest, "round_timeout": 10.0},
            "sync": {
                "steps": shape.steps, "windows": windows, "overlap": False, "report_loss": False, "mu": arm.mu,
                "deadline": WAIT * windows * slowest + 60,
            },
            "budget": {"commits": max(1, shape.commits // windows)},
            "cost": {"seconds_per_token": cost, "seconds_per_eval_token": EVAL_COST * cost},
            "simulation": {"boundary_link": link, "exchange_link": {"latency": 0.05, "bandwidth": 1.25e7}},
        },
        job.name,
    )  # fmt: skip


def split_fields(job: TaskJob, devices: Sequence[TaskDevice], width: int) -> dict[str, Any]:
    """The `split` block of a boundary.

    Args:
        job: the run.
        devices: of the boundary.
        width: hidden size of the model.
    """
    arm = job.split
    assert arm is not None
    edges: list[dict[str, Any]] = [
        {"id": f"edge-{number}", "speed": EDGE_GFLOPS / CORE_GFLOPS}
        for number in range(EDGES + (arm.far > 0))
    ]
    if arm.far:
        edges = [{**edge, "most": DEVICES // EDGES} for edge in edges]
        edges[0]["latency"] = arm.far
    fields: dict[str, Any] = {
        "edges": edges,
        "trips": 1.0 if arm.distances else None,
        "front": 1,
        "back": 1,
        "micro_batch": job.shape.batch,
        "perturbation": width if arm.perturbation == WHOLE_WIDTH else arm.perturbation,
        "probes": arm.probes,
        "clusters": arm.clusters,
        "admission": arm.admission,
        "encodings": {
            **dict.fromkeys(
                ("up_activations", "down_activations", "up_gradients", "down_gradients"), arm.encoding
            ),
            "feedback": arm.feedback,
        },
        "timeout": 3600,
        "beat": 60,
        "replan": None,
    }
    if arm.planned:
        fields["edge_profile"] = {"flops": f"{EDGE_GFLOPS} GFLOP/s", "devices": DEVICES // EDGES}
        fields["classes"] = [
            {
                "name": kind.name,
                "devices": [one.name for one in devices if one.kind == kind.name],
                "profile": {
                    "memory": f"{kind.memory} MiB",
                    "flops": f"{kind.gflops} GFLOP/s",
                    "uplink": f"{UPLINK} Mbit/s",
                    "downlink": f"{DOWNLINK} Mbit/s",
                    "rtt": f"{ROUND_TRIP_MS} ms",
                    "overhead": f"{KERNEL_US} us",
                },
            }
            for kind in job.base_model.devices
        ]
    return fields


# ---- running -------------------------------------------------------------------------------------------------


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


def base_of(model: str) -> str:
    """SHA-256 of the weights of a base of `plan.MODELS`, in hex.

    Raises:
        ConfigError: it is not there.
    """
    return base_at(ModelSettings(model=place_of(model)))


def base_at(model: ModelSettings) -> str:
    """SHA-256 of the base's file of weights, in hex.

    Raises:
        ConfigError: it is not there.
    """
    path = Path(model_path(model)) / "model.safetensors"
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"the base {path} cannot be read ({error.strerror}): make it anew") from error


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
