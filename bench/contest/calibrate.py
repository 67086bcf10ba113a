"""The cost model: tokens per second that one core trains and evaluates, measured once and stored with the machine."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import platform
import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from bench.contest.arms import Knobs
from bench.contest.cells import HOME
from bench.contest.data import Corpus
from bench.contest.learner import SharedLearner
from bench.contest.plan import TIERS, Job, Shape
from bench.contest.runs import settings_of, write_data
from echelon.compute.pool import spec_of
from echelon.jobs.training import TrainJob

ROUNDS = 5
PACKAGES = ("numpy", "peft", "torch", "transformers")


def measure_together(shape: Shape, corpus: Corpus, folder: Path, processes: int) -> dict[str, float]:
    """As `measure`, while so many processes do the same at the same time: medians over them.

    Cores that share caches, memory or, in a virtual machine, one core below, do less each when all of them are busy, so
    that a token costs more CPU seconds than on a machine that is idle but for one process.

    Args:
        shape: model and step.
        corpus: all files.
        folder: where rows are written.
        processes: how many.
    """
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager:
        start = manager.Barrier(processes)
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            places = [folder / f"together-{number}" for number in range(processes)]
            rates = [future.result() for future in [
                pool.submit(_measure_when_all_are_ready, shape, corpus, place, start) for place in places
            ]]  # fmt: skip
    return {name: round(statistics.median(one[name] for one in rates), 1) for name in rates[0]}


def _measure_when_all_are_ready(
    shape: Shape, corpus: Corpus, folder: Path, start: threading.Barrier
) -> dict[str, float]:
    return measure(shape, corpus, folder, ready=start.wait)


def measure(
    shape: Shape,
    corpus: Corpus,
    folder: Path,
    clock: Callable[[], float] = time.process_time,
    ready: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Tokens per second of one core, train and eval; medians of `ROUNDS` rounds of ten steps.

    Measured in CPU seconds of the process (one thread), so that waits for a core do not count.

    Args:
        shape: model and step.
        corpus: all files.
        folder: where rows are written.
        clock: CPU seconds.
        ready: called when everything is loaded and warm, before anything is measured.
    """
    job = Job(
        arm="centralised",
        knobs=Knobs(),
        cell=HOME,
        seed=1,
        tokens=1,
        part="dev",
        shape=shape,
        data=corpus.digest,
        cost=(1e-4, 1e-4),
    )
    settings = settings_of(job, write_data(job, corpus, folder))
    learner = SharedLearner(spec_of(settings))
    learner.slice("dev", corpus.files["dev"], shape.eval_tokens)
    weights = learner.initial_adapter()
    device = settings.boundaries[0].device_list()[0].id
    rates: dict[str, list[float]] = {"train": [], "eval": []}
    for number in range(ROUNDS + 1):
        begun = clock()
        result = learner.train(
            TrainJob(data=device, base=weights, start=weights, steps=10, mu=0.0, progress=0.0)
        )
        rates["train"].append(result.tokens / (clock() - begun))
        learner.remember(False)
        begun = clock()
        values = learner.losses("dev", weights)
        rates["eval"].append(sum(count for _, count in values.values()) / (clock() - begun))
        if number == 0:
            rates = {"train": [], "eval": []}  # the first round warms up
            ready()
    return {f"{name}_tokens_per_s": round(statistics.median(values), 1) for name, values in rates.items()}


def calibrate(corpus: Corpus, folder: Path) -> dict[str, Any]:
    """Every tier's shape, the machine, and the versions of what was measured; JSON."""
    shapes = {shape_name(tier.shape): tier.shape for tier in TIERS.values()}
    return {
        "rates": {name: measure(shape, corpus, folder) for name, shape in sorted(shapes.items())},
        "machine": machine(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def shape_name(shape: Shape) -> str:
    """What a rate is stored under: the model and the step."""
    return f"{shape.model} {shape.batch}x{shape.length} rank {shape.rank}"


def cost_of(shape: Shape, calibration: dict[str, Any]) -> tuple[float, float]:
    """Seconds per trained and per evaluated token of the core that was measured.

    Raises:
        KeyError: the shape was not calibrated.
    """
    rates = calibration["rates"][shape_name(shape)]
    return 1 / rates["train_tokens_per_s"], 1 / rates["eval_tokens_per_s"]


def machine() -> dict[str, str]:
    """What it was measured on."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        cpu = next((value.strip() for key, _, value in lines if key.startswith("model name")), cpu)
    return {"cpu": cpu, "system": f"{platform.system()} {platform.machine()}"}
