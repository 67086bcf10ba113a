from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from echelon.laws.together import LEAST_SHARED, helped_by, ranges, together


class Backwards:
    """Runs the last part first."""

    def run(self, parts: Sequence[Callable[[], Any]]) -> list[Any]:
        return [part() for part in reversed(parts)][::-1]


def test_parts_run_in_order_where_nobody_helps() -> None:
    ran: list[int] = []
    together([lambda: ran.append(1), lambda: ran.append(2)])
    assert ran == [1, 2]


def test_results_are_in_order_whoever_runs_the_parts() -> None:
    ran: list[int] = []

    def part(number: int) -> int:
        ran.append(number)
        return number

    with helped_by(Backwards()):
        assert together([lambda: part(1), lambda: part(2)]) == [1, 2]
    assert ran == [2, 1]
    assert together([lambda: part(3), lambda: part(4)]) == [3, 4]
    assert ran == [2, 1, 3, 4]


@pytest.mark.parametrize("size", [1, LEAST_SHARED - 1, LEAST_SHARED, LEAST_SHARED + 1, 3 * LEAST_SHARED + 7])
def test_ranges_cover_every_block_once(size: int) -> None:
    block = 1 << 14
    assert ranges(size, block) == [range(0, size, block)]
    with helped_by(Backwards()):
        parts = ranges(size, block)
    assert [start for part in parts for start in part] == list(range(0, size, block))
    assert len(parts) == (2 if size >= LEAST_SHARED else 1)
