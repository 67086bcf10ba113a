"""Times that one party states otherwise than all others: the pace does not move, and the finding says who."""

from __future__ import annotations

import pytest

from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.messages.envelope import key_id
from echelon.messages.manifest import PaceKind, PaceTerms, RunManifest
from tests.audit.synthetic import CONTROLLER, GATES, Exchange, terms

SECOND = 1_000_000
HONEST = (1_000_000, 1_000_300, 999_800, 1_050_000)
"""Microseconds between commits as the controller and three gates measure them."""


def paced(boundaries: int) -> RunManifest:
    control = PaceTerms(kind=PaceKind.ECHELON_DA, steps_min=2, steps_max=80, windows_max=4)
    return terms(boundaries=boundaries, deltas_per_commit=boundaries).model_copy(update={"control": control})


def season(
    lies: dict[int, int],
    boundaries: int = 3,
    commits: int = 8,
    sync_us: int = 10_000,
    syncs: dict[int, int] | None = None,
) -> Exchange:
    """A run in which some state another time between commits, or of syncs; -1 is the controller. A step takes 50 ms."""
    exchange = Exchange(paced(boundaries))
    for number in range(commits):
        for boundary in range(boundaries):
            stated = lies.get(boundary, HONEST[boundary + 1])
            sync = (syncs or {}).get(boundary, sync_us)
            exchange.delta(boundary, sync_us=sync, spacing_us=stated if number > 1 else 0)
        exchange.commit((lies.get(-1, HONEST[0]),))
    exchange.close()
    return exchange


def measured(report: Report) -> list[Finding]:
    return [one for one in report.findings if one.code is Code.MEASURED]


def intervals(report: Report) -> list[int]:
    return [facts.pace.steps * facts.pace.windows for facts in report.commits]


def test_honest_clocks_that_differ_a_little_are_believed() -> None:
    report = verify(season({}).topics)
    assert report.ok
    assert measured(report) == []


@pytest.mark.slow
@pytest.mark.parametrize("lie", [1, 100_000_000])
@pytest.mark.parametrize("liar", [-1, 0, 1, 2])
def test_one_liar_moves_nothing_and_is_named(liar: int, lie: int) -> None:
    report = verify(season({liar: lie}).topics)
    assert report.ok, "what it states is signed, and nothing rests on it"
    assert intervals(report) == intervals(verify(season({}).topics))
    key = (CONTROLLER if liar < 0 else GATES[liar]).public
    assert [(one.severity, one.topic) for one in measured(report)] == [
        (Severity.WARNING, "global" if liar < 0 else f"delta.{'abc'[liar]}")
    ]
    assert f"(key {key_id(key)})" in measured(report)[0].detail
    assert "off by more than 4 times" in measured(report)[0].detail


def test_a_controller_that_states_a_microsecond_does_not_raise_the_interval() -> None:
    lied = intervals(verify(season({-1: 1}, sync_us=900_000).topics))
    assert max(lied) <= 2 * max(intervals(verify(season({}, sync_us=900_000).topics)))
    assert lied == intervals(verify(season({}, sync_us=900_000).topics))


@pytest.mark.slow
@pytest.mark.parametrize("boundaries", [2, 3])
def test_a_gate_whose_syncs_are_longer_than_what_lies_between_is_named(boundaries: int) -> None:
    honest = intervals(verify(season({}, boundaries=boundaries).topics))
    exchange = season({}, boundaries=boundaries, sync_us=10_000, syncs={1: 3_600_000_000})
    report = verify(exchange.topics)
    assert intervals(report) == honest
    assert [one.topic for one in measured(report)] == ["delta.b"]
    assert "the time of syncs that is stated cannot be" in measured(report)[0].detail
    assert key_id(GATES[1].public) in measured(report)[0].detail


def test_a_gate_whose_delta_was_passed_over_cannot_deny_the_time() -> None:
    """Each delta of boundary 0 is taken by the second commit after what its gate had read, never by the first."""
    for stated, named in ((1, True), (2 * SECOND, False)):
        exchange = Exchange(paced(3))
        for number in range(16):
            if number % 2 == 0:
                exchange.delta(0, sync_us=stated, spacing_us=SECOND, offer=False)
            else:
                exchange.take(0)
            for boundary in (1, 2):
                exchange.delta(boundary, sync_us=10_000, spacing_us=SECOND)
            exchange.commit((SECOND,))
        exchange.close()
        report = verify(exchange.topics)
        assert report.ok
        assert [one.topic == "delta.a" for one in measured(report)] == [True] * named


def test_of_two_that_contradict_each_other_both_are_named_and_nothing_moves() -> None:
    exchange = season({-1: 1}, boundaries=1)
    report = verify(exchange.topics)
    assert report.ok
    (finding,) = measured(report)
    assert "no third tells which" in finding.detail
    for key in (CONTROLLER.public, GATES[0].public):
        assert key_id(key) in finding.detail
    decisions = [version.decision for version in replay(exchange.topics)]
    assert {decision.floor for decision in decisions if decision is not None} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("liars", [(-1, 1), (0, 2)])
@pytest.mark.parametrize("lie", [1, 100 * SECOND])
def test_of_two_against_two_all_are_named_and_nobody_alone(liars: tuple[int, int], lie: int) -> None:
    """The middle may be that of the liars: who is not in it need not be wrong."""
    report = verify(season(dict.fromkeys(liars, lie)).topics)
    (finding,) = measured(report)
    assert "no majority tells who is wrong" in finding.detail
    for signer in (CONTROLLER, *GATES[:3]):
        assert key_id(signer.public) in finding.detail


def test_two_that_part_from_the_others_now_and_then_are_not_named() -> None:
    exchange = Exchange(paced(3))
    for number in range(12):
        late = 60 * SECOND if number in (3, 6, 9) else SECOND
        for boundary in range(3):
            exchange.delta(boundary, spacing_us=(late if boundary < 2 else SECOND) if number > 1 else 0)
        exchange.commit((SECOND,))
    exchange.close()
    assert measured(verify(exchange.topics)) == []


def test_a_single_time_that_a_network_delayed_is_no_lie() -> None:
    exchange = Exchange(paced(3))
    for number in range(8):
        for boundary in range(3):
            late = 60 * SECOND if (number, boundary) == (4, 1) else SECOND
            exchange.delta(boundary, spacing_us=late if number > 1 else 0)
        exchange.commit((SECOND,))
    exchange.close()
    assert measured(verify(exchange.topics)) == []
