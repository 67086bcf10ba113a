from __future__ import annotations

import math
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import ConfigError
from echelon.laws.staleness import UNIT, StalenessRule, buckets, table


@given(
    st.sampled_from(list(StalenessRule)),
    st.integers(0, 255),
    st.floats(0, 10),
    st.floats(0, 1000),
    st.integers(0, 255),
)
def test_weights_start_at_the_unit_and_never_grow_with_age(
    rule: StalenessRule, horizon: int, exponent: float, slope: float, knee: int
) -> None:
    found = table(rule, horizon, exponent=exponent, slope=slope, knee=knee)
    assert len(found) == horizon + 1
    assert found[0] == UNIT
    assert all(before >= after >= 1 for before, after in pairwise(found))


def test_each_rule_by_hand() -> None:
    assert table(StalenessRule.CONSTANT, 3) == (256, 256, 256, 256)
    assert table(StalenessRule.POLYNOMIAL, 3, exponent=1.0) == (256, 128, 85, 64)
    assert table(StalenessRule.HINGE, 4, slope=1.0, knee=2) == (256, 256, 256, 128, 85)
    assert table(StalenessRule.COSINE, 3, decay=0.0) == (256, 219, 128, 37)
    assert table(StalenessRule.COSINE, 3, decay=1.0, cutoff=6) == (256, 88, 26, 6)


def test_the_cosine_rule_comes_to_nothing_right_behind_the_horizon_or_later() -> None:
    assert table(StalenessRule.COSINE, 255)[-1] == 1
    plain = table(StalenessRule.COSINE, 8, decay=0.2, cutoff=1 << 20)
    assert plain == tuple(round(UNIT * math.exp(-0.2 * tau)) for tau in range(9))
    with pytest.raises(ConfigError, match="cutoff = 8 is within the horizon of 8"):
        table(StalenessRule.COSINE, 8, cutoff=8)


@pytest.mark.parametrize("horizon", [-1, 256])
def test_the_horizon_has_bounds(horizon: int) -> None:
    with pytest.raises(ConfigError, match="horizon"):
        table(StalenessRule.CONSTANT, horizon)


@pytest.mark.parametrize("fields", [{"exponent": -0.1}, {"slope": -1.0}, {"knee": -1}, {"decay": -0.1}])
def test_no_rule_may_reward_lateness(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="late updates would count for more"):
        table(StalenessRule.POLYNOMIAL, 3, **fields)  # type: ignore[arg-type]


@given(st.integers(0, 1 << 40), st.integers(1, 1 << 30), st.integers(1, 1 << 16))
def test_n_is_tokens_in_buckets_rounded_and_within_bounds(tokens: int, size: int, most: int) -> None:
    n = buckets(tokens, size, most)
    assert 1 <= n <= most
    if 1 < n < most:
        assert abs(Fraction(tokens, size) - n) <= Fraction(1, 2)


def test_buckets_round_half_up() -> None:
    assert [buckets(tokens, 10, 100) for tokens in (0, 4, 14, 15, 24, 25, 5000)] == [1, 1, 1, 2, 2, 3, 100]
