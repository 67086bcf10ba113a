"""Many runs, in processes of one thread each: longest training first shared, every result written as it comes."""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest.data import Corpus
from bench.contest.learner import SharedLearner
from bench.contest.plan import Job, groups
from bench.contest.runs import run_job
from bench.harness.results import Results
from echelon.compute.orphans import follow_parent
from echelon.errors import EchelonError

Line = dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A run that gave no figures, and why."""

    job: Job
    why: str


@dataclass
class _Here:
    """What a process has: all data by digest, where runs write, folders of models by name, and its learner."""

    corpora: Mapping[str, Corpus]
    folder: Path
    models: Mapping[str, Path]
    learner: SharedLearner | None = None
    data: str | None = None

    def enter(self, job: Job) -> Corpus:
        """Go to the folder of the job's data; a learner of other data is let go."""
        if job.data != self.data:
            self.learner, self.data = None, job.data
        # A row's id, by which it is dealt and ordered, has the path of its file in it as the run file names it:
        # relative to the folder, so that the same run has the same data wherever its rows lie.
        place = self.folder / job.data[:12]
        place.mkdir(exist_ok=True)
        os.chdir(place)
        target = self.models.get(job.shape.model)
        if target is not None and not Path(job.shape.model).is_symlink():
            scratch = Path(f".{os.getpid()}")
            scratch.symlink_to(target)
            scratch.rename(job.shape.model)  # several processes may do it at once
        return self.corpora[job.data]


_here: _Here | None = None


def _start(corpora: Mapping[str, Corpus], folder: Path, models: Mapping[str, Path]) -> None:
    global _here
    follow_parent()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _here = _Here(corpora, folder, models)


def _run_group(jobs: Sequence[Job]) -> tuple[list[Line], list[Failure]]:
    """The runs of one group after another, with what was trained before looked up."""
    assert _here is not None
    lines: list[Line] = []
    failures: list[Failure] = []
    for place, job in enumerate(jobs):
        try:
            corpus = _here.enter(job)
            line, _here.learner = run_job(
                job, corpus, Path(), _here.learner, remember=len(jobs) > 1, first=place == 0
            )
            lines.append(line)
        except EchelonError as error:
            failures.append(Failure(job, str(error)))
        except Exception:
            # One broken run must not take the figures of all others with it; it is reported, and the exit code says so.
            failures.append(Failure(job, traceback.format_exc(limit=-4)))
    return lines, failures


def execute(
    jobs: Sequence[Job],
    results: Results,
    *,
    corpora: Mapping[str, Corpus],
    folder: Path,
    workers: int,
    tell: Callable[[str], None] = lambda _text: None,
    models: Mapping[str, Path] | None = None,
) -> list[Failure]:
    """Run every job that has no line yet; lines are appended as groups end. What failed, in order of ending.

    Args:
        jobs: what is to be there in the end.
        results: the lines.
        corpora: all data by digest.
        folder: where rows for the runs are written.
        workers: processes.
        tell: told how it goes.
        models: folders of models that are not shipped, by what runs call them: names of one part.
    """
    waiting = [group for group in groups(job for job in jobs if job.key not in results) if group]
    if not waiting:
        return []
    total, done = sum(map(len, waiting)), 0
    begun = time.monotonic()
    failures: list[Failure] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(workers, len(waiting)),
        mp_context=context,
        initializer=_start,
        initargs=(corpora, folder.absolute(), models or {}),
    ) as pool:
        futures = [pool.submit(_run_group, group) for group in waiting]
        try:
            for future in as_completed(futures):
                lines, broken = future.result()
                for line in lines:
                    results.append(line)
                    done += 1
                    final = line["final"]
                    tell(
                        f"{done}/{total} {line['arm']} in {line['cell_name']}, seed {line['seed']}: loss "
                        f"{final['loss']:.4f} after {final['seconds']:.1f} simulated s, {line['cpu_s']:.1f} CPU-s, "
                        f"{time.monotonic() - begun:.0f} s so far"
                    )
                for failure in broken:
                    done += 1
                    reason = failure.why.strip().splitlines()[-1]
                    tell(f"{done}/{total} {failure.job.arm} in {failure.job.cell.name} FAILED: {reason}")
                failures += broken
        except BaseException:
            for future in futures:
                future.cancel()
            raise
    return failures
