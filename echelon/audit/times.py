"""Whose clock is wrong: the times between commits as the controller and each gate state them, held together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from echelon.laws.timing import CONTROLLER, QUORUM, middle

FAR = 4
"""A time is off if it is more than four times the middle, or less than a fourth of it: delays of a network move single
times, and are not off in most of them."""
ENOUGH = 3
"""Commits that a reporter must be compared on before anything is said of it."""
KEPT = 64
"""Newest commits whose times are still waited for: a delta older than the longest useful staleness table is refused."""


@dataclass(slots=True)
class _Tally:
    compared: int = 0
    off: int = 0
    example: str = ""

    @property
    def doubtful(self) -> bool:
        return self.compared >= ENOUGH and 2 * self.off > self.compared


def _far(value: int, believed: int) -> bool:
    return value * FAR < believed or value > FAR * believed


@dataclass(frozen=True, slots=True)
class Doubt:
    """Reporters (`CONTROLLER`, or a boundary's index) whose times are mostly off; several, where no majority tells."""

    reporters: tuple[int, ...]
    detail: str


@dataclass(slots=True)
class Times:
    """What the parties state of the time between each commit and the one before it, compared once it is old."""

    _open: dict[int, dict[int, int]] = field(default_factory=dict)
    _tallies: dict[tuple[int, ...], _Tally] = field(default_factory=dict)
    _middles: dict[int, int] = field(default_factory=dict)
    """Of commits: the time since the one before that is believed, in microseconds; 0: none is."""
    _syncs: list[tuple[int, int, int, int]] = field(default_factory=list)

    def report(self, reporter: int, commit: int, microseconds: int) -> None:
        """Take one statement; of several by one reporter on one commit the first counts.

        Args:
            reporter: `CONTROLLER`, or the index of a boundary.
            commit: number of the commit.
            microseconds: how long after the commit before it came, by the clock of the reporter.
        """
        self._open.setdefault(commit, {}).setdefault(reporter, microseconds)
        if reporter == CONTROLLER:  # once for each commit
            for old in [number for number in self._open if number <= commit - KEPT]:
                self._compare(old, self._open.pop(old))

    def sync(self, boundary: int, microseconds: int, seen: int, merged: int) -> None:
        """Take how long a gate says that a sync took.

        Args:
            boundary: the gate's.
            microseconds: from the signing of a delta to the arrival of the commit that merged it.
            seen: the newest commit that the gate had read when it signed that delta.
            merged: the commit that merged it.
        """
        self._syncs.append((boundary, microseconds, seen, merged))

    def facts(self) -> list[object]:
        """Everything, as plain values."""
        return [
            sorted([commit, sorted(times.items())] for commit, times in self._open.items()),
            sorted([list(key), one.compared, one.off, one.example] for key, one in self._tallies.items()),
            sorted(self._middles.items()),
            self._syncs,
        ]

    @classmethod
    def of(cls, facts: Any) -> Times:
        """From what `facts` gave."""
        opened, tallies, middles, syncs = facts
        return cls(
            {commit: dict(times) for commit, times in opened},
            {tuple(key): _Tally(compared, off, example) for key, compared, off, example in tallies},
            dict(middles),
            [(boundary, value, seen, merged) for boundary, value, seen, merged in syncs],
        )

    def doubts(self) -> Iterator[Doubt]:
        """Who is off in most of what it states."""
        for commit in sorted(self._open):
            self._compare(commit, self._open[commit])
        self._open.clear()
        named = {key[0] for key, tally in self._tallies.items() if len(key) == 1 and tally.doubtful}
        for key, tally in sorted(self._tallies.items()):
            if not tally.doubtful or (len(key) > 1 and (named & set(key) or not self._mostly(key, tally))):
                continue
            detail = (
                f"the time between commits that is stated is off by more than {FAR} times in {tally.off} of "
                f"{tally.compared} commits ({tally.example})"
            )
            if len(key) > 2:
                detail = f"they contradict each other, and no majority tells who is wrong: {detail}"
                yield Doubt(key, detail + "; the pace went by the lower middle of them")
                continue
            if len(key) > 1:
                detail = f"they contradict each other, and no third tells which is wrong: {detail}"
            yield Doubt(key, detail + "; it moved nothing beyond what the others state")
        yield from self._sync_doubts()

    def _mostly(self, key: tuple[int, ...], tally: _Tally) -> bool:
        """Whether these reporters were parted in most of what each of them stated."""
        alone = [self._tallies[(reporter,)].compared for reporter in key if (reporter,) in self._tallies]
        return 2 * tally.off > max(alone, default=0)

    def _sync_doubts(self) -> Iterator[Doubt]:
        """A sync took no longer than from the commit that its gate had read to the one that merged the delta, and no
        shorter than from the first that it had not read."""
        tallies: dict[int, _Tally] = {}
        for boundary, value, seen, merged in self._syncs:
            times = [self._middles.get(commit, 0) for commit in range(seen + 1, merged + 1)]
            if not all(times):
                continue
            most, least = sum(times), sum(times[1:])
            tally = tallies.setdefault(boundary, _Tally())
            tally.compared += 1
            if value > FAR * most or value * FAR < least:
                tally.off += 1
                tally.example = tally.example or f"commit {merged}: {value} µs, between {least} and {most} µs"
        for boundary, tally in sorted(tallies.items()):
            if tally.doubtful:
                yield Doubt(
                    (boundary,),
                    f"the time of syncs that is stated cannot be in {tally.off} of {tally.compared} ({tally.example})",
                )

    def _compare(self, commit: int, times: dict[int, int]) -> None:
        self._middles[commit] = middle(list(times.values()))
        if len(times) >= QUORUM:
            believed = self._middles[commit]
            off = [reporter for reporter, value in times.items() if _far(value, believed)]
            parted = 2 * len(off) >= len(times)  # as many are off as not: the middle may be that of the liars
            for reporter, value in times.items():
                self._count((reporter,), commit, believed if parted else value, believed)
            if parted:
                self._middles[commit] = 0
                self._count(tuple(sorted(times)), commit, times[off[0]], believed)
        elif len(times) == 2:
            (one, first), (other, second) = sorted(times.items())
            self._count((one, other), commit, first, second)

    def _count(self, key: tuple[int, ...], commit: int, value: int, believed: int) -> None:
        tally = self._tallies.setdefault(key, _Tally())
        tally.compared += 1
        if _far(value, believed):
            tally.off += 1
            tally.example = tally.example or f"commit {commit}: {value} µs against {believed} µs"
