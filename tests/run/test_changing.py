"""Networks and devices that change while a run goes on: by time of day, an outage, a boundary that becomes slower."""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest

from echelon.errors import ConfigError
from echelon.messages.boundary import Window
from echelon.messages.envelope import Envelope
from tests.run.runs import Outcome, boundaries, federation, run
from tests.run.splits import split_federation

COMMITS = 3
BARRIER: dict[str, Any] = {
    "boundaries": boundaries(3, 3),
    "budget": {"commits": COMMITS},
    "sync": {"windows": 2, "overlap": False, "deadline": 60},
}


@cache
def plain() -> Outcome:
    return barrier()


def barrier(**link: Any) -> Outcome:
    """A run whose training depends on no link: every delta waits for its commit, and commits for all deltas."""
    return run(federation(**BARRIER, simulation={"exchange_link": {"latency": 0.1, **link}}))


def seconds(outcome: Outcome) -> float:
    return float(outcome.summary["training_s"])


def commit_times(outcome: Outcome) -> list[float]:
    """When the exchange's broker had each record of `global`, in seconds of the run."""
    return [record.timestamp_ms / 1000 for record in outcome.topics["exchange"]["global"]]


@pytest.mark.slow
def test_an_outage_holds_the_exchange_up_and_nothing_is_lost() -> None:
    start, end = 0.4 * seconds(plain()), 0.4 * seconds(plain()) + 5
    cut = barrier(outages=[{"start": start, "end": end}])
    assert cut.summary["audit"]["ok"]
    assert cut.summary["commits"] == COMMITS
    assert cut.adapter == plain().adapter
    # From one broker's side: nothing came while the line was away, and things came before and after.
    times = commit_times(cut)
    assert not [when for when in times if start < when < end]
    assert min(times) < start
    assert max(times) > end
    # What was lost is sent again after a pause that grows with the losses, to some seconds.
    assert 0.5 * (end - start) < seconds(cut) - seconds(plain()) < 4 * (end - start)
    assert barrier(outages=[{"start": start, "end": end}]).summary == cut.summary


@pytest.mark.slow
def test_by_time_of_day_commits_are_near_or_far() -> None:
    day = seconds(plain())
    change = {"at": day / 2, "latency": 1.0}
    far = barrier(schedule=[change], period=day)
    always = barrier(latency=1.0)
    assert far.adapter == always.adapter == plain().adapter
    assert seconds(plain()) < seconds(far) < seconds(always)
    once = barrier(schedule=[change])
    assert seconds(far) < seconds(once) < seconds(always)


@pytest.mark.slow
def test_bandwidth_that_falls_makes_deltas_late() -> None:
    """A vector of 4096 weighs some kB, so that a thin line takes seconds for it."""

    def thin(**link: Any) -> Outcome:
        settings = federation(
            **BARRIER,
            learner={"kind": "quadratic", "dim": 4096},
            simulation={"exchange_link": {"bandwidth": 1e6, **link}},
        )
        return run(settings)

    even = thin()
    half = seconds(even) / 2
    later = thin(schedule=[{"at": half, "bandwidth": 1e4}])
    assert later.adapter == even.adapter
    assert later.summary["audit"]["ok"]
    before = [when for when in commit_times(even) if when < half]
    assert [when for when in commit_times(later) if when < half] == before
    assert seconds(later) > seconds(even) + 1


@pytest.mark.slow
def test_one_boundary_can_have_a_link_of_its_own() -> None:
    outcome = run(federation(**BARRIER, simulation={"exchange_links": [{"boundary": "b", "latency": 1.0}]}))
    assert outcome.summary["audit"]["ok"]
    first = {name: outcome.topics["exchange"][f"delta.{name}"][0].timestamp_ms / 1000 for name in ("a", "b")}
    # Where the topic ends, asked and answered; genesis; and the delta, one second each.
    assert first["b"] - first["a"] == pytest.approx(4.0, abs=0.1)


def window_times(outcome: Outcome, boundary: str) -> list[float]:
    """When a boundary's broker had each window's record."""
    return [
        record.timestamp_ms / 1000
        for record in outcome.records(boundary, "control")
        if Envelope.open(record.value).type == Window.kind
    ]


@pytest.mark.slow
@pytest.mark.parametrize("who", ["boundary", "device"])
def test_a_boundary_or_a_device_becomes_slower_and_fast_again(who: str) -> None:
    """Windows wait for every device, so that one slow device is seen as well as four."""
    named = {"boundary": "b"} if who == "boundary" else {"device": "b-1"}
    outcome = run(
        federation(
            boundaries=boundaries(3, 3),
            budget={"seconds": 20},
            window={"deadline": 30, "round_timeout": 5, "patience": 20.0},
            sync={"windows": 1, "deadline": 2.0},
            simulation={"speeds": [{"at": 5, "factor": 0.25, **named}, {"at": 14, "factor": 1, **named}]},
        )
    )
    assert outcome.summary["audit"]["ok"]

    def longest(name: str, start: float, end: float) -> float:
        gaps = [
            later - earlier
            for earlier, later in pairwise(window_times(outcome, name))
            if start < earlier < end
        ]
        assert gaps
        return max(gaps)

    even = longest("b", 0, 4)
    assert longest("b", 5, 14) == pytest.approx(4 * even, rel=0.25)
    assert longest("b", 17, 20) == pytest.approx(even, rel=0.1)
    assert longest("a", 0, 20) == pytest.approx(even, rel=0.1)


LINK: list[tuple[dict[str, Any], str]] = [
    ({"schedule": [{"at": 5}, {"at": 5}]}, "in order of time"),
    ({"schedule": [{"at": 5}, {"at": 3}]}, "a change at 3 s after one at 5 s"),
    ({"schedule": [{"at": -1}]}, "greater than or equal to 0"),
    ({"schedule": [{"at": 1, "bandwidth": 0}]}, "greater than 0"),
    ({"period": 5}, "give schedule"),
    ({"schedule": [{"at": 5}], "period": 5}, "a period of 5 s is over by then"),
    ({"outages": [{"start": 5, "end": 5}]}, "must end after it starts"),
    ({"outages": [{"start": 5, "end": 9}, {"start": 7, "end": 12}]}, "one before it ends at 9 s"),
]


@pytest.mark.parametrize(("link", "words"), LINK)
def test_times_of_a_link_that_make_no_sense_are_refused(link: dict[str, Any], words: str) -> None:
    for simulation in (
        {"exchange_link": link},
        {"boundary_link": link},
        {"exchange_links": [{"boundary": "a", **link}]},
    ):
        with pytest.raises(ConfigError, match=words):
            federation(simulation=simulation)


@pytest.mark.parametrize(
    ("simulation", "words"),
    [
        ({"exchange_links": [{"boundary": "c"}]}, "'c', which is not a boundary; boundaries are a, b"),
        ({"exchange_links": [{"boundary": "a"}, {"boundary": "a"}]}, "called 'a'"),
        ({"exchange_links": [{}]}, "boundary"),
        ({"speeds": [{"at": 1, "factor": 1, "boundary": "c"}]}, "'c', which is not a boundary"),
        ({"speeds": [{"at": 1, "factor": 1, "device": "c-0"}]}, "'c-0', which is not a device"),
        ({"speeds": [{"at": 1, "factor": 1}]}, "give boundary or device"),
        ({"speeds": [{"at": 1, "factor": 1, "boundary": "a", "device": "a-0"}]}, "give boundary or device"),
        ({"speeds": [{"at": 1, "factor": 0, "boundary": "a"}]}, "greater than 0"),
    ],
)
def test_names_and_factors_that_make_no_sense_are_refused(simulation: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        federation(simulation=simulation)


def test_devices_of_a_boundary_in_parts_do_not_change_their_speed() -> None:
    with pytest.raises(ConfigError, match="halves have one speed"):
        split_federation(simulation={"speeds": [{"at": 1, "factor": 0.5, "boundary": "a"}]})
