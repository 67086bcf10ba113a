"""What an aggregator waits for: fewer devices than the floor are there, since when, and that it goes on."""

from __future__ import annotations

import logging

from echelon.actors.aggregator import Aggregator
from echelon.services.role import Actor

AGAIN_SECONDS = 300.0
"""Between two lines about the same wait."""


class Waiting:
    """Says in the log when a boundary pauses for want of devices, and when it goes on.

    Args:
        log: of the service.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._since: float | None = None
        self._said: tuple[int, float] | None = None
        self._begun = False
        """Whether so many as the floor were there once: before that a boundary does not pause, it begins."""

    def look(self, actor: Actor | None, now: float) -> str:
        """Why the boundary is not ready, in words; "" if it is, or has not begun yet.

        Args:
            actor: only an aggregator waits for devices.
            now: monotonic seconds.
        """
        if not isinstance(actor, Aggregator) or not actor.running:
            return ""
        attendance, secure = actor.core.attendance, actor.core.manifest.secure
        return self.count(len(attendance.there - attendance.absent), secure.floor, now)

    def count(self, there: int, floor: int, now: float) -> str:
        """The same for so many devices that are there.

        Args:
            there: devices that checked in, did not leave, and are not given up.
            floor: fewest with which a window may close.
            now: monotonic seconds.
        """
        if there >= floor:
            if self._since is not None:
                self._log.info("goes on: %d devices are there, after %.0f s", there, now - self._since)
            self._since, self._said, self._begun = None, None, True
            return ""
        if self._since is None:
            self._since = now
        words = f"waiting: {there} of {floor} devices are there, since {now - self._since:.0f} s"
        if self._said is None or self._said[0] != there or now - self._said[1] >= AGAIN_SECONDS:
            self._log.info("%s", words)
            self._said = there, now
        return words if self._begun else ""
