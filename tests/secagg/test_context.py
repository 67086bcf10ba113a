from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from echelon.secagg.context import threshold


@given(n=st.integers(2, 300), c=st.integers(0, 20))
def test_the_threshold_is_the_smallest_that_two_groups_cannot_reach_apart(n: int, c: int) -> None:
    t = threshold(n, c)
    assert 2 * t > n + c
    assert 2 * (t - 1) <= n + c
