"""How well the cost model predicts: the same run files as processes on three Kafka brokers, in real time.

Compared is what a run needs for its tokens once it is under way: seconds from the first commit to the last, per merged
token. Starting processes is no part of the model. Between gates or controller and the exchange stands the cell's
latency and bandwidth, as on the virtual clock; a slow device sleeps in proportion to what its step took.

All processes of a run share the cores of one machine, where each core does less than one that is busy alone. So the
rate is measured again, first alone, then with as many processes as there are devices, and there are two predictions:
with the cost model as it stands, and with the rate that this machine has when all its cores are busy.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.contest.arms import BY_NAME
from bench.contest.calibrate import cost_of, machine, measure, measure_together
from bench.contest.cells import HOME, PRIMARY, Cell
from bench.contest.contest import Contest
from bench.contest.data import Corpus
from bench.contest.learner import SharedLearner
from bench.contest.page import CALIBRATION, tuning_file, validation_file
from bench.contest.plan import FIRST_SEED, Job
from bench.contest.runs import read_exchange, run_job, settings_of, write_data
from bench.contest.tuning import tuning_of
from bench.harness.results import read_json, write_json
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.errors import ConfigError, EchelonError
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import AUDITOR, deploy
from tools.fleet import links
from tools.fleet.fleet import Fleet
from tools.fleet.meter import FleetMeter
from tools.fleet.outcome import faults_of_exchange, read_broker
from tools.kafka.stack import Stack

TOKENS = 32_768
MOST_SECONDS = 600.0
ENTRY = "tools.fleet.killing"
CASES: tuple[tuple[str, str, Cell], ...] = (
    ("T1, T5", "diloco", HOME),
    ("T2, primary", "echelon-fixed", PRIMARY),
    ("T3", "echelon-fixed", replace(HOME, partition="iid")),
    ("T4", "echelon-fixed", replace(HOME, stragglers="device")),
    ("T6", "echelon-da", HOME),
)
"""One run for each table: its arm, and a cell of two boundaries with two devices each."""


@dataclass(frozen=True)
class CommitSpan:
    """Seconds and tokens between a run's first and last commit.

    Attributes:
        seconds: from the first commit to the last.
        tokens: merged in between.
        commits: made in between.
        cpu: CPU seconds in between, by kind of process: `device`, `aggregator`, `gate`, `controller`, `broker`. Of a
            run in real time only.
    """

    seconds: float
    tokens: int
    commits: int
    cpu: Mapping[str, float] = field(default_factory=dict)

    @property
    def per_token(self) -> float:
        """Seconds per merged token."""
        return self.seconds / self.tokens


def validate_tier(contest: Contest) -> dict[str, Any]:
    """Run every case on both clocks, and store what came out.

    Raises:
        ConfigError: no Kafka can run here.
        EchelonError: a run failed.
    """
    corpus = contest.corpus()
    cost = cost_of(contest.tier.shape, read_json(contest.inputs / CALIBRATION, "the cost model"))
    tuning = tuning_of(read_json(contest.folder / tuning_file(contest.name), "the tier's tuning"))
    shape = contest.tier.shape
    with tempfile.TemporaryDirectory(prefix="echelon-contest-") as place:
        folder = Path(place)
        contest.tell("measuring the rate of a core alone, and of all cores together")
        alone = measure(shape, corpus, folder / "alone")
        together = measure_together(shape, corpus, folder, HOME.boundaries * HOME.devices)
        busy = (1 / together["train_tokens_per_s"], 1 / together["eval_tokens_per_s"])
        names = [f"b{number}" for number in range(HOME.boundaries)]
        rows = []
        learner: SharedLearner | None = None
        with Stack(folder / "stack", [EXCHANGE, *names]) as stack:
            for number, (table, arm, cell) in enumerate(CASES):
                if arm not in tuning.chosen:
                    raise ConfigError(f"the tier's tuning has no {arm}: run the trials")
                job = Job(
                    arm=arm,
                    knobs=tuning.chosen[arm],
                    cell=cell,
                    seed=FIRST_SEED,
                    tokens=TOKENS,
                    part="test",
                    shape=shape,
                    data=corpus.digest,
                    cost=cost,
                )
                case = _Case(table, job, corpus, folder / f"case-{number}")
                row, learner = case.row(busy, stack, learner)
                rows.append(row)
                contest.tell(
                    f"{table}: predicted {row['predicted_s']:.1f} s, with all cores busy {row['busy_s']:.1f} s, "
                    f"measured {row['measured_s']:.1f} s"
                )
    validation = {
        "rows": rows,
        "machine": machine(),
        "cores": len(os.sched_getaffinity(0)),
        "rates": {"alone": alone, "together": together, "processes": HOME.boundaries * HOME.devices},
        "how": f"Seconds for {TOKENS} merged tokens between the first commit and the last; every actor is a process "
        "of its own, on three Kafka brokers on loopback with TLS, all on the machine of the figures.",
    }
    write_json(contest.folder / validation_file(contest.name), validation)
    return validation


@dataclass
class _Case:
    """What is run, and where.

    Attributes:
        table: whose runs it stands for.
        job: the run.
        corpus: all files.
        folder: of this case.
    """

    table: str
    job: Job
    corpus: Corpus
    folder: Path

    def row(
        self, busy: tuple[float, float], stack: Stack, learner: SharedLearner | None
    ) -> tuple[dict[str, Any], SharedLearner]:
        """Predicted by the cost model, predicted with the rate of busy cores, and measured; and the learner.

        Args:
            busy: seconds per trained and evaluated token of a core while all are busy.
            stack: the brokers.
            learner: of the case before, if there was one.
        """
        predicted, learner = self._simulated(self.job, learner, first=True)
        expected, learner = self._simulated(replace(self.job, cost=busy), learner, first=False)
        measured = real(self.job, self.corpus, self.folder / "real", stack)
        row = {
            "table": self.table,
            "arm": BY_NAME[self.job.arm].title,
            "cell": self.job.cell.name,
            "predicted_s": predicted.per_token * TOKENS,
            "busy_s": expected.per_token * TOKENS,
            "measured_s": measured.per_token * TOKENS,
            "tokens": [predicted.tokens, measured.tokens],
            "commits": [predicted.commits, measured.commits],
            "cpu_s": {kind: round(spent, 2) for kind, spent in measured.cpu.items()},
            "span_s": round(measured.seconds, 2),
            "load": [round(one, 1) for one in os.getloadavg()],
        }
        return row, learner

    def _simulated(
        self, job: Job, learner: SharedLearner | None, *, first: bool
    ) -> tuple[CommitSpan, SharedLearner]:
        """The run on the virtual clock. What the first run of a case trained is looked up by the second."""
        line, learner = run_job(job, self.corpus, self.folder / "data", learner, remember=True, first=first)
        commits = [point for point in line["curve"] if point["commits"] > 0]
        return _pace(job, [(point["t"], point["tokens"]) for point in commits]), learner


def real(job: Job, corpus: Corpus, folder: Path, stack: Stack) -> CommitSpan:
    """The run as processes on Kafka."""
    folder.mkdir(parents=True)
    sources = [path.absolute() for path in write_data(job, corpus, folder / "data")]
    settings = settings_of(job, sources).model_copy(update={"clock": "real"})
    facts = facts_of(build_learner(spec_of(settings), settings.learner))
    made = deploy(settings, load_brokers(stack.brokers_yaml), folder / "deployment", facts)
    link = settings.simulation.exchange_link
    far = {
        links.FAR_PORT: str(stack[EXCHANGE].ports.client),
        links.FAR_LATENCY: str(link.latency),
        links.FAR_BANDWIDTH: str(link.bandwidth),
    }
    meter = FleetMeter(stack)
    with Fleet(made, environment=far, entry=ENTRY) as fleet:
        fleet.clear()
        fleet.provision()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS, lambda: meter.look(fleet))
        if set(codes.values()) != {0}:
            raise EchelonError(f"the run of {job.arm} on Kafka failed: {fleet.tails()}")
    exchange = asyncio.run(read_broker(made.broker(EXCHANGE, AUDITOR)))
    faults = faults_of_exchange(exchange, made.boundaries)
    if faults:
        raise EchelonError(
            f"the run of {job.arm} on Kafka left an exchange that does not verify: {faults[0]}"
        )
    log = read_exchange(exchange, job.cell.boundaries)
    commits = [(commit.stamp_ms / 1000, commit.tokens) for commit in log.commits if commit.commit > 0]
    return replace(_pace(job, commits), cpu=meter.between(commits[0][0], commits[-1][0]))


def _pace(job: Job, commits: Sequence[tuple[float, int]]) -> CommitSpan:
    if len(commits) < 2 or commits[-1][1] == commits[0][1]:
        raise EchelonError(f"{job.arm} made {len(commits)} commits in {job.tokens} tokens: too few to time")
    return CommitSpan(commits[-1][0] - commits[0][0], commits[-1][1] - commits[0][1], len(commits) - 1)
