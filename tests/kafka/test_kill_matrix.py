"""kill -9 at every point of a window and of a commit, on real brokers: nothing is lost, and nothing counts twice.

Each run has several points. Of the whole matrix a few runs are taken at every build; `just kill-matrix` takes all.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from echelon.audit.replay import replay
from echelon.messages.exchange import Close
from tests.kafka.federations import COMMITS, NAMES, Left, run_with_kills
from tools.fleet.killing import Moment, Point
from tools.fleet.outcome import manifests
from tools.kafka.stack import Stack


def points(service: str, *wanted: str, topic: str = "") -> list[Point]:
    """Points of a service, each written as moment, kind of message, and first number."""
    found = []
    for text in wanted:
        moment, kind, number = text.split()
        found.append(Point(service, Moment(moment), kind, int(number), topic))
    return found


RUNS: dict[str, list[Point]] = {
    # a window, seen by its devices
    "device-rounds": [
        *points("a.device", "unsent advertise 0", "sent advertise 1", "unsent sealed 2", "sent sealed 3"),
        *points("b.device", "unsent consistency 0", "sent consistency 1", "unsent unmask 2", "sent unmask 3"),
    ],
    "device-upload": [
        *points("a.device", "unstored masked 0", "stored masked 1", "sent masked 2"),
        *points("b.device", "unsent masked 0", "half masked 1"),
        *points("b.device", "sent ready 0", "stored ready 0", "unsent ready 0"),
    ],
    # a window, seen by its aggregator
    "aggregator-opens": [
        *points("a.aggregator", "unstored window.open 0", "stored window.open 1", "sent window.open 2"),
        *points("a.aggregator", "unstored cohort 3"),
        *points("b.aggregator", "stored cohort 0", "sent cohort 1", "unstored roster 2", "stored roster 3"),
    ],
    "aggregator-rounds": [
        *points("a.aggregator", "sent roster 0", "stored shares 1", "sent shares 2", "unstored included 3"),
        *points("b.aggregator", "stored included 0", "sent included 1", "stored signatures 2"),
        *points("b.aggregator", "sent signatures 3"),
    ],
    "aggregator-closes": [
        *points("a.aggregator", "unstored window 0", "stored window 1", "sent window 2", "half model 0"),
        *points("b.aggregator", "unstored sealing 0", "stored sealing 0", "sent sealing 0", "sent model 0"),
    ],
    "aggregator-syncs": [
        *points("a.aggregator", "stored delta 0", "half delta 0", "sent delta 0"),
        *points("b.aggregator", "unstored adopt 0", "stored adopt 0", "sent adopt 0", "unsent end 0"),
    ],
    # a delta on its way out, and what comes back
    "gate-signs": [
        *points("a.gate", "unstored delta 0", "stored delta 0", "sent delta 1"),
        *points("b.gate", "unsent delta 0", "half delta 1", "sent delta 0"),
    ],
    "gate-mirrors": [
        *points(
            "a.gate", "half genesis 0", "unsent commit 1", "half commit 2", "unsent close 0", topic="global"
        ),
        *points("b.gate", "sent genesis 0", "sent commit 1", "half commit 1", "sent close 0", topic="global"),
    ],
    # a commit
    "controller-begins": points(
        "controller", "unstored genesis 0", "stored genesis 0", "half genesis 0", "sent genesis 0"
    ),
    "controller-commits": [
        *points("controller", "unstored commit 1", "stored commit 1", "unsent commit 2", "half commit 2"),
        *points("controller", "sent commit 3", "unstored close 0", "stored close 0", "sent close 0"),
    ],
    # everybody in one run
    "everybody": [
        *points("a.device", "sent masked 1", "unsent unmask 3"),
        *points("b.aggregator", "stored window 1", "sent sealing 0"),
        *points("a.gate", "stored delta 0"),
        *points("b.gate", "half commit 1", topic="global"),
        *points("controller", "stored commit 1", "sent commit 2"),
    ],
}
EVERY_BUILD = ("everybody",)


def check(left: Left) -> None:
    """Beyond what must hold of every federation: it went to its end, and all arrived at the same adapter."""
    [close] = [message for message in manifests(left.exchange["global"]) if isinstance(message, Close)]
    assert close.commits == COMMITS
    *_, last = replay({topic: list(records) for topic, records in left.exchange.items()})
    assert last.commit == COMMITS
    assert last.sha256 == close.adapter_sha256
    windows = {name: left.tally(name).windows for name in NAMES}
    # A boundary whose devices are killed again and again may miss a commit's deadline, and not be left out for good.
    assert min(windows.values()) >= 2, windows
    assert sum(windows.values()) >= 2 * COMMITS, windows


def test_the_matrix_has_every_kind_of_process_and_record() -> None:
    every = {point for run in RUNS.values() for point in run}
    assert len(every) >= 20
    assert {point.service.rpartition(".")[2] for point in every} == {
        "device",
        "aggregator",
        "gate",
        "controller",
    }
    assert {point.moment for point in every} == set(Moment)


@pytest.mark.timeout(360)
@pytest.mark.parametrize("run", EVERY_BUILD)
def test_processes_that_are_killed_go_on_where_they_were(stack: Stack, tmp_path: Path, run: str) -> None:
    left, _ = run_with_kills(tmp_path, stack.brokers_yaml, RUNS[run])
    check(left)


@pytest.mark.nightly
@pytest.mark.timeout(360)
@pytest.mark.parametrize("run", [run for run in RUNS if run not in EVERY_BUILD])
def test_the_whole_matrix(stack: Stack, tmp_path: Path, run: str) -> None:
    left, _ = run_with_kills(tmp_path, stack.brokers_yaml, RUNS[run])
    check(left)
