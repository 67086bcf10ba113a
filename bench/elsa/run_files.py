"""The run file of a job: the model, local training, the boundaries and how a boundary splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.elsa.data import Task
from bench.elsa.fleet import TaskDevice
from bench.elsa.plan import (
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
from echelon.config.run import RunSettings, parse
from echelon.config.training import ModelSettings, TrainSettings
from echelon.errors import ConfigError
from echelon.training.model import model_config, model_path

HELD_OUT = 1e-3
"""Share of a boundary's rows that the run itself holds out, at least one; the benchmark has its own test rows."""
WAIT = 20
"""A window waits at most so many times as long as the slowest device would train alone for it."""
EVAL_COST = 0.4
"""An evaluated token costs so much of a trained one on the virtual clock."""


def place_of(model: str) -> str:
    """What a run file calls the model."""
    place = MODELS[model].place
    return place if ":" in place else str(HERE / place)


def model_settings(place: str, task: Task) -> ModelSettings:
    """The model as a classifier of the task, by what a run file calls it."""
    return ModelSettings(model=place, task="classify", labels=task.labels)


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


def train_settings(job: TaskJob) -> TrainSettings:
    """Local training, the same for every federated arm."""
    return TrainSettings(
        lr=job.rate,
        schedule="cosine",
        batch_size=job.shape.batch,
        sequence_length=job.shape.length,
    )


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
