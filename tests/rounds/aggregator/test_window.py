"""Who is in a window, and what its decision record says: the two functions alone, without an aggregator."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.messages.boundary import MAX_COHORT, Base, WindowOpen
from echelon.messages.manifest import SecureTerms
from echelon.messages.wire import DeviceId
from echelon.rounds.aggregator.attendance import CheckIn
from echelon.rounds.aggregator.window import Selection, cohort_of, select
from tests.worlds.boundary_world import manifest_for

VERSION = 5
SECURE = manifest_for(k_min=3, cohort_max=4, staleness=(256, 181, 148)).secure


def check(
    offer: int = 1, *, n: int = 2, base: int = VERSION, shards: Collection[int] = (), edge: str = ""
) -> CheckIn:
    jobs = (7,) if edge else ()
    return CheckIn(offer, n, base, bytes(32), 0, tuple(shards), edge, jobs)


def selected(checks: Sequence[CheckIn], secure: SecureTerms = SECURE, **options: object) -> Selection:
    ready = [(DeviceId(f"d{place}"), one) for place, one in enumerate(checks)]
    return select(ready, secure, VERSION, **options)  # type: ignore[arg-type]


def chosen(selection: Selection) -> list[str]:
    return [one.device for one in selection.chosen]


def test_whoever_is_first_in_turn_is_taken_up_to_the_largest_cohort() -> None:
    found = selected([check() for _ in range(6)])
    assert chosen(found) == ["d0", "d1", "d2", "d3"]
    assert found.present == {f"d{number}" for number in range(6)}
    assert found.rejected == ()


def test_a_weight_is_n_by_the_table() -> None:
    found = selected([check(n=3, base=VERSION - age) for age in range(3)])
    assert [one.weight for one in found.chosen] == [3 * 256, 3 * 181, 3 * 148]


@pytest.mark.parametrize("base", [VERSION - 3, VERSION + 1])
def test_an_offer_outside_the_table_is_rejected_by_its_number(base: int) -> None:
    found = selected([check(), check(offer=9, base=base), check()])
    assert chosen(found) == ["d0", "d2"]
    assert [(one.device, one.offer) for one in found.rejected] == [("d1", 9)]
    assert found.present == {"d0", "d2"}


def test_barred_devices_and_those_of_lost_edges_are_rejected() -> None:
    secure = SECURE.model_copy(update={"cohort_max": 16})
    checks = [check(edge="near"), check(edge="far"), check(), check(edge="near"), check(edge="near")]
    found = selected(checks, secure, barred={DeviceId("d2")}, lost={"far"})
    assert chosen(found) == ["d0", "d3", "d4"]
    assert [one.device for one in found.rejected] == ["d1", "d2"]


def test_a_cohort_names_no_more_rejected_offers_than_its_record_holds() -> None:
    found = selected([check(base=0) for _ in range(MAX_COHORT + 5)])
    assert len(found.rejected) == MAX_COHORT


def test_two_offers_on_one_shard_are_never_in_one_cohort() -> None:
    checks = [check(shards=[0]), check(shards=[0, 1]), check(shards=[1]), check(shards=[2])]
    found = selected(checks)
    assert chosen(found) == ["d0", "d2", "d3"]
    assert found.present == {"d0", "d1", "d2", "d3"}  # who is left out stays ready
    assert found.rejected == ()


def test_an_edge_with_fewer_devices_than_the_floor_is_not_in_the_window() -> None:
    secure = SECURE.model_copy(update={"cohort_max": 16})
    few = [check(edge="near"), check(edge="near"), check(), check(), check()]
    assert chosen(selected(few, secure)) == ["d2", "d3", "d4"]
    enough = [*few, check(edge="near")]
    assert chosen(selected(enough, secure)) == ["d0", "d1", "d2", "d3", "d4", "d5"]


def test_an_edge_that_the_bound_of_the_cohort_cuts_below_the_floor_goes_altogether() -> None:
    """Four are taken of seven: two of the edge's three are among them, too few to release their middles."""
    checks = [check(), check(), check(edge="near"), check(edge="near"), check(edge="near")]
    assert chosen(selected(checks)) == ["d0", "d1"]


def test_an_edge_whose_devices_have_different_bases_is_taken_only_when_the_deadline_is_over() -> None:
    secure = SECURE.model_copy(update={"cohort_max": 16})
    checks = [check(edge="near"), check(edge="near", base=VERSION - 1), check(edge="near", base=VERSION - 2)]
    assert chosen(selected(checks, secure)) == []
    assert chosen(selected(checks, secure, overdue=True)) == ["d0", "d1", "d2"]


@given(
    st.lists(
        st.builds(
            check,
            base=st.integers(VERSION - 4, VERSION + 1),
            shards=st.sets(st.integers(0, 5), max_size=2),
            edge=st.sampled_from(["", "near", "far"]),
        ),
        max_size=12,
    ),
    st.booleans(),
)
def test_whatever_is_ready_each_device_is_in_one_place(checks: list[CheckIn], overdue: bool) -> None:
    found = selected(checks, overdue=overdue)
    names = set(chosen(found))
    rejected = {one.device for one in found.rejected}
    assert names <= found.present
    assert not found.present & rejected
    assert found.present | rejected == {f"d{number}" for number in range(len(checks))}
    assert len(names) == len(found.chosen) <= SECURE.cohort_max
    assert all(not set(a.check.shards) & set(b.check.shards) for a, b in combinations(found.chosen, 2))
    for edge in ("near", "far"):
        assert sum(one.check.edge == edge for one in found.chosen) not in range(1, SECURE.floor)


OPENED = WindowOpen(window=8, version=VERSION, commit=2)
BASES = tuple(Base(version=version, sha256=bytes([version]) * 32) for version in range(3, VERSION + 1))


def test_a_cohorts_record_is_sorted_and_names_the_bases_that_were_used() -> None:
    checks = {"c": check(offer=4, n=1), "a": check(offer=5, base=VERSION - 2), "b": check(offer=6, n=3)}
    found = select([(DeviceId(name), one) for name, one in checks.items()], SECURE, VERSION)
    cohort = cohort_of(found, OPENED, SECURE, bases=BASES, inputs=77)
    assert (cohort.window, cohort.version, cohort.commit, cohort.inputs) == (8, VERSION, 2, 77)
    assert [(one.device, one.offer, one.n, one.base_version) for one in cohort.members] == [
        ("a", 5, 2, VERSION - 2), ("b", 6, 3, VERSION), ("c", 4, 1, VERSION),
    ]  # fmt: skip
    assert cohort.bases == (BASES[0], BASES[2])  # the version that nobody trained from is not named
    assert cohort.threshold == 2


def test_the_version_of_the_sum_is_named_though_nobody_trained_from_it() -> None:
    found = selected([check(base=VERSION - 1) for _ in range(3)])
    assert cohort_of(found, OPENED, SECURE, bases=BASES, inputs=0).bases == BASES[1:]


def test_one_cap_holds_for_every_weight_of_a_cohort() -> None:
    found = selected([check(n=16), check(n=1), check(n=1), check(n=1)])
    weights = [one.weight for one in cohort_of(found, OPENED, SECURE, bases=BASES, inputs=0).members]
    assert weights == [384, 256, 256, 256]  # C + 3 · 256 ≥ 3 · C
    assert [one.weight for one in found.chosen] == [16 * 256, 256, 256, 256]  # before the cap


def test_what_a_member_trained_on_and_with_whom_stands_in_its_record() -> None:
    found = selected([check(edge="near", shards=[place]) for place in range(3)])
    members = cohort_of(found, OPENED, SECURE, bases=BASES, inputs=0).members
    assert [(one.edge, one.jobs, one.shards) for one in members] == [
        ("near", (7,), (place,)) for place in range(3)
    ]
