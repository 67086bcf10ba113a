"""The benchmark `elsa` on real text and real models: trials on dev rows, then the reported runs, then the page.

python -m bench.elsa.real trials FOLDER   learning rates and FedProx's weight, chosen on dev rows
python -m bench.elsa.real run FOLDER      every reported run that has no figures yet
python -m bench.elsa.real page FOLDER     docs/elsa-tasks.md, from what is there

FOLDER is that of `bench.elsa.corpora`: text and models are fetched into it when they are not there. Lines are appended
to bench/results/elsa/TIER.jsonl as runs end, and trials to TIER-trials.jsonl; what stands there is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from bench.contest.contest import cores
from bench.elsa.calibrate import measure
from bench.elsa.corpora import FOLDER, Split, prepare, read_task
from bench.elsa.data import Task
from bench.elsa.execute import execute, tell
from bench.elsa.pages import whole_page
from bench.elsa.plan import TaskJob
from bench.elsa.real_models import prepare as prepare_model
from bench.elsa.real_plan import (
    RATES,
    TIERS,
    Known,
    RealTier,
    best,
    mu_trials,
    rate_trials,
    rates_of,
    reported,
)
from bench.elsa.run_files import base_at, model_settings
from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError
from tools.telling import telling

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results" / "elsa"
PAGE = ROOT / "docs" / "elsa-tasks.md"


@dataclass
class RealBenchmark:
    """A tier with its files.

    Attributes:
        tier: which one.
        folder: of text and models.
        results: of lines, the cost model and choices.
        workers: processes.
    """

    tier: RealTier
    folder: Path
    results: Path
    workers: int

    def lines(self, what: str = "") -> Results:
        """Lines of the reported runs, or of the `trials`."""
        return Results(self.results / f"{self.tier.name}{what and f'-{what}'}.jsonl")

    @property
    def choices(self) -> Path:
        """Where what the trials chose is written."""
        return self.results / f"{self.tier.name}-choices.json"

    @cached_property
    def places(self) -> dict[str, str]:
        """What a run file calls each model."""
        names = dict.fromkeys(model for _, model in self.tier.bases)
        return {name: str(prepare_model(name, self.folder, tell).absolute()) for name in names}

    def tasks(self, tested: Split) -> dict[str, Task]:
        """Every task, scored on the rows of that split."""
        prepare(self.folder / FOLDER, tell)
        names = dict.fromkeys(task for task, _ in self.tier.bases)
        return {name: read_task(self.folder / FOLDER, name, tested) for name in names}

    def _speeds(self, tasks: dict[str, Task]) -> dict[str, float]:
        """The cost model: measured once for a tier, then read."""
        path = self.results / f"{self.tier.name}-speeds.json"
        if not path.exists():
            shape, found = self.tier.shape, {}
            for task, model in reversed(self.tier.bases):  # a model's first task is what it is measured on
                speed = measure(model, tasks[task], self.places[model], length=shape.length, lr=RATES[0])
                found[model] = round(speed, 1)
            write_json(path, found)
        return dict(read_json(path, "the cost model"))

    def known(self, tasks: dict[str, Task]) -> Known:
        """What runs on these rows depend on."""
        first = {model: tasks[task] for task, model in reversed(self.tier.bases)}
        return Known(
            {name: task.digest for name, task in tasks.items()},
            {name: base_at(model_settings(place, first[name])) for name, place in self.places.items()},
            self._speeds(tasks),
        )

    def tune(self) -> list[str]:
        """Run the trials and write what they chose; what failed."""
        tasks, lines = self.tasks("dev"), self.lines("trials")
        known = self.known(tasks)
        rates = rate_trials(self.tier, known)
        failures = execute(rates, lines, tasks, self.workers, self.places)
        if failures:
            return failures
        chosen = rates_of(rates, lines.lines)
        proximal = mu_trials(self.tier, known, chosen)
        failures = execute(proximal, lines, tasks, self.workers, self.places)
        if failures:
            return failures
        found = best(lines.lines[job.key] for job in proximal)
        write_json(self.choices, {"rates": chosen, "fedprox": found["arm"]})
        return []

    def jobs(self, tasks: dict[str, Task]) -> list[TaskJob]:
        """The reported runs."""
        return list(
            reported(
                self.tier, self.known(tasks), read_json(self.choices, "what trials chose (run `trials`)")
            )
        )

    def run(self, only: str = "", limit: int | None = None) -> list[str]:
        """Run what is missing of the reported runs; what failed."""
        tasks = self.tasks("test")
        wanted = [job for job in self.jobs(tasks) if only in job.name]
        lines = self.lines()
        missing = [job for job in wanted if job.key not in lines]
        tell(f"tier {self.tier.name}: {len(missing)} runs to do, {len(wanted) - len(missing)} are there")
        return execute(missing[:limit], lines, tasks, self.workers, self.places)


@telling
def main(arguments: Sequence[str] | None = None) -> None:
    """0; 1 with the reason on stderr when something could not be had or run."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.elsa.real",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=("trials", "run", "page"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tier", choices=tuple(TIERS), default="real")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of lines; default: %(default)s")
    parser.add_argument("--workers", type=int, default=cores())
    parser.add_argument("--only", default="", help="runs whose name has this in it")
    parser.add_argument("--limit", type=int, help="at most so many runs")
    options = parser.parse_args(arguments)
    bench = RealBenchmark(TIERS[options.tier], options.folder, options.results, options.workers)
    if options.what == "page":
        PAGE.write_text(whole_page(options.results), "utf-8")
        tell(f"written: {PAGE}")
        return
    failures = bench.tune() if options.what == "trials" else bench.run(options.only, options.limit)
    for failure in failures:
        tell(failure)
    if failures:
        raise ConfigError(f"{len(failures)} runs failed; the others are stored")
    print(json.dumps({"tier": bench.tier.name, "runs": len(bench.lines().lines)}))


if __name__ == "__main__":
    raise SystemExit(main())
