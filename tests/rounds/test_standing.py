"""Who is let into a window by what models do on public probes: clusters, trust, dead letters, and a way back in."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.elsa.predictions import quantise
from echelon.errors import ProtocolError
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import Cohort, DeadLetter
from echelon.messages.split import Assignment
from echelon.rounds.standing import Standings
from tests.rounds.split_world import SplitWorld

TERMS = bytes(range(32))
ROWS, CLASSES, DIM = 24, 8, 3


def record(
    device: str, number: int, *, group: int = 0, spoilt: bool = False, terms: bytes = TERMS
) -> Behaviour:
    """What an honest device of a group reports: near to the others of it, a little further with every job."""
    seed = np.random.default_rng([ord(device[-1]), number, spoilt])
    common = np.random.default_rng(100 + group).normal(0, 1.5, (ROWS, CLASSES))
    logits = common + 0.1 * number + seed.normal(0, 0.08, (ROWS, CLASSES))
    if spoilt:
        logits = seed.normal(0, 1.5, (ROWS, CLASSES))
    rows = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    mean = np.full(DIM, 5.0 * group) + seed.normal(0, 0.05, DIM)
    return Behaviour.of(
        number=number, version=0, terms=terms, mean=mean, covariance=np.eye(DIM), counts=quantise(rows)
    )


def started(**terms: object) -> SplitWorld:
    world = SplitWorld(devices=8, probed=TERMS, **terms)  # type: ignore[arg-type]
    world.genesis()
    world.pump()
    return world


def report(world: SplitWorld, number: int, *spoilt: str, without: tuple[str, ...] = ()) -> None:
    for device in world.names:
        if device not in without:
            world.inject(device, "behaviour", record(device, number, spoilt=device in spoilt))


def letters(world: SplitWorld) -> list[DeadLetter]:
    return [message for message in world.messages(DeadLetter) if isinstance(message, DeadLetter)]


def cohorts(world: SplitWorld) -> list[set[str]]:
    return [
        {member.device for member in message.members}
        for message in world.messages(Cohort)
        if isinstance(message, Cohort)
    ]


def test_a_window_waits_until_every_ready_device_was_looked_at() -> None:
    world = started()
    world.train()
    world.pump()
    assert cohorts(world) == []
    report(world, 1)
    world.pump()
    assert cohorts(world) == [set(world.names)]
    assert letters(world) == []


def test_a_device_that_predicts_otherwise_is_kept_out_and_comes_back_when_it_agrees_again() -> None:
    world = started()
    world.train()
    report(world, 1, "d3")
    world.pump()
    assert cohorts(world) == [set(world.names) - {"d3"}]
    (letter,) = letters(world)
    assert (letter.topic, letter.reason.value) == ("checkin", "low-trust")
    assert "d3" in letter.detail
    assert "inconsistent" in letter.detail
    # Its offer was turned down, so it trains anew; once it agrees with the others for a while, it is let in.
    for number in range(2, 7):
        world.train()
        report(world, number)
        world.pump()
        world.fire("ward.aggregator", "window")
        world.pump()
    assert "d3" in cohorts(world)[-1]
    world.derive()
    assert not world.gate.blocked


def test_without_admission_trust_is_noted_and_keeps_nobody_out() -> None:
    world = started(admission=False)
    world.train()
    report(world, 1, "d3")
    world.pump()
    assert cohorts(world) == [set(world.names)]
    assert letters(world) == []
    assert world.aggregator.edges is not None
    standings = world.aggregator.edges.standings
    assert standings is not None
    assert [device for device in world.names if not standings.verdict(device).admitted] == ["d3"]


def test_without_clusters_devices_that_differ_are_one_cluster() -> None:
    found = []
    for clusters in (True, False):
        world = started(clusters=clusters)
        world.train()
        for device in world.names:
            group = int(device in ("d0", "d1", "d2", "d3"))
            world.inject(device, "behaviour", record(device, 1, group=group))
        world.pump()
        assert world.aggregator.edges is not None
        standings = world.aggregator.edges.standings
        assert standings is not None
        found.append(len(set(standings.labels.values())))
    assert found == [2, 1]


def test_who_sends_no_record_is_let_in_nowhere() -> None:
    world = started()
    world.train()
    report(world, 1, without=("d0",))
    world.pump()
    assert cohorts(world) == []
    world.fire("ward.aggregator", "window")
    world.pump()
    assert cohorts(world) == [set(world.names) - {"d0"}]
    assert ["no-record" in letter.detail for letter in letters(world)] == [True]


def test_devices_that_behave_alike_come_to_one_edge() -> None:
    world = started()
    alike = {device: int(device in ("d0", "d1", "d2", "d3")) for device in world.names}
    world.train()
    for device in world.names:
        world.inject(device, "behaviour", record(device, 1, group=alike[device]))
    world.pump()
    dealt = world.messages(Assignment)[-1]
    assert isinstance(dealt, Assignment)
    edges = {group: {one.edge for one in dealt.entries if alike[one.device] == group} for group in (0, 1)}
    assert sorted(len(found) for found in edges.values()) == [1, 1]
    assert edges[0] != edges[1]


def test_an_aggregator_that_is_started_again_remembers_whom_it_does_not_trust() -> None:
    world = started()
    world.train()
    report(world, 1, "d3")
    world.pump()
    world.restart_aggregator()
    assert world.aggregator.edges is not None
    standings = world.aggregator.edges.standings
    assert standings is not None
    assert [device for device in world.names if not standings.verdict(device).admitted] == ["d3"]


def test_records_that_cannot_be_compared_are_refused() -> None:
    standings = Standings(TERMS)
    standings.take("d0", record("d0", 2))
    with pytest.raises(ProtocolError, match="other terms"):
        standings.take("d1", record("d1", 1, terms=bytes(32)))
    with pytest.raises(ProtocolError, match="again, or late"):
        standings.take("d0", record("d0", 2))
    other = record("d2", 1)
    half = {"rows": ROWS // 2, "predictions": other.predictions[: len(other.predictions) // 2]}
    with pytest.raises(ProtocolError, match="another shape"):
        standings.take("d2", other.model_copy(update=half))
