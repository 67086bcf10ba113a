"""A whole tier: what it costs, tuning, every table, and the page. What stands in the results is not run again."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest import secagg
from bench.contest.calibrate import calibrate, cost_of, machine
from bench.contest.data import Corpus, differences, make_corpus
from bench.contest.execute import Failure, execute
from bench.contest.page import CALIBRATION, DATA, SECAGG, Files, raw_file, render, tuning_file
from bench.contest.plan import Job, Tier, check_tier, planned, trained_tokens, trials
from bench.contest.tuning import decide, tuning_of
from bench.harness.results import Results, read_json, write_json

Tell = Callable[[str], None]
OVERHEAD = 3.0
"""CPU seconds of a run beside its training, about: actors, audit, evaluation."""
LOST = 1.1
"""Trained tokens for each merged one, about: what is under way when the budget is spent is lost."""
SECAGG_COHORTS = ((19_724, 4, 5), (78_860, 4, 5), (78_860, 20, 3))
"""T7: (coordinates, devices, turns)."""


@dataclass
class Contest:
    """One tier in one folder of results.

    Args:
        name: of the tier.
        inputs: the folder that holds the cost model, the data's manifest and committed choices.
        folder: where raw figures go; may be the same.
        workers: processes.
        tell: told what is being done.
        only: names of tables; None: all, in the order of the plan.
    """

    name: str
    inputs: Path
    folder: Path
    workers: int
    tell: Tell = lambda _text: None
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        self.tier: Tier = check_tier(self.name)
        self.results = Results(self.folder / raw_file(self.name))

    def run(self) -> list[Failure]:
        """Run what is missing; what failed.

        Raises:
            ConfigError: the cost model or committed choices are missing.
        """
        begun = time.monotonic()
        corpus = self.corpus()
        calibration = read_json(self.inputs / CALIBRATION, "the cost model (make it with --calibrate)")
        cost = cost_of(self.tier.shape, calibration)
        with tempfile.TemporaryDirectory(prefix="echelon-contest-") as place:
            failures = self._tune(corpus, cost, Path(place))
            if failures:
                return failures
            tuning = tuning_of(read_json(self.folder / tuning_file(self.name), "the tier's tuning"))
            plan = planned(self.tier, tuning, corpus.digest, cost)
            wanted = {name: jobs for name, jobs in plan.items() if self.only is None or name in self.only}
            self._announce([job for jobs in wanted.values() for job in jobs], calibration, cost)
            # All at once, in the order of the tables: no process waits at a table's end.
            jobs = [job for of_table in wanted.values() for job in of_table]
            failures = execute(
                jobs=jobs,
                results=self.results,
                corpora={corpus.digest: corpus},
                folder=Path(place),
                workers=self.workers,
                tell=self.tell,
            )
        if self.only is None and not (self.folder / SECAGG).exists():
            self.measure_secagg()
        for name in (CALIBRATION, DATA):
            if self.folder != self.inputs:
                write_json(self.folder / name, read_json(self.inputs / name, "a file of the contest"))
        self.tell(f"tier {self.name}: {time.monotonic() - begun:.0f} s, {len(failures)} runs failed")
        return failures

    @property
    def tuned(self) -> bool:
        """Whether the settings that the tables are about are decided."""
        return (self.folder / tuning_file(self.name)).exists()

    def corpus(self) -> Corpus:
        """The data, after a word where it is not what the committed figures were made on."""
        corpus = make_corpus()
        path = self.inputs / DATA
        if not path.exists():
            write_json(path, corpus.manifest)
            self.tell(f"the data's manifest is written to {path}")
            return corpus
        known = read_json(path, "the data's manifest")
        if known["digest"] != corpus.digest:
            other = differences(known, corpus.manifest)
            self.tell(
                f"this Python's standard library is not that of Python {known['python']} in {path.name}: {len(other)} "
                f"files differ ({', '.join(other[:3])}…). Figures made here can be compared with one another, not with "
                "the committed ones"
            )
        return corpus

    def _tune(self, corpus: Corpus, cost: tuple[float, float], place: Path) -> list[Failure]:
        target = self.folder / tuning_file(self.name)
        committed = self.inputs / tuning_file(self.name)
        if not self.tier.tuned and committed.exists():
            if committed != target:
                write_json(target, read_json(committed, "the tier's tuning"))
            return []
        return self.tune(corpus, cost, place)

    def tune_only(self) -> list[Failure]:
        """The trials alone, whatever is committed; what failed."""
        corpus = self.corpus()
        cost = cost_of(self.tier.shape, read_json(self.inputs / CALIBRATION, "the cost model"))
        with tempfile.TemporaryDirectory(prefix="echelon-contest-") as place:
            return self.tune(corpus, cost, Path(place))

    def tune(self, corpus: Corpus, cost: tuple[float, float], place: Path) -> list[Failure]:
        """Run every trial that has no figures yet, and write down what they decide; what failed."""
        jobs = trials(self.tier, corpus.digest, cost)
        raw = Results(self.folder / f"{self.name}.trials.jsonl")
        # Two arms may try the same settings: a run is found by what it is, not by who asked for it.
        once = list({job.key: job for job in jobs}.values())
        self._announce([job for job in once if job.key not in raw], None, cost)
        failures = execute(
            jobs=once,
            results=raw,
            corpora={corpus.digest: corpus},
            folder=place,
            workers=self.workers,
            tell=self.tell,
        )
        if not failures:
            write_json(
                self.folder / tuning_file(self.name),
                decide(self.tier.name, self.tier.dev_tokens, jobs, raw.lines),
            )
        return failures

    def _announce(self, jobs: list[Job], calibration: Any, cost: tuple[float, float]) -> None:
        missing = [job for job in jobs if job.key not in self.results]
        tokens = trained_tokens(missing)
        spent = tokens * LOST * cost[0] + OVERHEAD * len(missing)
        on = (
            ""
            if calibration is None
            else f" on the machine of the calibration ({calibration['machine']['cpu']})"
        )
        self.tell(
            f"tier {self.name}: {len(missing)} runs to do ({len(jobs) - len(missing)} are there), {tokens:,} tokens to "
            f"train: about {spent / 60:.0f} CPU-minutes{on}, {spent / 60 / self.workers:.0f} minutes in {self.workers} "
            "processes"
        )

    def calibrate(self) -> dict[str, Any]:
        """Measure the cost model and store it: figures made under another one are no longer found."""
        with tempfile.TemporaryDirectory(prefix="echelon-contest-") as place:
            rates = calibrate(self.corpus(), Path(place))
        write_json(self.inputs / CALIBRATION, rates)
        return rates

    def measure_secagg(self) -> dict[str, Any]:
        """T7, and store it."""
        self.tell("measuring secure aggregation against raw keystream")
        rows = [secagg.measure(dim, devices, turns, dropped=1) for dim, devices, turns in SECAGG_COHORTS]
        figures = {"rows": rows, "machine": machine()}
        write_json(self.folder / SECAGG, figures)
        return figures

    def page(self, docs: Path) -> Files:
        """Write the page and its pictures below `docs`; pictures that are no longer made are removed."""
        files = render(self.folder, self.name)
        for old in (docs / "contest").glob("*.svg"):
            if f"contest/{old.name}" not in files:
                old.unlink()
        for name, text in files.items():
            path = docs / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        return files


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
