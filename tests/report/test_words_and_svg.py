"""Figures in words, ticks, and how bars are laid out."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.report import formatting as words
from echelon.report.page import shell_word
from echelon.report.svg import Span, lanes, ticks


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (9_874, "9,874"),
        (12_345, "12.3 k"),
        (999_990, "1 M"),
        (1_970_000, "1.97 M"),
        (3.2e13, "32 T"),
        (None, "–"),
    ],
)
def test_amount(value: float | None, text: str) -> None:
    assert words.amount(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (3_482, "3.48 kB"),
        (None, "–"),
    ],
)
def test_size(value: float | None, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.2, "4.2 s"), (185, "3 min 5 s"), (7800, "2 h 10 min"), (math.nan, "–"), (None, "–")],
)
def test_duration(value: float | None, text: str) -> None:
    assert words.duration(value) == text


def test_percent() -> None:
    assert words.percent(2.0, 1.5) == "−25.0 %"
    assert words.percent(2.0, 2.5) == "+25.0 %"
    assert words.percent(0.0, 1.0) == ""
    assert words.percent(None, 1.0) == ""


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_every_number_has_words(value: float) -> None:
    for write in (words.loss, words.amount, words.size, words.duration):
        assert write(value)


@given(st.floats(-1e9, 1e9), st.floats(1e-6, 1e9), st.integers(2, 12))
def test_ticks_are_few_rising_and_inside(low: float, span: float, about: int) -> None:
    high = low + span
    found = ticks(low, high, about)
    slack = span * 1e-6 + abs(low) * 1e-9
    assert len(found) <= about + 2
    assert found == sorted(found)
    assert all(low - slack <= value <= high + slack for value in found)


@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(2, 12))
def test_whole_ticks_are_whole(low: int, span: int, about: int) -> None:
    assert all(value == int(value) for value in ticks(low, low + span, about, whole=True))


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(1, 20)), max_size=30))
def test_no_two_bars_overlap_and_no_lane_is_wasted(pairs: list[tuple[int, int]]) -> None:
    spans = [Span(a, a + d, (), "", "closed") for a, d in pairs]
    rows = lanes(spans)
    assert sorted((s.start, s.end) for row in rows for s in row) == sorted((s.start, s.end) for s in spans)
    for row in rows:
        assert all(before.end <= after.start for before, after in pairwise(row))
    busiest = max((sum(s.start <= t < s.end for s in spans) for t in range(71)), default=0)
    assert len(rows) <= max(busiest, 1)


def test_a_path_is_one_word_of_a_command() -> None:
    assert shell_word("runs/quickstart") == "runs/quickstart"
    assert shell_word("my run; rm -rf ~") == "'my run; rm -rf ~'"
    assert shell_word("it's") == "'it'\\''s'"
    assert shell_word("-x") == "'-x'"
