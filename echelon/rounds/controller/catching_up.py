"""How far the controller has read each delta log, held against what the terms promise: no delta is left unread.

`merge_within` commits may be made while a delta stands on the exchange unread; an auditor calls more of them withheld.
Topics are read independently of one another, so a slow one may fall behind the others without anybody's fault. The
controller therefore asks for the ends of all delta logs now and then, and makes no commit that would break the promise.

Let w be `merge_within`. A witness may have seen a delta at any moment before commit n - w + 1 stood. So commit n may be
made once every log was read up to an end that it had when commit n - w + 1 stood already, or later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

AHEAD = 1
"""Commits before it would be too late at which ends are asked for, so that no commit waits for the answer."""


class CatchingUp:
    """Which ends of delta logs are known, and how many commits that allows.

    Args:
        topics: the delta logs.
        within: commits that may be made while a delta stands unread (`merge_within`), at least 2.
        newest: commits that stand already; of their time nothing is known.
    """

    def __init__(self, topics: Iterable[str], *, within: int, newest: int = 0) -> None:
        self._within = within
        self._read_at = dict.fromkeys(topics, 0)
        """Per topic: the log was read up to an end that it had when so many commits stood."""
        self._ends: list[tuple[int, dict[str, int]]] = []
        """Ends that are not reached yet: commits that stood when they were asked for, and offsets by topic."""
        self._standing = newest

    @property
    def standing(self) -> int:
        """Commits that are known to stand on the exchange."""
        return self._standing

    def stood(self, commits: int) -> None:
        """So many commits stand on the exchange now."""
        self._standing = max(self._standing, commits)

    def looked(self, standing: int, ends: Mapping[str, int], positions: Mapping[str, int]) -> None:
        """Take the answer of a look.

        Args:
            standing: commits that stood when the ends were asked for.
            ends: offset after the last record, by topic.
            positions: offset of the next record that will be read, by topic.
        """
        self._ends.append((standing, dict(ends)))
        self.reached(positions)

    def reached(self, positions: Mapping[str, int]) -> None:
        """Note how far the logs were read: `positions` has the offset of the next record, by topic."""
        for standing, ends in self._ends:
            for topic in [topic for topic, end in ends.items() if positions[topic] >= end]:
                del ends[topic]
                self._read_at[topic] = max(self._read_at[topic], standing)
        self._ends = [(standing, ends) for standing, ends in self._ends if ends]

    def allows(self, commit: int) -> bool:
        """Whether this commit keeps the promise for every log."""
        return self._oldest >= commit - self._within + 1

    def wants_look(self, commit: int) -> bool:
        """Whether ends have to be asked for before this commit, or soon; and would be of use."""
        newest = max([self._oldest, *(standing for standing, _ in self._ends)])
        needed = commit - self._within + 1 + AHEAD
        return newest < needed and self._standing > newest

    @property
    def _oldest(self) -> int:
        return min(self._read_at.values(), default=self._standing)
