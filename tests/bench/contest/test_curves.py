"""Reading a curve: between points, beyond its end, and where a run never gets."""

from __future__ import annotations

from typing import Any

import pytest

from bench.contest.curves import first_at, loss_at, loss_by, standing, time_to


def point(t: float, tokens: int, loss: float | None, out: int = 0, inward: int = 0) -> dict[str, Any]:
    return {"t": t, "tokens": tokens, "out": out, "in": inward, "commits": tokens // 100, "loss": loss}


CURVE = [point(0, 0, 4.0), point(1, 100, None), point(2, 200, 3.0, 50, 150), point(4, 400, 2.0, 100, 300)]


@pytest.mark.parametrize(
    ("axis", "where", "loss"),
    [("tokens", 0, 4.0), ("tokens", 100, 3.5), ("tokens", 300, 2.5), ("t", 3, 2.5), ("bytes", 100, 3.5),
     ("bytes", 300, 2.5), ("commits", 2, 3.0), ("tokens", 9_999, 2.0)],
)  # fmt: skip
def test_the_loss_is_linear_between_evaluated_points_and_stays_at_the_last(
    axis: Any, where: float, loss: float
) -> None:
    assert loss_at(CURVE, axis, where) == pytest.approx(loss)


def test_before_the_first_point_there_is_no_loss() -> None:
    assert loss_at(CURVE[2:], "tokens", 100) is None
    assert loss_at([], "tokens", 1) is None


def test_the_time_to_a_target_is_where_the_curve_first_crosses_it() -> None:
    assert time_to(CURVE, 3.5) == pytest.approx(1.0)
    assert time_to(CURVE, 2.0) == pytest.approx(4.0)
    up_and_down = [point(0, 0, 4.0), point(1, 1, 2.0), point(2, 2, 3.0), point(3, 3, 2.0)]
    assert time_to(up_and_down, 2.5) == pytest.approx(0.75)


def test_a_run_that_never_gets_there_is_censored() -> None:
    assert time_to(CURVE, 1.9) is None


def test_what_stands_at_a_moment_is_the_last_commits_adapter() -> None:
    """A commit without a loss lies between its neighbours; nothing stands between two commits."""
    assert [one["loss"] for one in standing([*CURVE, point(5, 500, None)])] == pytest.approx(
        [4.0, 3.5, 3.0, 2.0]
    )
    assert first_at(CURVE, 3.6) == 1
    assert first_at(CURVE, 3.4) == 2
    assert first_at(CURVE, 2.0) == 4
    assert first_at(CURVE, 1.9) is None
    assert [loss_by(CURVE, "t", t) for t in (0, 1.5, 3.9, 4, 9)] == pytest.approx([4.0, 3.5, 3.0, 2.0, 2.0])
    assert loss_by(CURVE, "bytes", 399) == 3.0
    assert loss_by(CURVE, "commits", 4) == 2.0
    assert loss_by(CURVE[2:], "tokens", 100) is None


def test_one_commit_late_is_no_earlier_than_many_on_the_way() -> None:
    """Between two points a single late commit would be at any target halfway before it is there."""
    late = [point(0, 0, 4.0), point(10, 100, 2.0)]
    assert time_to(late, 3.0) == pytest.approx(5.0)
    assert first_at(late, 3.0) == 10
