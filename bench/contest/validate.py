"""How well the cost model predicts: the same run files as processes on three Kafka brokers, in real time.

Compared is what a run needs for its tokens once it is under way: seconds from the first commit to the last, per merged
token. Starting processes is no part of the model. Between gates or controller and the exchange stands the cell's
latency and bandwidth, as on the virtual clock; a slow device sleeps in proportion to what its step took.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bench.contest.arms import BY_NAME
from bench.contest.calibrate import cost_of, machine
from bench.contest.cells import HOME, PRIMARY, Cell
from bench.contest.contest import Contest
from bench.contest.data import Corpus
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
    """Seconds and tokens between a run's first and last commit."""

    seconds: float
    tokens: int

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
    rows = []
    with tempfile.TemporaryDirectory(prefix="echelon-contest-") as place:
        folder = Path(place)
        names = [f"b{number}" for number in range(HOME.boundaries)]
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
                    shape=contest.tier.shape,
                    data=corpus.digest,
                    cost=cost,
                )
                predicted = simulated(job, corpus, folder)
                measured = real(job, corpus, folder / f"case-{number}", stack)
                row = {
                    "table": table, "arm": BY_NAME[arm].title, "cell": cell.name,
                    "predicted_s": predicted.per_token * TOKENS, "measured_s": measured.per_token * TOKENS,
                    "tokens": [predicted.tokens, measured.tokens],
                }  # fmt: skip
                rows.append(row)
                contest.tell(
                    f"{table}: predicted {row['predicted_s']:.1f} s, measured {row['measured_s']:.1f} s"
                )
    validation = {
        "rows": rows,
        "machine": machine(),
        "how": f"Seconds for {TOKENS} merged tokens between the first commit and the last; every actor is a process "
        "of its own, on three Kafka brokers on loopback with TLS, all on the machine of the figures.",
    }
    write_json(contest.folder / validation_file(contest.name), validation)
    return validation


def simulated(job: Job, corpus: Corpus, folder: Path) -> CommitSpan:
    """The run on the virtual clock."""
    line, _ = run_job(job, corpus, folder / "data", None)
    commits = [point for point in line["curve"] if point["commits"] > 0]
    return _pace(job, [(point["t"], point["tokens"]) for point in commits])


def real(job: Job, corpus: Corpus, folder: Path, stack: Stack) -> CommitSpan:
    """The run as processes on Kafka."""
    folder.mkdir()
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
    with Fleet(made, environment=far, entry=ENTRY) as fleet:
        fleet.clear()
        fleet.provision()
        fleet.start()
        codes = fleet.wait(MOST_SECONDS)
        if set(codes.values()) != {0}:
            raise EchelonError(f"the run of {job.arm} on Kafka failed: {fleet.tails()}")
    exchange = asyncio.run(read_broker(made.broker(EXCHANGE, AUDITOR)))
    faults = faults_of_exchange(exchange, made.boundaries)
    if faults:
        raise EchelonError(
            f"the run of {job.arm} on Kafka left an exchange that does not verify: {faults[0]}"
        )
    log = read_exchange(exchange, job.cell.boundaries)
    return _pace(
        job, [(commit.stamp_ms / 1000, commit.tokens) for commit in log.commits if commit.commit > 0]
    )


def _pace(job: Job, commits: Sequence[tuple[float, int]]) -> CommitSpan:
    if len(commits) < 2 or commits[-1][1] == commits[0][1]:
        raise EchelonError(f"{job.arm} made {len(commits)} commits in {job.tokens} tokens: too few to time")
    return CommitSpan(commits[-1][0] - commits[0][0], commits[-1][1] - commits[0][1])
