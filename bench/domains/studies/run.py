"""Running the studies: trials first, then every study's runs. What stands in the results is not run again."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.contest.curves import first_at
from bench.contest.data import Corpus
from bench.contest.execute import Failure, execute
from bench.contest.plan import Job, Tuning
from bench.contest.tuning import decide, kept, tuning_of
from bench.domains.regime import corpus_of
from bench.domains.studies.plan import Fixed, Plan, Runs, Study, finals, jobs_of, studies, trials
from bench.domains.studies.tables import Answers
from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError

TUNING, TRIALS, REPORTED = "tuning.json", "trials.jsonl", "reported.jsonl"
EVALUATIONS = 0.1
"""Time of a run beside its training, as a share of it, about: evaluation, actors, audit."""


@dataclass
class Studies:
    """The studies of one plan in one folder of results.

    Args:
        plan: the plan.
        text: a folder that `prepare` made.
        base: the base's folder, which a run loads.
        name: what figures call it.
        folder: of results.
        workers: processes.
        tell: told what is being done.
        tuned: the folder in which trials were decided; None: the folder of results.
    """

    plan: Plan
    text: Path
    base: Path
    name: str
    folder: Path
    workers: int
    tell: Callable[[str], None] = lambda _text: None
    tuned: Path | None = None

    def __post_init__(self) -> None:
        counts = sorted({self.plan.boundaries, *self.plan.spread_boundaries})
        self._by_count: dict[int, Corpus] = {
            count: corpus_of(self.text, count, self.plan.piece) for count in counts
        }
        self.model = f"./{self.name}"
        self.fixed = Fixed(
            self.plan.shape(self.model),
            {count: corpus.digest for count, corpus in self._by_count.items()},
            self.plan.cost,
        )

    def tune(self) -> list[Failure]:
        """Run both rounds of trials, and write down what they decide; what failed."""
        first, failures = self._round(trials(self.plan, self.fixed), self.plan.trials)
        if failures:
            return failures
        best = kept(first, self.plan.finals.keep)
        found, failures = self._round(finals(self.plan, self.fixed, best), self.plan.finals)
        if not failures:
            write_json(self.folder / TUNING, {**found, "first_round": first})
        return failures

    def _round(self, jobs: list[Job], runs: Runs) -> tuple[dict[str, Any], list[Failure]]:
        """What a round of trials decides, and what failed; nothing is decided then."""
        results = Results(self.folder / TRIALS)
        failures = self._execute(list({job.key: job for job in jobs}.values()), results)
        if failures:
            return {}, failures
        return decide("domains", runs.tokens * self.plan.boundaries, jobs, results.lines, first_at), []

    def decided(self) -> tuple[Tuning, dict[str, Any]]:
        """What the trials decided, as settings and as it stands.

        Raises:
            ConfigError: the trials have not been run.
        """
        path = (self.tuned or self.folder) / TUNING
        if not path.exists():
            raise ConfigError(f"{path} is not there: run the trials first")
        found: dict[str, Any] = read_json(path, "what the trials decided")
        return tuning_of(found), found

    def studies(self) -> tuple[Study, ...]:
        """Every study with the settings that the trials chose."""
        return studies(self.plan, self.decided()[0])

    def jobs(self, study: Study) -> list[Job]:
        """A study's runs, each once."""
        return list({job.key: job for *_, job in jobs_of(study, self.fixed)}.values())

    def run(self, only: tuple[str, ...] = ()) -> list[Failure]:
        """Run what is missing of these studies, or of all; what failed.

        Raises:
            ConfigError: the trials have not been run, or there is no such study.
        """
        every = self.studies()
        unknown = set(only) - {study.name for study in every}
        if unknown:
            raise ConfigError(
                f"there is no study {min(unknown)!r}; there are {', '.join(study.name for study in every)}"
            )
        jobs = [job for study in every if not only or study.name in only for job in self.jobs(study)]
        return self._execute(list({job.key: job for job in jobs}.values()), Results(self.folder / REPORTED))

    def answers(self) -> dict[str, Answers]:
        """Every study with what was run of it, by name."""
        tuning, _ = self.decided()
        lines = Results(self.folder / REPORTED).lines
        return {
            study.name: Answers(study, self.fixed, lines, tuning.target_share) for study in self.studies()
        }

    def _execute(self, jobs: list[Job], results: Results) -> list[Failure]:
        missing = [job for job in jobs if job.key not in results]
        spent = sum(job.tokens for job in missing) * self.plan.cost[0] * (1 + EVALUATIONS)
        self.tell(
            f"{len(missing)} runs to do ({len(jobs) - len(missing)} are there): at most {spent / 3600:.1f} CPU-hours "
            f"by the plan's cost, in {self.workers} processes"
        )
        with tempfile.TemporaryDirectory(prefix="echelon-studies-") as place:
            return execute(
                jobs,
                results,
                corpora={corpus.digest: corpus for corpus in self._by_count.values()},
                folder=Path(place),
                workers=self.workers,
                tell=self.tell,
                models={self.model: self.base.absolute()},
            )
