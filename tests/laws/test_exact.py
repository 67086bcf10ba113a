from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.errors import CodecError
from echelon.laws.exact import cosine, dot, dots, norm2

WIDE = arrays(np.int32, 9, elements=st.integers(-(2**31) + 1, 2**31 - 1))


NARROW = arrays(np.int16, 9, elements=st.integers(-32767, 32767))


@pytest.mark.slow
@given(st.one_of(st.tuples(WIDE, WIDE), st.tuples(NARROW, NARROW), st.tuples(NARROW, WIDE)))
def test_reductions_are_exact(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    assert dot(a, b) == sum(int(x) * int(y) for x, y in zip(a, b, strict=True))
    assert norm2(a) == sum(int(x) ** 2 for x in a)
    assert -1.0000001 <= cosine(a, b) <= 1.0000001


def test_reductions_of_the_largest_values_do_not_overflow() -> None:
    a = np.full(200_000, 2**31 - 1, np.int32)
    assert norm2(a) == 200_000 * (2**31 - 1) ** 2
    assert dot(a, -a) == -norm2(a)
    assert cosine(a, -a) == pytest.approx(-1)
    assert cosine(a, np.zeros_like(a)) == 0.0
    assert Fraction(norm2(a[:3].astype(np.int16) * 0 + np.int16(-32767))) == 3 * 32767**2
    with pytest.raises(CodecError):
        dot(a, a[1:])


@pytest.mark.parametrize("size", [1, 9, (1 << 16) + 3])
def test_many_products_are_each_that_of_its_pair(size: int) -> None:
    wide = np.resize(np.array([2**31 - 1, -(2**31) + 1, 65536, -1, 0], np.int32), size)
    narrow = np.resize(np.array([32767, -32767, 1], np.int16), size)
    for a in (wide, narrow):
        others = [narrow, a, wide[::-1], narrow[::-1], a]
        exact = [sum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True)) for b in others]
        assert dots(a, others) == exact
        assert dots(a, []) == []
    with pytest.raises(CodecError, match="no dot product"):
        dots(wide, [wide, wide[1:] if size > 1 else wide[:0]])
