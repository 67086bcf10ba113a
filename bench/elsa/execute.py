"""Carry runs out, beside one another; every line is stored as its run ends."""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from bench.elsa.data import Task
from bench.elsa.plan import TaskJob
from bench.elsa.runs import run_job
from bench.harness.results import Results
from echelon.compute.orphans import follow_parent
from echelon.errors import EchelonError

_tasks: Mapping[str, Task] = {}
_folder = Path()
_places: Mapping[str, str] = {}


def tell(text: str) -> None:
    """Progress; figures go to stdout."""
    print(text, file=sys.stderr, flush=True)


def _enter(tasks: Mapping[str, Task], folder: Path, places: Mapping[str, str]) -> None:
    global _tasks, _folder, _places
    _tasks, _folder, _places = tasks, folder, places


def _start(tasks: Mapping[str, Task], folder: Path, places: Mapping[str, str]) -> None:
    follow_parent()
    _enter(tasks, folder, places)


def _run(job: TaskJob) -> tuple[dict[str, Any] | None, str]:
    """The line of a run, or why there is none."""
    try:
        return run_job(job, _tasks[job.task], _folder, _places.get(job.model)), ""
    except EchelonError as error:
        return None, str(error)
    except Exception:
        # One broken run must not take the figures of all others with it; it is reported, and the exit code says so.
        return None, traceback.format_exc(limit=-4)


Outcome = tuple[TaskJob, dict[str, Any] | None, str]


def outcomes(
    waiting: Sequence[TaskJob],
    tasks: Mapping[str, Task],
    folder: Path,
    places: Mapping[str, str],
    workers: int,
) -> Iterator[Outcome]:
    """What comes of each run, as they end; one worker is this process."""
    if workers == 1:
        _enter(tasks, folder, places)
        for job in waiting:
            yield job, *_run(job)
        return
    with ProcessPoolExecutor(
        min(workers, max(1, len(waiting))),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(tasks, folder, places),
    ) as pool:
        futures = {pool.submit(_run, job): job for job in waiting}
        try:
            for future in as_completed(futures):
                yield futures[future], *future.result()
        finally:
            for future in futures:
                future.cancel()


def execute(
    jobs: Sequence[TaskJob],
    results: Results,
    tasks: Mapping[str, Task],
    workers: int,
    places: Mapping[str, str] | None = None,
) -> list[str]:
    """Run every job that has no line yet, in order; lines are appended as runs end. What failed, and why.

    Args:
        jobs: the runs.
        results: where lines go.
        tasks: by name.
        workers: processes.
        places: what a run file calls models that `plan.MODELS` does not have, by name.
    """
    waiting = [job for job in jobs if job.key not in results]
    failures: list[str] = []
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="echelon-elsa-") as folder:
        ended = outcomes(waiting, tasks, Path(folder), places or {}, workers)
        for number, (job, line, why) in enumerate(ended, 1):
            if line is None:
                failures.append(f"{job.name}: {why}")
                tell(f"{number}/{len(waiting)} {job.name} FAILED: {why.strip().splitlines()[-1]}")
                continue
            results.append(line)
            tell(
                f"{number}/{len(waiting)} {job.name}: accuracy {line['accuracy']:.4f}, "
                f"{line['traffic']['device'] / 1e6:.2f} MB, {line['seconds']:.0f} simulated s, "
                f"{line['cpu_s']:.0f} CPU-s, {time.monotonic() - begun:.0f} s so far"
            )
    return failures
