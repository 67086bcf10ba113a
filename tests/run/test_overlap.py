"""With overlap the wide area costs next to nothing; without it every delta waits for its commit, and is seen to."""

from __future__ import annotations

from functools import cache

import pytest

from echelon.messages.boundary import Adopt, Cohort, Model, SealedDelta, Sealing, Window
from tests.run.runs import Outcome, boundaries, check_offers, check_windows, envelopes, federation, run

COMMITS = 6
HOPS = 4
"""Gate to exchange, exchange to controller, and the commit's way back: the latency counts once for each."""


@cache
def outcome(overlap: bool, latency: float) -> Outcome:
    return run(
        federation(
            budget={"commits": COMMITS},
            sync={"windows": 2, "overlap": overlap},
            simulation={"exchange_link": {"latency": latency}},
        )
    )


def seconds(overlap: bool, latency: float) -> float:
    return float(outcome(overlap, latency).summary["training_s"])


def rate(overlap: bool, latency: float) -> float:
    return float(outcome(overlap, latency).summary["tokens_per_s"])


def check_barriers(found: Outcome) -> int:
    """From a sealing to the adoption that decides it there is no cohort; returns how many barriers there were."""
    barriers = 0
    for name in ("a", "b"):
        undecided: set[int] = set()
        for envelope in envelopes(found.records(name, "control")):
            if envelope.type == Sealing.kind:
                undecided.add(Sealing.decode(envelope.body).seq)
                barriers += 1
            elif envelope.type == Adopt.kind:
                adopt = Adopt.decode(envelope.body)
                undecided -= {*adopt.merged, *adopt.returned, *adopt.dropped}
            elif envelope.type == Cohort.kind:
                assert not undecided, f"a cohort of {name} while {undecided} were undecided"
    return barriers


@pytest.mark.slow
@pytest.mark.parametrize("latency", [0.2, 0.5])
def test_without_overlap_each_commit_costs_its_way_there_and_back(latency: float) -> None:
    """The start (genesis) is waited for in both cases; then it is four times the latency per commit, exactly.

    At the end the close is announced to witnesses once the broker has it: there and back once more.
    """
    lost = seconds(False, latency) - seconds(False, 0.0)
    assert lost == pytest.approx(((COMMITS + 1) * HOPS + 2) * latency, rel=0.02)
    assert rate(False, latency) < 0.75 * rate(False, 0.0)
    # With overlap only the beginning, the last commit and the end wait, however many there are in between.
    hidden = seconds(True, latency) - seconds(True, 0.0)
    assert hidden == pytest.approx((2 * HOPS + 2) * latency, rel=0.05)
    assert (
        outcome(False, latency).adapter == outcome(False, 0.0).adapter
    )  # nothing but time depends on the link


@pytest.mark.slow
def test_without_latency_both_go_at_one_pace_and_learn_the_same() -> None:
    assert seconds(False, 0.0) == pytest.approx(seconds(True, 0.0), rel=0.01)
    assert outcome(False, 0.0).drop == pytest.approx(outcome(True, 0.0).drop, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("latency", [0.0, 0.5])
def test_no_cohort_and_no_fresh_model_stand_behind_a_barrier(latency: float) -> None:
    found = outcome(False, latency)
    assert found.summary["audit"]["ok"]
    assert check_barriers(found) >= 2 * COMMITS
    for name in ("a", "b"):
        check_offers(found.records(name, "control"))
        check_windows(found.records(name, "control"), found.messages(name, "delta", SealedDelta))
        assert found.records(name, "deadletter") == []
        waiting = [model.waiting for model in found.messages(name, "model", Model)]
        assert waiting.count(True) >= COMMITS
        # Nothing was trained ahead: every update is of the newest version.
        assert all(
            member.base_version == cohort.version
            for cohort in found.messages(name, "control", Cohort)
            for member in cohort.members
        )
    with pytest.raises(AssertionError, match="undecided"):
        check_barriers(outcome(True, 0.5))


@pytest.mark.slow
def test_a_boundary_that_lags_is_not_waited_for_beyond_the_deadline_and_nobody_stands_still() -> None:
    """b is five times slower and a's commits are made at the deadline without it: its late deltas are merged or refused
    as stale, come again, and both go on to the end."""
    slow = boundaries(3, 3)
    slow[1]["devices"] = [{"id": f"b-{number}", "speed": 0.2} for number in range(3)]
    found = run(
        federation(
            boundaries=slow,
            budget={"commits": 10},
            sync={"windows": 2, "overlap": False, "deadline": 1.0, "staleness": {"horizon": 0}},
            window={"deadline": 30, "round_timeout": 2, "patience": 2.0},
        )
    )
    assert found.summary["audit"]["ok"]
    assert found.summary["commits"] == 10
    check_barriers(found)
    assert len(found.messages("b", "control", Window)) >= 2
    returned = [seq for adopt in found.messages("b", "control", Adopt) for seq in adopt.returned]
    assert returned, "the case that this test is about did not come up"
    check_offers(found.records("b", "control"))


@pytest.mark.slow
@pytest.mark.parametrize("at", ["advertise", "masked"])
def test_a_device_that_vanishes_does_not_hold_the_barrier(at: str) -> None:
    found = run(
        federation(
            boundaries=boundaries(5, 5),
            budget={"commits": 4},
            sync={"windows": 2, "overlap": False},
            simulation={"faults": [{"device": "a-1", "at": at, "window": 1}]},
        )
    )
    assert found.summary["audit"]["ok"]
    assert found.summary["commits"] == 4
    check_barriers(found)
