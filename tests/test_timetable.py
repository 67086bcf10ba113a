"""Values that change at set times: what holds when, and how long an amount takes."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ConfigError
from echelon.timetable import Timetable

DAY = Timetable(10.0, ((8.0, 1.0), (20.0, 10.0)), 24.0)


@pytest.mark.parametrize(
    ("seconds", "value"),
    [(0, 10), (7.9, 10), (8, 1), (19.9, 1), (20, 10), (24, 10), (32, 1), (24 * 9 + 19, 1)],
)
def test_a_value_holds_from_its_time_on_and_comes_back_each_period(seconds: float, value: float) -> None:
    assert DAY.at(seconds) == value


def test_without_a_period_the_last_value_stays() -> None:
    slowing = Timetable(1.0, ((5.0, 0.5),))
    assert [slowing.at(when) for when in (0, 5, 1e6)] == [1.0, 0.5, 0.5]
    assert slowing.least == 0.5


def test_what_is_under_way_when_the_rate_changes_goes_on_at_the_new_one() -> None:
    assert DAY.duration(7.0, 5.0) == 0.5
    assert DAY.duration(7.0, 12.0) == 1.0 + 2.0
    assert DAY.duration(7.0, 10.0 + 12.0 + 30.0) == 1.0 + 12.0 + 3.0
    assert DAY.duration(24 * 3 + 7.0, 12.0) == 3.0
    a_day = 80.0 + 12.0 + 40.0
    assert DAY.duration(0.0, 1e6 * a_day) == pytest.approx(24e6)


def test_a_change_at_the_very_beginning_takes_the_first_value_s_place() -> None:
    table = Timetable(5.0, ((0.0, 1.0), (2.0, 4.0)), 4.0)
    assert [table.at(when) for when in (0.0, 2.0, 4.0)] == [1.0, 4.0, 1.0]
    assert table.duration(0.0, 10.0 + 2.0) == 6.0


def test_a_constant_rate_is_a_division_and_no_rate_is_refused() -> None:
    assert Timetable(0.3).duration(7.7, 0.1) == 0.1 / 0.3
    assert Timetable(math.inf, ((1.0, 2.0),)).duration(0.0, 1e9) == 0.0
    assert Timetable(math.inf, ((1.0, 2.0),)).duration(1.0, 4.0) == 2.0
    assert Timetable(math.inf, ((1.0, math.inf),), 2.0).duration(0.5, 0.0) == 0.0
    assert Timetable(math.inf, ((1.0, 2.0),), 2.0).duration(1.0, 100.0) == 1.0
    with pytest.raises(ConfigError, match="above 0"):
        Timetable(1.0, ((1.0, 0.0),)).duration(0.0, 1.0)


@given(
    rates=st.lists(st.floats(0.1, 100), min_size=1, max_size=5),
    gaps=st.lists(st.floats(0.1, 10), min_size=5, max_size=5),
    begin=st.floats(0, 1000),
    amounts=st.tuples(st.floats(0, 500), st.floats(0, 500)),
    periodic=st.booleans(),
)
def test_two_amounts_one_after_the_other_take_as_long_as_both_together(
    rates: list[float],
    gaps: list[float],
    begin: float,
    amounts: tuple[float, float],
    periodic: bool,
) -> None:
    times = [sum(gaps[: place + 1]) for place in range(len(rates) - 1)]
    changes = tuple(zip(times, rates[1:], strict=True))
    table = Timetable(rates[0], changes, sum(gaps) + 0.1 if periodic else None)
    one = table.duration(begin, amounts[0])
    two = table.duration(begin + one, amounts[1])
    both = table.duration(begin, sum(amounts))
    assert one + two == pytest.approx(both, rel=1e-6, abs=1e-6)
    assert sum(amounts) / max(rates) - 1e-6 <= both <= sum(amounts) / min(rates) + 1e-6


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"changes": ((-1.0, 1.0),)}, "at least 0"),
        ({"changes": ((math.inf, 1.0),)}, "finite"),
        ({"changes": ((2.0, 1.0), (2.0, 3.0))}, "after the one before"),
        ({"period": 0.0}, "period is 0"),
        ({"changes": ((5.0, 1.0),), "period": 5.0}, "not within the period"),
    ],
)
def test_times_that_make_no_sense_are_refused(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Timetable(1.0, **wrong)  # type: ignore[arg-type]
