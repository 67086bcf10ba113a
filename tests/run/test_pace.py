"""Runs whose pace is decided as they go: the decisions stand in the log, and a replay takes them again."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

from echelon.audit.log import TopicLog
from echelon.audit.replay import replay
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.laws.transcript import Transcript
from echelon.messages.exchange import Commit, Delta, Pace
from echelon.messages.manifest import PaceKind
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.controller.drafts import CommitMismatch
from tests.run.runs import Outcome, boundaries, federation, run

SLOW = {"exchange_link": {"latency": 0.2, "bandwidth": 1.25e6}}


@cache
def paced(kind: str, *, slow: bool = True, seed: int = 5) -> Outcome:
    changes: dict[str, Any] = {
        "seed": seed,
        "budget": {"commits": 14},
        "sync": {"steps": 4, "windows": 1, "pace": {"kind": kind, "growth": 3.0}},
        "cost": {"seconds_per_token": 2e-5},
    }
    return run(federation(**changes, **({"simulation": SLOW} if slow else {})))


@dataclass
class Exchange:
    """A run's exchange, read record by record."""

    outcome: Outcome

    def __post_init__(self) -> None:
        topics = self.outcome.topics["exchange"]
        log, transcript = TopicLog("global"), Transcript()
        self.commits: list[Commit] = []
        for record in topics["global"]:
            entry = log.read(record).entry
            if entry is not None:
                transcript.append(entry.message, entry.sha256, log.tree.root())
            if entry is not None and isinstance(entry.message, Commit):
                self.commits.append(entry.message)
        assert log.manifest is not None
        assert log.initial is not None
        self.core = ControllerCore(log.manifest, log.initial)
        self.core.transcript = transcript
        run_id = log.manifest.run_id
        self.logs = [
            TopicLog(
                f"delta.{terms.name}", public=bytes.fromhex(terms.gate_public), run=run_id, boundary=index
            )
            for index, terms in enumerate(log.manifest.boundaries)
        ]
        self.records = [iter(topics[log.topic]) for log in self.logs]
        self.deltas: list[Delta] = []

    def offer(self, commit: Commit) -> None:
        """Give the core what this commit was made of."""
        for head, log, records in zip(commit.heads, self.logs, self.records, strict=True):
            while log.tree.size < head.size:
                entry = log.read(next(records)).entry
                if entry is not None and isinstance(entry.message, Delta):
                    assert self.core.offer(entry.message, entry.payload or b"", entry.offset) is None
                    self.deltas.append(entry.message)


def commits(outcome: Outcome) -> list[Commit]:
    return Exchange(outcome).commits


def deltas(outcome: Outcome) -> list[Delta]:
    exchange = Exchange(outcome)
    for commit in exchange.commits:
        exchange.offer(commit)
        exchange.core.apply(commit)
    return exchange.deltas


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind.value for kind in PaceKind])
def test_every_decision_is_taken_again_by_a_replay(kind: str) -> None:
    outcome = paced(kind)
    assert outcome.summary["audit"]["ok"]
    versions = list(replay(outcome.topics["exchange"]))
    paces = [version.pace for version in versions[1:]]
    assert paces == [commit.pace for commit in commits(outcome)]
    moved = len({(pace.steps, pace.windows) for pace in paces}) > 1
    assert moved == (kind != "fixed")
    reasons = [version.decision.reason for version in versions[1:] if version.decision is not None]
    assert len(reasons) == len(paces)
    assert all(reasons)


@pytest.mark.slow
def test_devices_train_as_many_steps_as_were_announced() -> None:
    outcome = paced("echelon-da")
    announced = {commit.pace.steps for commit in commits(outcome)} | {4}
    told = {window.tokens // (1024 * window.heads) for delta in deltas(outcome) for window in delta.windows}
    assert len(told & announced) > 1


@pytest.mark.slow
def test_the_interval_comes_to_hide_a_slow_exchange() -> None:
    """4 steps take 80 ms and a sync more than 800: the interval grows to what hides it, and only then."""
    last = commits(paced("echelon-da"))[-1].pace
    sync = max(delta.sync_us for delta in deltas(paced("echelon-da")))
    assert sync > 800_000
    assert last.steps * last.windows * 20_480 * 2 > 800_000
    near = commits(paced("echelon-da", slow=False))
    assert all(commit.pace.steps * commit.pace.windows < 40 for commit in near[:8])


@pytest.mark.slow
def test_a_measured_time_that_was_changed_is_another_decision() -> None:
    """What the log cannot derive is signed into the commit; another number there gives another state."""
    exchange = Exchange(paced("echelon-da"))
    mismatches = []
    for commit in exchange.commits:
        exchange.offer(commit)
        try:
            exchange.core.apply(commit.model_copy(update={"measured": (commit.measured[0] * 3,)}))
        except CommitMismatch as error:
            mismatches.append(error.field)
            break
    assert mismatches in (["pace"], ["state_sha256"])


@pytest.mark.parametrize(
    ("sync", "words"),
    [
        ({"steps": 4, "pace": {"kind": "qsr", "steps_min": 5}}, "outside sync.pace's bounds 5..32"),
        ({"windows": 4, "pace": {"kind": "echelon-da", "windows_max": 2}}, "sync.pace.windows_max = 2"),
        ({"pace": {"kind": "adacomm"}, "report_loss": False}, "needs losses"),
        ({"pace": {"kind": "guess"}}, "sync.pace.kind"),
        ({"staleness": {"rule": "cosine", "cutoff": 8}}, "cutoff = 8 must be more than horizon = 8"),
        ({"eager": True, "overlap": False}, "sync.eager is for runs with overlap"),
        ({"eager": True, "outer": {"kind": "fedadam"}}, "fedadam does not"),
        ({"staleness": {"cutoff": 9}}, "cutoff is of the rule cosine"),
    ],
)
def test_terms_that_cannot_work_are_refused(sync: dict[str, Any], words: str) -> None:
    fields = {"name": "x", "boundaries": boundaries(4), "budget": {"commits": 1}, "sync": sync}
    with pytest.raises(ConfigError, match=words):
        parse(fields, "test")


@pytest.mark.slow
def test_a_fixed_pace_is_that_of_the_run_file() -> None:
    assert {commit.pace for commit in commits(paced("fixed"))} == {Pace(steps=4, windows=1, mu_ppm=0)}
