"""Making a failing schedule as small as it goes: whatever does not matter for the failure is left out.

After Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (IEEE TSE 28(2), 2002): ever smaller
parts of the faults and links are dropped, then boundaries, devices and settings one by one, as long as the same
invariant still does not hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from echelon.errors import ConfigError
from echelon.messages.names import witness_of
from echelon.sim.explorer import judge
from echelon.sim.schedule import Schedule

T = TypeVar("T")


def shrink(
    schedule: Schedule,
    *,
    fails: Callable[[Schedule], bool] | None = None,
    told: Callable[[Schedule], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
    most: int = 400,
) -> Schedule:
    """The smallest schedule found that fails as this one does.

    Args:
        schedule: one that fails.
        fails: whether a schedule does; by default, whether one of the invariants that this one violates is violated.
        told: hears of every smaller one.
        stopped: asked before every run; once it is so, the smallest one so far is it.
        most: runs that may be tried.

    Raises:
        ConfigError: the schedule does not fail.
    """
    if fails is None:
        violated = {finding.invariant for finding in judge(schedule).findings}
        if not violated:
            raise ConfigError(
                f"the schedule of seed {schedule.seed} fails no invariant: there is nothing to shrink"
            )

        def fails(candidate: Schedule) -> bool:
            return bool(violated & {finding.invariant for finding in judge(candidate).findings})

    left = most
    test = fails
    smallest = schedule

    def better(candidate: Schedule | None) -> bool:
        nonlocal left, smallest
        if stopped():
            left = 0
        if candidate is None or left <= 0 or candidate == smallest:
            return False
        left -= 1
        if not test(candidate):
            return False
        smallest = candidate
        told(candidate)
        return True

    while left > 0:
        before = smallest
        _drop(smallest.faults, lambda kept: better(_changed(smallest, faults=tuple(kept))))
        _drop(smallest.links, lambda kept: better(_changed(smallest, links=tuple(kept))))
        progress = True
        while progress and left > 0:
            progress = any(better(candidate) for candidate in _simpler(smallest))
        if smallest == before:
            break
    return smallest


def _drop(items: Sequence[T], keeps_failing: Callable[[list[T]], bool]) -> None:
    """Drop parts of a list: halves first, single items last."""
    kept = list(items)
    size = len(kept)
    while size >= 1:
        place = 0
        while place < len(kept):
            rest = kept[:place] + kept[place + size :]
            if keeps_failing(rest):
                kept = rest
            else:
                place += size
        size //= 2


def _changed(schedule: Schedule, **changes: Any) -> Schedule | None:
    """The schedule with other fields, if that is one: what names an actor that is gone goes with it."""
    fields = schedule.model_dump() | changes
    plain = {name: _plain(value) for name, value in fields.items()}
    try:
        return Schedule.model_validate(plain)
    except (ValidationError, ConfigError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [one if isinstance(one, dict) else one.model_dump() for one in value]
    return value


def _simpler(schedule: Schedule) -> Iterator[Schedule | None]:
    """Schedules with one thing less, the largest first."""
    yield from _without_a_party(schedule)
    yield from _without_a_setting(schedule)


def _without_a_party(schedule: Schedule) -> Iterator[Schedule | None]:
    run = schedule.run
    boundaries = run["boundaries"]
    for boundary in boundaries if len(boundaries) > 1 else ():
        rest = [one for one in boundaries if one is not boundary]
        gone = {boundary["name"], *(device["id"] for device in boundary["devices"])}
        yield _without(schedule, {**run, "boundaries": rest}, gone)
    for boundary in boundaries:
        for device in boundary["devices"]:
            fewer = [one for one in boundary["devices"] if one is not device]
            changed = [{**one, "devices": fewer} if one is boundary else one for one in boundaries]
            yield _without(schedule, {**run, "boundaries": changed}, {device["id"]})
    for boundary in boundaries:
        if "split" in boundary:
            yield from _unsplit(schedule, boundary)
    if "witnesses" in run:
        names = run["witnesses"].get("names", ())
        unwitnessed = {key: value for key, value in run.items() if key != "witnesses"}
        yield _without(schedule, unwitnessed, {witness_of(name) for name in names})


def _without_a_setting(schedule: Schedule) -> Iterator[Schedule | None]:
    run = schedule.run
    commits = run["budget"].get("commits")
    if commits is not None and commits > 1:
        yield _changed(schedule, run={**run, "budget": {**run["budget"], "commits": commits - 1}})
    for part in ("secure", "window", "sync"):
        for name in run.get(part, {}):
            if name not in ("k_min", "cohort"):
                fewer_settings = {key: value for key, value in run[part].items() if key != name}
                yield _changed(schedule, run={**run, part: fewer_settings})


def _unsplit(schedule: Schedule, boundary: dict[str, Any]) -> Iterator[Schedule | None]:
    """Without the boundary's edges, or with one setting less of them."""
    boundaries, split = schedule.run["boundaries"], boundary["split"]

    def changed(new: dict[str, Any]) -> dict[str, Any]:
        return {**schedule.run, "boundaries": [new if one is boundary else one for one in boundaries]}

    whole = {key: value for key, value in boundary.items() if key != "split"}
    yield _without(schedule, changed(whole), {f"{boundary['name']}.{edge['id']}" for edge in split["edges"]})
    for name in split:
        if name != "edges":
            fewer = {key: value for key, value in split.items() if key != name}
            yield _changed(schedule, run=changed({**boundary, "split": fewer}))


def _without(schedule: Schedule, run: dict[str, Any], gone: set[str]) -> Schedule | None:
    def stays(part: Any) -> bool:
        return (
            part.actor not in gone and part.actor.rpartition(".")[0] not in gone and part.broker not in gone
        )

    faults = tuple(fault for fault in schedule.faults if stays(fault))
    links = tuple(link for link in schedule.links if stays(link))
    return _changed(schedule, run=run, faults=faults, links=links)
