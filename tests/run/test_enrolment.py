"""A boundary enrols more devices than a cohort holds: a whole run, and what the run file may ask for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from echelon.errors import ConfigError
from echelon.messages.boundary import Cohort, Ready, Window
from echelon.provision.manifest_from_settings import secure_terms
from tests.run.runs import boundaries, check_offers, federation, run

ENROLLED = 230
COHORT = 6


def crowded(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "boundaries": [{"name": "a", "devices": ENROLLED, "data": {"source": "text:unused"}}],
        "secure": {"cohort_max": COHORT, "staleness": {"horizon": 100}},
        "window": {"cohort": COHORT, "deadline": 500, "round_timeout": 100, "patience": 5, "ahead": 1},
        "sync": {"windows": 2, "steps": 1},
        "learner": {"kind": "quadratic", "dim": 8},
        "budget": {"commits": 4},
    }
    return federation(**(fields | changes))


@pytest.mark.slow
def test_more_devices_than_any_cohort_holds_take_turns() -> None:
    outcome = run(crowded())
    assert outcome.summary["audit"]["ok"]
    assert outcome.records("a", "deadletter") == []
    check_offers(outcome.records("a", "control"))
    cohorts = outcome.messages("a", "control", Cohort)
    assert len(cohorts) >= 8
    assert {len(cohort.members) for cohort in cohorts} == {COHORT}
    assert all(cohort.rejected == () for cohort in cohorts)
    assert len(outcome.messages("a", "control", Window)) >= 8
    turns = Counter(member.device for cohort in cohorts for member in cohort.members)
    assert set(turns.values()) == {1}  # 230 devices in sixes: nobody has a second turn yet
    offers = Counter(
        envelope.sender for envelope in outcome.envelopes("a", "checkin") if envelope.type == Ready.kind
    )
    assert len(offers) == ENROLLED
    waiting = [device for device in offers if device not in turns]
    # Who was in no window offered once, and did nothing in vain: no offer grew too old, none was made again.
    assert {offers[device] for device in waiting} == {1}


def test_the_bound_of_a_cohort_is_not_the_number_of_devices() -> None:
    assert secure_terms(crowded()).cohort_max == COHORT
    assert secure_terms(crowded(secure={}, window={})).cohort_max == 200
    assert secure_terms(federation()).cohort_max == 4
    assert secure_terms(federation(boundaries=boundaries(4, 7), secure={"cohort_max": 5})).cohort_max == 5


def test_a_smaller_cohort_leaves_finer_steps_in_the_ring() -> None:
    """The ring must hold the sum of a cohort, not of everybody: fewer summands, more bits for each."""
    few, many = secure_terms(crowded()), secure_terms(crowded(secure={}, window={}))
    assert few.scale_bits >= many.scale_bits + 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"secure": {"cohort_max": 2}, "window": {}}, "secure.cohort_max = 2 in boundary 'a' is below secure.k_min"),
        ({"secure": {"k_min": 150, "colluding": 60}, "window": {}}, "at most 200 devices: lower the floor"),
        ({"secure": {"cohort_max": 201}}, "less than or equal to 200"),
        ({"boundaries": [{"name": "a", "devices": 5000, "data": {"source": "text:x"}}]}, "less than or equal to 4096"),
        (
            {"boundaries": [{"name": "a", "devices": [{"id": f"d{k}"} for k in range(4097)],
                             "data": {"source": "text:x"}}]},
            "at most 4096 can be enrolled",
        ),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_what_to_do(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        crowded(**changes)
