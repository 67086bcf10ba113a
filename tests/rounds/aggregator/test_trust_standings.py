"""Who is let into a window by what models do on public probes: clusters, trust, dead letters, and a way back in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.elsa.predictions import quantise
from echelon.errors import CodecError, ProtocolError
from echelon.messages.behaviour import Behaviour
from echelon.messages.boundary import Cohort, DeadLetter
from echelon.messages.split import Assignment
from echelon.rounds.aggregator.trust_standings import TrustStandings, quorum
from tests.worlds.split_world import SHAPE, SplitWorld

TERMS = bytes(range(32))
DIM, ROWS, CLASSES = SHAPE


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


@pytest.mark.slow
def test_a_window_waits_until_every_ready_device_was_looked_at() -> None:
    world = started()
    world.train()
    world.pump()
    assert cohorts(world) == []
    report(world, 1)
    world.pump()
    assert cohorts(world) == [set(world.names)]
    assert letters(world) == []


@pytest.mark.slow
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


@pytest.mark.parametrize("fewest", [1, quorum(8, 3, 0)])
def test_two_colluders_that_report_alone_with_a_victim_judge_nobody(fewest: int) -> None:
    """They move far, so that the victim seems not to: where few may judge, it is stale after two such rounds."""
    standings = TrustStandings(TERMS, SHAPE, fewest)
    for place in range(8):
        standings.take(f"d{place}", record(f"d{place}", 1))
    assert standings.judge()
    for number in range(2, 4):
        for device in ("d1", "d2"):
            standings.take(device, record(device, number, group=number))
        standings.take("d0", record("d0", 1).model_copy(update={"number": number}))
        assert standings.judge() == (fewest == 1)
    assert standings.verdict("d0").admitted == (fewest > 1)
    for place in range(3, 8):
        standings.take(f"d{place}", record(f"d{place}", 2))
    assert standings.judge()  # with the others the round is one


def test_a_first_reporter_pins_nothing_and_a_record_of_another_shape_stops_nobody() -> None:
    world = started()
    world.train()
    honest = record("d3", 1)
    wide = Behaviour.of(
        number=1,
        version=0,
        terms=TERMS,
        mean=np.zeros(DIM + 1),
        covariance=np.eye(DIM + 1),
        counts=honest.counts(),
    )
    rows = Behaviour.of(
        number=1,
        version=0,
        terms=TERMS,
        mean=np.zeros(DIM),
        covariance=np.eye(DIM),
        counts=honest.counts()[1:],
    )
    classes = Behaviour.of(
        number=1, version=0, terms=TERMS, mean=np.zeros(DIM), covariance=np.eye(DIM),
        counts=quantise(np.ones((ROWS, CLASSES + 1))),
    )  # fmt: skip
    for bad in (wide, rows, classes):
        world.inject("d3", "behaviour", bad)
    world.pump()
    assert [name for name, message, _ in world.refused if message is not None] == ["ward.aggregator"] * 3
    report(world, 1)
    world.pump()
    assert cohorts(world) == [set(world.names)]
    world.restart_aggregator()


@pytest.mark.slow
@given(
    means=st.lists(st.floats(-1e9, 1e9), min_size=5, max_size=5),
    scales=st.lists(st.floats(1e-8, 1e9), min_size=5, max_size=5),
    tilt=st.floats(-1.0, 1.0),
    pure=st.lists(st.booleans(), min_size=5, max_size=5),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_was_taken_can_be_judged(
    means: list[float], scales: list[float], tilt: float, pure: list[bool]
) -> None:
    standings = TrustStandings(TERMS, SHAPE)
    for number in range(1, 4):
        for place, (mean, scale, one) in enumerate(zip(means, scales, pure, strict=True)):
            covariance = scale * (np.eye(DIM) + tilt * (np.ones((DIM, DIM)) - np.eye(DIM)))
            rows = np.zeros((ROWS, CLASSES))
            rows[:, (place * number) % CLASSES if one else slice(None)] = 1.0
            try:
                made = Behaviour.of(
                    number=number, version=0, terms=TERMS, mean=np.full(DIM, mean), covariance=covariance,
                    counts=quantise(rows),
                )  # fmt: skip
            except CodecError:
                continue  # what no record can hold
            standings.take(f"d{place}", made)
        standings.judge()
        again = TrustStandings(TERMS, SHAPE)
        again.restore(standings.facts())
        assert again.facts() == standings.facts()


def test_a_quorum_is_most_of_the_boundary_and_more_than_colluders_can_bend() -> None:
    assert quorum(8, 3, 0) == 5
    assert quorum(8, 3, 2) == 6
    assert quorum(4, 3, 0) == 3
    assert quorum(3, 3, 2) == 3
    assert quorum(200, 3, 1) == 101


def test_where_too_few_report_for_a_judgement_the_deadline_lets_them_in() -> None:
    world = started(edges=1)
    world.train("d0", "d1", "d2", "d3")
    report(world, 1, without=("d4", "d5", "d6", "d7"))
    world.pump()
    assert cohorts(world) == []
    world.fire("ward.aggregator", "window")
    world.pump()
    assert cohorts(world) == [{"d0", "d1", "d2", "d3"}]
    assert letters(world) == []


def test_records_that_cannot_be_compared_are_refused() -> None:
    standings = TrustStandings(TERMS, SHAPE)
    standings.take("d0", record("d0", 2))
    with pytest.raises(ProtocolError, match="other terms"):
        standings.take("d1", record("d1", 1, terms=bytes(32)))
    with pytest.raises(ProtocolError, match="again, or late"):
        standings.take("d0", record("d0", 2))
    other = record("d2", 1)
    half = {"rows": ROWS // 2, "predictions": other.predictions[: len(other.predictions) // 2]}
    with pytest.raises(ProtocolError, match="by the terms"):
        standings.take("d2", other.model_copy(update=half))
