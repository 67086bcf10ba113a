"""Times that several parties state: one that lies moves nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.laws.timing import CONTROLLER, NOTHING, middle, second_smallest
from echelon.messages.exchange import Pace
from echelon.pace.base import PaceInputs
from echelon.pace.echelon_da import DriftPace
from tests.pace.test_echelon_da import START, controller
from tests.worlds.drift_world import UNIT, World, cluster, merged, window

Lie = Callable[[int, int, int], tuple[int, int]]
TIMES = st.integers(1, 1 << 62)


@given(st.lists(TIMES, min_size=2, max_size=9), TIMES, st.data())
def test_one_of_three_and_more_stays_within_what_the_others_say(
    honest: list[int], lie: int, data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(honest)))
    stated = [*honest[:place], lie, *honest[place:]]
    assert min(honest) <= middle(stated) <= max(honest)
    assert min(honest) <= second_smallest(stated) <= max(honest)


@given(TIMES, TIMES)
def test_of_two_neither_is_believed_alone(honest: int, lie: int) -> None:
    believed = middle([honest, lie])
    assert believed == 0 or honest <= believed <= 2 * honest


def test_one_alone_is_not_believed() -> None:
    assert middle([]) == middle([7]) == second_smallest([]) == 0


def paces(count: int, lies: Mapping[int, Lie], commits: int = 24, *, sync_us: int = 5_000) -> list[Pace]:
    """What is announced in a world in which some state other times than are true."""
    world = World({b: cluster(b, 3, 2.0, centre=1.0) for b in range(count)}, rate=0.1, sync_us=sync_us)
    world.lies = lambda who, sync, spacing: lies.get(who, lambda *_: (sync, spacing))(who, sync, spacing)
    world.run(DriftPace(controller().terms, START, UNIT, left=2, count=count), START, commits)
    return world.history


LIES: dict[str, Lie] = {
    "1 µs": lambda _, sync, spacing: (sync, 1),
    "a day": lambda _, sync, spacing: (sync, 86_400_000_000),
    "nothing": lambda _, sync, spacing: (0, 0),
    "a sync of 1 µs": lambda _, sync, spacing: (1, spacing),
    "a sync of a day": lambda _, sync, spacing: (86_400_000_000, spacing),
    "both": lambda _, sync, spacing: (86_400_000_000, 1),
}


SLOW = 200_000
"""A sync of six times the interval that a run starts with; 5 ms are hidden by it."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("liar", [CONTROLLER, 0, 2])
def test_one_liar_among_three_boundaries_and_the_controller_moves_nothing(liar: int, name: str) -> None:
    assert paces(3, {liar: LIES[name]}) == paces(3, {})
    lied, honest = (intervals(3, lies) for lies in ({liar: LIES[name]}, {}))
    assert (max(lied), lied[-1]) == (max(honest), honest[-1]), "it may come there by other trials"


@pytest.mark.slow
@pytest.mark.parametrize("name", LIES)
def test_a_lying_controller_of_two_boundaries_moves_nothing(name: str) -> None:
    assert paces(2, {CONTROLLER: LIES[name]}) == paces(2, {})
    assert paces(2, {CONTROLLER: LIES[name]}, sync_us=SLOW) == paces(2, {}, sync_us=SLOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["1 µs", "a day", "a sync of a day", "both"])
def test_a_lying_gate_of_two_moves_nothing_but_by_a_shorter_sync(name: str) -> None:
    assert paces(2, {1: LIES[name]}) == paces(2, {})
    lied, honest = (intervals(2, lies) for lies in ({1: LIES[name]}, {}))
    assert (max(lied), lied[-1]) == (max(honest), honest[-1])


def intervals(count: int, lies: Mapping[int, Lie]) -> list[int]:
    """R·H of each commit while syncs are slow."""
    return [pace.steps * pace.windows for pace in paces(count, lies, sync_us=SLOW)]


def test_a_gate_of_two_that_denies_its_syncs_only_takes_the_floor_away() -> None:
    """The limit: of two sync times nobody knows which is true, and the shorter one counts."""
    assert max(intervals(2, {1: LIES["a sync of 1 µs"]})) <= max(intervals(2, {}))


def test_a_controller_alone_does_not_raise_the_interval() -> None:
    """The attack: 1 µs between commits makes a step look like nothing, and any sync longer than the interval."""
    steps = controller()
    for commit in range(1, 8):
        summary, mean = window(commit, cluster(commit, 3, 1.0), [UNIT] * 3)
        steps, pace = steps.observe(PaceInputs(commit, [merged(0, mean, [summary], sync_us=9000)], (1,)))
        assert pace.steps * pace.windows <= START.steps * START.windows
    assert steps.floor == 0


def test_with_two_reporters_that_agree_the_floor_is_known() -> None:
    world = World({0: cluster(0, 4, 3.0, centre=1.0)}, rate=0.15, sync_us=200_000)
    after, _ = world.run(controller(), START, 30)
    assert after.floor >= 200


def test_what_a_custom_rule_is_given_is_the_middle_too() -> None:
    deltas = [
        merged(b, cluster(0, 1, 1.0)[0], [window(0, cluster(1, 3, 1.0), [UNIT] * 3)[0]], spacing_us=us)
        for b, us in ((0, 900), (1, 1000), (2, 1 << 60))
    ]
    assert PaceInputs(4, deltas, (1,)).spacing_us == 900
    assert PaceInputs(4, deltas[:1], (1000,)).spacing_us == 1000
    assert PaceInputs(4, deltas[:1], (1,)).spacing_us == 0
    assert PaceInputs(4, [], (1000,)).spacing_us == 0
    assert PaceInputs(4, [], ()).reports == ()


def test_the_newest_values_of_each_reporter_are_kept() -> None:
    reports = NOTHING
    for value in range(1, 20):
        reports = reports.add(1, value).add(0, 100 * value)
    assert reports.medians == (1700, 17)
