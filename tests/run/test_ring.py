"""Federations whose devices mask with their neighbours on a ring: the same sums, and an audit that derives them."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.messages.boundary import Cohort, SealedDelta, Window
from echelon.messages.handshake import Sealed
from echelon.secagg.context import ring_threshold
from tests.run.runs import boundaries, check_windows, federation, run

RING = {"neighbours": 6}


@pytest.mark.slow
def test_a_large_cohort_masks_on_a_ring_and_a_small_one_does_not() -> None:
    settings = federation(boundaries=boundaries(14, 4), secure=RING)
    outcome = run(settings)
    assert outcome.summary["audit"]["ok"]
    assert outcome.summary["commits"] == 3
    for boundary, count, shares in (("a", 14, 6), ("b", 4, 3)):
        cohorts = outcome.messages(boundary, "control", Cohort)
        assert {len(cohort.members) for cohort in cohorts} == {count}
        assert {cohort.threshold for cohort in cohorts} == {ring_threshold(6, 0) if count == 14 else 3}
        sealed = outcome.messages(boundary, "handshake", Sealed)
        assert {len(message.entries) for message in sealed} == {shares}
        assert len(outcome.messages(boundary, "control", Window)) == len(cohorts)
    plain = run(federation(boundaries=boundaries(14, 4)))
    assert outcome.drop == pytest.approx(plain.drop, rel=1e-3)


@pytest.mark.slow
def test_devices_that_drop_out_of_a_ring_are_left_out_and_the_audit_holds() -> None:
    faults = [
        {"device": "a-3", "at": "masked", "window": 1},
        {"device": "a-9", "at": "unmask", "window": 2},
    ]
    outcome = run(
        federation(boundaries=boundaries(14), secure=RING, sync={"windows": 1}, simulation={"faults": faults})
    )
    assert outcome.summary["audit"]["ok"]
    check_windows(outcome.records("a", "control"), outcome.messages("a", "delta", SealedDelta))
    heads = [len(window.included) for window in outcome.messages("a", "control", Window)]
    assert heads[0] == 14
    assert min(heads) < 14
    assert np.isfinite(outcome.drop)


@pytest.mark.parametrize(
    ("secure", "complaint"),
    [
        ({"neighbours": 5}, "neighbours"),
        ({"neighbours": 6, "colluding": 2}, "raise neighbours to 8 or more"),
        ({"neighbours": 2}, "neighbours"),
    ],
)
def test_a_ring_that_could_lose_nobody_is_refused(secure: dict[str, int], complaint: str) -> None:
    fields = {"name": "x", "boundaries": boundaries(14), "budget": {"commits": 1}, "secure": secure}
    with pytest.raises(ConfigError, match=complaint):
        parse(fields, "x.yaml")
