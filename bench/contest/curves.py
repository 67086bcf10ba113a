"""Reading a curve: the loss at so many tokens, bytes, seconds or syncs, and the time at which a loss is reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal

Point = dict[str, Any]
Axis = Literal["t", "tokens", "bytes", "commits"]
When = Callable[[Sequence[Point], float], float | None]
"""When a curve is at a target, in seconds; None: never."""


def place(point: Point, axis: Axis) -> float:
    """Where a point is on an axis; bytes are those of both directions."""
    return float(point["out"] + point["in"]) if axis == "bytes" else float(point[axis])


def evaluated(curve: Sequence[Point]) -> list[Point]:
    """The points that have a loss."""
    return [point for point in curve if point["loss"] is not None]


def loss_at(curve: Sequence[Point], axis: Axis, where: float) -> float | None:
    """The loss at a place, linear between evaluated points; the last loss behind the last; None before the first."""
    points = evaluated(curve)
    if not points or where < place(points[0], axis):
        return None
    before = points[0]
    for point in points[1:]:
        x0, x1 = place(before, axis), place(point, axis)
        if where <= x1:
            share = (where - x0) / (x1 - x0) if x1 > x0 else 1.0
            return float(before["loss"] + share * (point["loss"] - before["loss"]))
        before = point
    return float(before["loss"])


def at_budget(line: Mapping[str, Any]) -> float | None:
    """The loss at a run's token budget: it ends with the commit that passes it, and trained a little more."""
    return loss_at(line["curve"], "tokens", line["budget"])


def time_to(curve: Sequence[Point], target: float) -> float | None:
    """Seconds at which the loss first is at the target, linear between evaluated points; None: it never was."""
    points = evaluated(curve)
    for before, point in pairwise(points):
        if point["loss"] <= target:
            fall = before["loss"] - point["loss"]
            share = (before["loss"] - target) / fall if fall > 0 else 1.0
            return float(before["t"] + min(max(share, 0.0), 1.0) * (point["t"] - before["t"]))
    return None


def standing(curve: Sequence[Point]) -> list[Point]:
    """Every commit up to the last evaluated one, with a loss; one that was not evaluated lies between its neighbours.

    What a reader has at a moment is the adapter of the last commit, not one between two of them: curves of few commits
    are read so. The loss of a commit that was not evaluated is linear in tokens between those that were.
    """
    end = max((number for number, point in enumerate(curve, 1) if point["loss"] is not None), default=0)
    return [
        point
        if point["loss"] is not None
        else {**point, "loss": loss_at(curve, "tokens", place(point, "tokens"))}
        for point in curve[:end]
    ]


def first_at(curve: Sequence[Point], target: float) -> float | None:
    """Seconds of the first commit whose loss is at the target; None: no commit's was."""
    return next((float(point["t"]) for point in standing(curve) if point["loss"] <= target), None)


def loss_by(curve: Sequence[Point], axis: Axis, where: float) -> float | None:
    """The loss of the last commit that is not beyond a place; None before the first."""
    found = [point for point in standing(curve) if place(point, axis) <= where]
    return float(found[-1]["loss"]) if found else None
