"""The cost model: tokens per second that one core trains with each base, measured once and stored with the machine."""

from __future__ import annotations

import importlib.metadata
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.contest.calibrate import PACKAGES, machine
from bench.elsa.data import Task, write_rows
from bench.elsa.plan import MODELS, TaskJob, TaskShape
from bench.elsa.run_files import HELD_OUT, model_settings, place_of, train_settings
from echelon.config.training import AdapterSettings, DataSettings
from echelon.jobs.training import TrainJob
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.local import TorchLearner
from echelon.training.model import limit_threads

ROUNDS, STEPS = 5, 6


def measure(
    model: str, task: Task, place: str, *, length: int = TaskShape().length, lr: float | None = None
) -> float:
    """Tokens per second of one core, the median of `ROUNDS` rounds, in CPU seconds of the process (one thread).

    Args:
        model: its name.
        task: whose rows are trained on.
        place: what a run file calls the model.
        length: most tokens of a row.
        lr: of those steps; None: the model's.
    """
    limit_threads()
    clock = time.process_time
    shape = TaskShape(length=length)
    job = TaskJob(
        task=task.name,
        model=model,
        arm="centralised",
        unreliable=0,
        seed=1,
        shape=shape,
        data="",
        base="",
        tokens_per_s=1.0,
        lr=lr,
    )
    with tempfile.TemporaryDirectory(prefix="echelon-elsa-") as folder:
        path = Path(folder) / "rows.jsonl"
        write_rows([(row, "pool") for row in task.snippets["train"][:600]], path)
        data = DataSettings(source=f"jsonl:{path}", label_field="label", validation_fraction=HELD_OUT)
        learner = TorchLearner(
            LearnerSpec(
                model=model_settings(place, task),
                adapter=AdapterSettings(rank=shape.rank, alpha=shape.scale * shape.rank),
                train=train_settings(job),
                boundaries=(BoundarySpec(name="pool", devices=("pool",), data=data),),
            )
        )
        weights = learner.initial_adapter()
        rates = []
        for _ in range(ROUNDS + 1):
            begun = clock()
            result = learner.train(
                TrainJob(data="pool", base=weights, start=weights, steps=STEPS, mu=0.0, progress=0.0)
            )
            rates.append(result.tokens / (clock() - begun))
    return statistics.median(rates[1:])  # the first round warms up


def calibrate(task: Task) -> dict[str, Any]:
    """Every model's rate on a task, the machine, and the versions of what was measured; JSON."""
    return {
        "tokens_per_s": {name: round(measure(name, task, place_of(name)), 1) for name in MODELS},
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }
