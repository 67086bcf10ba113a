"""One fault at a time, six devices per boundary and a floor of three: the run ends, and learns as well as without."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from echelon.messages.boundary import Cohort, SealedDelta, Void, Window
from echelon.run.federation import Federation
from echelon.virtual_loop import run_virtual
from tests.run.runs import (
    Outcome,
    boundaries,
    check_bodies,
    check_offers,
    check_windows,
    federation,
    recorder_for,
    run,
)

COMMITS = 5
WINDOW = {"cohort": 5, "deadline": 5, "round_timeout": 2, "patience": 2.0}


def faulty(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "boundaries": boundaries(6, 6),
        "budget": {"commits": COMMITS},
        "window": WINDOW,
    }
    return run(federation(**(fields | changes)))


@cache
def undisturbed() -> Outcome:
    return faulty()


def check(outcome: Outcome) -> None:
    assert outcome.summary["closed"] == "commits"
    assert outcome.summary["commits"] == COMMITS
    assert outcome.summary["audit"]["ok"]
    for name in ("a", "b"):
        control = outcome.records(name, "control")
        check_offers(control)
        check_windows(control, outcome.messages(name, "delta", SealedDelta))
        check_bodies("masked", outcome.records(name, "masked"), "window")


@pytest.mark.slow
@pytest.mark.parametrize("at", ["start", "advertise", "sealed", "masked", "consistency", "unmask"])
def test_a_device_that_leaves(at: str) -> None:
    outcome = faulty(simulation={"faults": [{"device": "a-1", "at": at, "window": 1}]})
    check(outcome)
    assert abs(outcome.drop - undisturbed().drop) <= 0.02 * undisturbed().drop
    # No window is lost to it, and the other boundary does not notice.
    assert outcome.messages("a", "control", Void) == []
    assert abs(outcome.summary["windows"] - undisturbed().summary["windows"]) <= 4
    last = outcome.messages("a", "control", Window)[-1].included
    assert "a-1" not in last
    assert len(last) >= 3
    # It really left where the schedule says.
    joined = [
        c.window
        for c in outcome.messages("a", "control", Cohort)
        if any(m.device == "a-1" for m in c.members)
    ]
    summed = [w.window for w in outcome.messages("a", "control", Window) if "a-1" in w.included]
    if at == "start":
        assert joined == summed == []
    elif at in ("advertise", "sealed", "masked"):
        assert max(joined) >= 1
        assert max(joined) not in summed  # it was in that cohort, and not in its sum
    else:
        assert max(joined) == max(summed)  # its upload was in, and is in the sum


@pytest.mark.slow
def test_a_device_that_is_three_times_slower() -> None:
    outcome = faulty(boundaries=boundaries(6, 6, slow="a-1"))
    check(outcome)
    assert abs(outcome.drop - undisturbed().drop) <= 0.02 * undisturbed().drop
    # It is heard all the same, later and damped.
    mine = [
        (cohort.version - member.base_version, member.weight, member.n)
        for cohort in outcome.messages("a", "control", Cohort)
        for member in cohort.members
        if member.device == "a-1"
    ]
    assert mine
    assert any(age > 0 and weight < 256 * n for age, weight, n in mine)


@pytest.mark.slow
def test_links_with_latency_repeats_and_losses() -> None:
    outcome = faulty(
        simulation={
            "exchange_link": {"latency": 0.2, "jitter": 0.05, "duplicate": 0.1, "loss": 0.05},
            "boundary_link": {"latency": 0.01, "jitter": 0.005, "duplicate": 0.1, "loss": 0.05},
        }
    )
    check(outcome)
    assert abs(outcome.drop - undisturbed().drop) <= 0.02 * undisturbed().drop
    # The faults were there: some records stand on their topics twice.
    for broker, topics in (
        ("a", ["control"]),
        ("b", ["handshake"]),
        ("exchange", list(outcome.topics["exchange"])),
    ):
        records = [record for topic in topics for record in outcome.topics[broker][topic]]
        values = [(record.topic, record.key, record.headers, record.value) for record in records]
        assert len(set(values)) < len(values)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_shipped_model_learns_as_well_with_a_device_that_leaves() -> None:
    """The same with real training: a tiny budget, and a device that vanishes after its upload."""
    pytest.importorskip("torch")

    def train(**changes: Any) -> dict[str, Any]:
        settings = federation(
            name="model",
            learner={"kind": "lora"},
            boundaries=[
                {
                    "name": "a",
                    "devices": 4,
                    "data": {"source": "stdlib:tkinter", "max_documents": 16, "max_validation_tokens": 1024},
                },
                {
                    "name": "b",
                    "devices": 4,
                    "data": {"source": "stdlib:email", "max_documents": 16, "max_validation_tokens": 1024},
                },
            ],
            budget={"commits": 2},
            sync={"windows": 1, "steps": 3},
            training={"batch_size": 4, "sequence_length": 64, "lr": 1e-2},
            **changes,
        )
        return run_virtual(Federation(settings, None, recorder_for(settings)).run).summary

    plain = train()
    faulted = train(simulation={"faults": [{"device": "a-1", "at": "consistency", "window": 0}]})
    for summary in (plain, faulted):
        assert summary["audit"]["ok"]
        assert summary["commits"] == 2
    assert plain["final_loss"]["overall"] < plain["base_loss"]["overall"]
    difference = abs(faulted["final_loss"]["overall"] - plain["final_loss"]["overall"])
    assert difference <= 0.02 * plain["final_loss"]["overall"]
