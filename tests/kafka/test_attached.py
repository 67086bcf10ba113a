"""A deployed run on real brokers, followed from Python with an auditor's access alone."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import echelon
from echelon.bus.chunks import is_chunk
from echelon.errors import BusDenied
from echelon.provision.broker_map import EXCHANGE, load_brokers
from echelon.provision.deployment import AUDITOR
from tests.kafka.federations import COMMITS, NAMES, Left, deployed, fleet
from tools.kafka.stack import Stack


@pytest.mark.timeout(600)
def test_a_run_of_its_own_name_is_followed_while_its_broker_goes_away(stack: Stack, tmp_path: Path) -> None:
    brokers = tmp_path / "named.yaml"
    brokers.write_text(load_brokers(stack.brokers_yaml).of_run("night-8").dump())
    made = deployed(tmp_path / "run", brokers, sync={"windows": 2, "deadline": 30, "report_loss": True})
    found: list[object] = []
    with fleet(made) as running:
        attached = echelon.attach(made.folder / EXCHANGE / AUDITOR / "broker.yaml")
        happenings = iter(attached)  # it is asked before the run's first record is there
        running.start()
        for happening in happenings:
            found.append(happening)
            if isinstance(happening, echelon.CommitMade) and happening.commit == 1:
                stack[EXCHANGE].kill()
                stack.start(EXCHANGE)
        codes = running.wait(500.0)
    assert set(codes.values()) == {0}, running.tails()
    first = next(record for record in Left.read(made).exchange["global"] if not is_chunk(record))
    assert isinstance(found[0], echelon.RunStarted)
    assert found[0].genesis_sha256 == hashlib.sha256(first.value).hexdigest()
    commits = [one for one in found if isinstance(one, echelon.CommitMade)]
    assert [one.commit for one in commits] == list(range(1, COMMITS + 1))
    crossed = [one for one in found if isinstance(one, echelon.DeltaCrossed)]
    assert {one.boundary for one in crossed} == set(NAMES)
    assert all(one.loss is not None and one.tokens > 0 for one in crossed)
    told = [(one.boundary, one.seq) for one in crossed]
    for commit in commits:
        assert {(name, seq) for name, seq, _ in commit.merged} <= set(told), "a delta comes before its commit"
    last = found[-1]
    assert isinstance(last, echelon.RunClosed)
    assert (last.reason, last.commits, last.adapter_sha256) == (
        "commits",
        COMMITS,
        commits[-1].adapter_sha256,
    )


def test_an_auditor_of_one_boundary_cannot_follow_the_exchange(stack: Stack, tmp_path: Path) -> None:
    made = deployed(tmp_path / "run", stack.brokers_yaml)
    stranger = made.folder / NAMES[0] / AUDITOR / "broker.yaml"
    with pytest.raises(BusDenied):
        next(iter(echelon.attach(made.brokers.exchange.url, security=stranger)))
