"""One run: a whole federation on the virtual clock, or a bare loop, and the figures that it leaves."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.contest.arms import BY_NAME, Kind
from bench.contest.cells import Cell
from bench.contest.data import Corpus, boundary_names, deal, trimmed, write_jsonl
from bench.contest.equal_bytes import adapter_of
from bench.contest.learner import SharedLearner
from bench.contest.plan import Job
from echelon.audit.log import TopicLog
from echelon.audit.records import is_chunk
from echelon.bus.base import Record
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings, parse
from echelon.errors import EchelonError
from echelon.jobs.training import TrainJob
from echelon.messages.adapter import Vector
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.run.federation import Federation
from echelon.run.recorder import Recorder
from echelon.virtual_loop import run_virtual

Line = dict[str, Any]
VALIDATION = 1e-3
"""Share of the training files that the run itself holds out; the contest evaluates on its own dev and test files."""

PATIENCE = 100
"""A run that takes so many times as long as its training alone is ended: it would never get to its tokens."""


class ContestError(EchelonError):
    """A run of the contest gave no figures that could be reported."""


def write_data(job: Job, corpus: Corpus, folder: Path) -> list[Path]:
    """One file of rows per boundary; equal for all runs with the same partition."""
    cell = job.cell
    # Only a Dirichlet deal is a draw that seeds should vary; the others would differ by nothing but chance.
    seed = job.seed if cell.partition.startswith("dirichlet") else 0
    place = folder / f"{cell.partition}-{cell.boundaries}-{seed}-{job.shape.characters}"
    paths = [place / f"{name}.jsonl" for name in boundary_names(cell.boundaries)]
    if not all(path.exists() for path in paths):
        files = trimmed(corpus.files["train"], job.shape.characters)
        for hand, path in zip(deal(files, cell.partition, cell.boundaries, seed), paths, strict=True):
            write_jsonl(hand, path)
    return paths


def settings_of(job: Job, sources: Sequence[Path]) -> RunSettings:
    """The run file of a job. Arms differ in `sync` alone, some in adapter and optimiser; time-outs follow from H by one
    rule for all.

    A window waits for its last device for as long again as even devices train, a commit for ten intervals; so nobody
    waits for ever for a device that is gone, and a straggler of a third of the speed is late, not lost.
    """
    shape, cell, knobs = job.shape, job.cell, job.knobs
    step = shape.step_tokens * job.cost[0] / shape.speed
    update = knobs.steps * step
    names = boundary_names(cell.boundaries)
    boundaries = [
        {
            "name": name,
            "devices": [
                {"id": f"{name}-{number}", "speed": speed * shape.speed}
                for number, speed in enumerate(cell.speeds()[place])
            ],
            "data": {
                "source": f"jsonl:{sources[place]}",
                "domain_field": "domain",
                "partition": "iid",
                "validation_fraction": VALIDATION,
                "max_validation_tokens": 64,
            },
        }
        for place, name in enumerate(names)
    ]
    expected = job.tokens / (cell.boundaries * cell.devices * knobs.steps * shape.step_tokens)
    ideal = job.tokens * job.cost[0] / sum(shape.speed * speed for row in cell.speeds() for speed in row)
    even = job.tokens * job.cost[0] / (shape.speed * cell.boundaries * cell.devices)
    leavers = cell.leavers()
    faults = [
        {
            "device": f"{names[boundary]}-{device}",
            "at": "masked",
            "window": int(expected * (number + 1) / (len(leavers) + 1)),
        }
        for number, (boundary, device) in enumerate(leavers)
    ]
    return parse(
        {
            "name": "contest",
            "clock": "virtual",
            "seed": job.seed,
            "model": {"model": shape.model},
            "adapter": adapter_of(shape.model, knobs.adapter, shape.rank).model_dump(),
            "training": {
                "optimizer": knobs.optimizer,
                "lr": shape.lr * knobs.lr_factor,
                "schedule": "cosine",
                "batch_size": shape.batch,
                "sequence_length": shape.length,
            },
            "boundaries": boundaries,
            "secure": {
                "k_min": 2, "bucket_tokens": shape.step_tokens, "n_max": 256, "staleness": {"rule": knobs.staleness},
            },
            "window": {"deadline": 2 * update, "patience": update / 2, "round_timeout": 2.0},
            "sync": {**knobs.fields(), "deadline": 10 * knobs.windows * update + 10 * cell.latency_ms / 1000 + 1},
            "budget": {"tokens": job.tokens, "seconds": int(60 + PATIENCE * ideal)},
            "cost": {"seconds_per_token": job.cost[0], "seconds_per_eval_token": job.cost[1]},
            "simulation": {**cell.simulation(even, names[-1]), "faults": faults},
        },
        f"{job.arm} in {cell.name}",
    )  # fmt: skip


def run_job(
    job: Job,
    corpus: Corpus,
    folder: Path,
    learner: SharedLearner | None,
    *,
    remember: bool = False,
    first: bool = True,
) -> tuple[Line, SharedLearner]:
    """Run it; its line of raw figures, and the learner for the next one.

    Args:
        job: the run.
        corpus: all files.
        folder: where rows for the runs are written.
        learner: of the run before; one that does not fit, or None: one is made.
        remember: training is kept for the jobs of this group that follow.
        first: this is the group's first job.

    Raises:
        ContestError: the audit of the run has findings, or nothing was committed.
        EchelonError: the run failed.
    """
    settings = settings_of(job, write_data(job, corpus, folder))
    spec = spec_of(settings)
    if learner is None or not learner.fits(spec):
        learner = SharedLearner(spec)
    else:
        learner.adopt(spec)
    if first:
        learner.remember(remember)
    learner.slice(job.part, corpus.files[job.part], job.shape.eval_tokens)
    begun = time.process_time()
    kind = BY_NAME[job.arm].kind
    if kind is Kind.FEDERATED:
        outcome = _federated(job, settings, learner)
    elif kind is Kind.CENTRALISED:
        outcome = _bare(job, settings, learner, [tuple(spec.boundary_of)])
    else:
        outcome = _bare(job, settings, learner, [boundary.devices for boundary in spec.boundaries])
    comparable = settings.model_dump(mode="json", exclude={"boundaries"})
    line: Line = {
        "key": job.key,
        "arm": job.arm,
        "words": job.knobs.words() if kind is Kind.FEDERATED else "",
        "knobs": asdict(job.knobs),
        "cell": job.cell.fields(),
        "cell_name": job.cell.name,
        "seed": job.seed,
        "budget": job.tokens,
        "part": job.part,
        "model": job.shape.model,
        "data": job.data,
        "settings_sha256": hashlib.sha256(json.dumps(comparable, sort_keys=True).encode()).hexdigest(),
        **outcome,
        "cpu_s": round(time.process_time() - begun, 2),
    }
    return line, learner


# ---- a federation ----------------------------------------------------------------------------------------


def _federated(job: Job, settings: RunSettings, learner: SharedLearner) -> Line:
    recorder = Recorder({boundary.name: len(boundary.device_list()) for boundary in settings.boundaries})
    at: dict[int, float] = {}

    def listen(line: dict[str, Any]) -> None:
        if line["kind"] == "commit":
            at[line["commit"]] = line["t"]

    recorder.listeners.append(listen)
    result = run_virtual(Federation(settings, None, recorder, learner=learner).run)
    if not result.audit.ok:
        raise ContestError(
            f"{job.arm} in {job.cell.name}: the audit has findings: {result.audit.findings[0]}"
        )
    log = read_exchange(result.exchange, len(settings.boundaries))
    if len(log.commits) < 2:
        raise ContestError(f"{job.arm} in {job.cell.name}: nothing was committed")
    chosen = spread(len(log.commits), job.shape.points)
    curve = []
    for number, commit in enumerate(log.commits):
        losses = learner.losses(job.part, commit.adapter) if number in chosen else None
        curve.append(
            point(
                t=at.get(commit.commit, 0.0),
                tokens=commit.tokens,
                out=commit.out,
                inward=commit.inward,
                commits=commit.commit,
                losses=losses,
            )
        )
    last = curve[-1]
    summary = result.summary
    devices = sum(len(boundary.device_list()) for boundary in settings.boundaries)
    until = [(when, tokens) for when, tokens in recorder.trained if when <= last["t"]]
    return {
        "curve": curve,
        "final": {
            "seconds": last["t"],
            "tokens": last["tokens"],
            "trained": sum(tokens for _, tokens in until),
            "tokens_per_s": round(throughput(until), 2),
            "bytes_out": last["out"],
            "bytes_in": last["in"],
            "commits": summary["commits"],
            "windows": summary["windows"],
            "windows_void": summary["windows_void"],
            "dropouts": summary["dropouts"],
            "devices": devices,
            "loss": last["loss"],
            "refused": len(log.refused),
            "closed": summary["closed"],
        },
        "bytes": {"out": dict(sorted(log.by_type["out"].items())), "in": dict(sorted(log.by_type["in"].items()))},
        "pace": log.pace,
        "staleness": dict(sorted(Counter(str(tau) for tau in log.staleness).items())),
        "audit": "ok",
    }  # fmt: skip


def throughput(jobs: Sequence[tuple[float, int]]) -> float:
    """Tokens per second of training jobs (end in seconds, tokens), from the first end to the last.

    Start and end of a run, which a long run has as well as a short one, are not in it; a wait between two jobs is.
    Jobs that end together with the first are part of the start.
    """
    if not jobs or jobs[-1][0] <= jobs[0][0]:
        return 0.0
    return sum(tokens for when, tokens in jobs if when > jobs[0][0]) / (jobs[-1][0] - jobs[0][0])


class _At:
    """A commit: its number, its adapter, and what had crossed when it was made."""

    def __init__(
        self, *, commit: int, tokens: int, out: int, inward: int, adapter: Vector, stamp_ms: int
    ) -> None:
        self.commit, self.tokens, self.out, self.inward, self.adapter = commit, tokens, out, inward, adapter
        self.stamp_ms = stamp_ms  # the writer's wall clock; of use in real time only


class Exchange:
    """What the exchange's log says, in order of the commits; commit 0 is genesis."""

    def __init__(self) -> None:
        self.commits: list[_At] = []
        self.by_type: dict[str, Counter[str]] = {"out": Counter(), "in": Counter()}
        self.pace: list[list[int]] = []
        self.staleness: list[int] = []
        self.refused: list[str] = []


def read_exchange(topics: dict[str, list[Record]], boundaries: int) -> Exchange:
    """Commits with the bytes that had crossed by then: keys, headers and values, chunks and manifests.

    Outward is what boundaries had sent when the controller made the commit, as far as it had read; inward is `global`
    up to the commit, once for every boundary.
    """
    found = Exchange()
    log = TopicLog("global")
    sent: dict[int, list[int]] = {}
    inward = 0
    for record in topics["global"]:
        inward += boundaries * record.size
        step = log.read(record)
        kind = "global chunk" if is_chunk(record) else "other"
        message = step.entry.message if step.entry is not None else None
        if message is not None:
            kind = f"{message.kind} manifest"
        found.by_type["in"][kind] += boundaries * record.size
        if isinstance(message, Genesis):
            assert log.manifest is not None
            assert log.initial is not None
            for place, terms in enumerate(log.manifest.boundaries):
                sent[place] = _sizes(
                    records=topics[f"delta.{terms.name}"],
                    name=terms.name,
                    public=bytes.fromhex(terms.gate_public),
                    run=log.manifest.run_id,
                    place=place,
                    found=found,
                )
            found.commits.append(
                _At(
                    commit=0,
                    tokens=0,
                    out=0,
                    inward=inward,
                    adapter=log.initial,
                    stamp_ms=record.timestamp_ms,
                )
            )
        elif isinstance(message, Commit):
            assert step.entry is not None
            assert step.entry.payload is not None
            adapter = np.frombuffer(step.entry.payload, "<f4").astype(np.float32)
            outward = sum(sent[head.boundary][head.size - 1] for head in message.heads if head.size)
            found.commits.append(
                _At(
                    commit=message.commit,
                    tokens=message.tokens,
                    out=outward,
                    inward=inward,
                    adapter=adapter,
                    stamp_ms=record.timestamp_ms,
                )
            )
            found.pace.append([message.pace.steps, message.pace.windows])
            found.staleness += [merged.staleness for merged in message.merged]
        elif isinstance(message, Refusal):
            found.refused.append(message.reason.value)
        elif message is not None:
            assert isinstance(message, Close)
    return found


def _sizes(
    records: list[Record], *, name: str, public: bytes, run: bytes, place: int, found: Exchange
) -> list[int]:
    """Bytes of a delta topic up to each of its manifests."""
    log = TopicLog(f"delta.{name}", public=public, run=run, boundary=place)
    total, marks = 0, []
    for record in records:
        total += record.size
        step = log.read(record)
        found.by_type["out"]["delta chunk" if is_chunk(record) else "delta manifest"] += record.size
        if step.entry is not None and isinstance(step.entry.message, Delta):
            marks.append(total)
    return marks


# ---- bare loops ------------------------------------------------------------------------------------------


def _bare(job: Job, settings: RunSettings, learner: SharedLearner, pools: Sequence[Sequence[str]]) -> Line:
    """One loop per pool of devices on the union of their data, each with its share of the tokens.

    The loops run side by side and are charged what the pool's devices need together for the tokens, as if the work
    were split between them at no cost. The learning rate goes by tokens in as many stages as the curve has points.
    """
    shape = job.shape
    share = job.tokens // len(pools)
    steps = max(1, share // shape.step_tokens)
    speeds = {device.id: device.speed for one in settings.boundaries for device in one.device_list()}
    slowest = max(share * job.cost[0] / sum(speeds[name] for name in pool) for pool in pools)
    weights: list[Vector] = [learner.initial_adapter() for _ in pools]
    states: list[bytes | None] = [None for _ in pools]
    for number, pool in enumerate(pools):
        learner.pool(f"pool-{number}", pool)
    marks = [steps * (k + 1) // shape.points for k in range(shape.points)]
    curve = [
        point(
            t=0.0,
            tokens=0,
            out=0,
            inward=0,
            commits=0,
            losses=_mean([learner.losses(job.part, one) for one in weights]),
        )
    ]
    done = 0
    for mark in marks:
        if mark == done:
            continue
        for number in range(len(pools)):
            # The rate is held while a federation makes a commit; here, for a fiftieth of the run at most.
            at = done
            while at < mark:
                take = min(mark - at, max(1, steps // 50))
                task = TrainJob(
                    data=f"pool-{number}",
                    base=weights[number],
                    start=weights[number],
                    steps=take,
                    mu=0.0,
                    progress=at / steps,
                    state=states[number],
                )
                result = learner.train(task)
                weights[number], states[number] = result.weights, result.state
                at += take
        done = mark
        tokens = done * shape.step_tokens * len(pools)
        losses = _mean([learner.losses(job.part, one) for one in weights])
        curve.append(
            point(t=slowest * done / steps, tokens=tokens, out=0, inward=0, commits=0, losses=losses)
        )
    last = curve[-1]
    return {
        "curve": curve,
        "final": {
            "seconds": last["t"], "tokens": last["tokens"], "trained": last["tokens"],
            "tokens_per_s": round(last["tokens"] / last["t"], 2), "bytes_out": 0, "bytes_in": 0, "commits": 0,
            "windows": 0, "windows_void": 0, "dropouts": 0, "devices": len(speeds), "loss": last["loss"], "refused": 0,
            "closed": "tokens",
        },
        "bytes": {"out": {}, "in": {}},
        "pace": [],
        "staleness": {},
        "audit": "none",
    }  # fmt: skip


def _mean(losses: Sequence[dict[str, tuple[float, int]]]) -> dict[str, tuple[float, int]]:
    """The sums of several adapters on one slice, averaged."""
    return {
        domain: (sum(one[domain][0] for one in losses) / len(losses), losses[0][domain][1])
        for domain in losses[0]
    }


# ---- curves ----------------------------------------------------------------------------------------------


def point(
    *, t: float, tokens: int, out: int, inward: int, commits: int, losses: dict[str, tuple[float, int]] | None
) -> Line:
    """One point of a curve; the loss is nats per token over all domains, None where it was not evaluated."""
    loss, domains = None, None
    if losses is not None:
        loss = round(sum(one for one, _ in losses.values()) / sum(count for _, count in losses.values()), 6)
        domains = {domain: round(one / count, 5) for domain, (one, count) in losses.items()}
    return {
        "t": round(t, 4), "tokens": tokens, "out": out, "in": inward, "commits": commits, "loss": loss,
        "domains": domains,
    }  # fmt: skip


def spread(count: int, most: int) -> set[int]:
    """At most `most` of `count` places, evenly spread, the first and the last among them."""
    if count <= most:
        return set(range(count))
    return {round(k * (count - 1) / (most - 1)) for k in range(most)}


def cells_match(line: Line, cell: Cell) -> bool:
    """Whether a line is of that cell."""
    return bool(line["cell"] == cell.fields())
