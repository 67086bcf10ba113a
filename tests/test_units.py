"""Quantities are short, and within half a unit of their last digit."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.units import PREFIXES, quantity, size


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (3_482, "3.48 kB"),
        (99_500, "100 kB"),
        (999_400, "999 kB"),
        (4_000_000, "4 MB"),
        (1.2e9, "1.2 GB"),
        (-5_000, "-5 kB"),
    ],
)
def test_bytes_have_decimal_prefixes_and_three_digits(value: float, text: str) -> None:
    assert size(value) == text


def test_fewer_digits_leave_whole_numbers_whole() -> None:
    assert [size(value, 2) for value in (12, 1_249, 633_000, 3_451_000)] == [
        "12 B",
        "1.2 kB",
        "633 kB",
        "3.5 MB",
    ]
    assert quantity(10e6, "bit/s") == "10 Mbit/s"
    assert quantity(1.5e12, "FLOP/s") == "1.5 TFLOP/s"


@given(st.integers(0, 10**20))
def test_a_size_is_short_and_says_what_it_was_given(number: int) -> None:
    text = size(number)
    assert len(text) <= 7
    digits, unit = text.split(" ")
    shown = float(digits) * 1000 ** PREFIXES.index(unit.removesuffix("B"))
    assert abs(shown - number) <= 0.00501 * number


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_no_quantity(value: float) -> None:
    with pytest.raises(ValueError, match="no quantity"):
        size(value)
