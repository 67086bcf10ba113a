"""What a bad link does: latency, jitter, losses and repeats. Simulated brokers and faulty connections draw by it.

Everything random comes from one source, in the order of the calls. Nothing is drawn for what cannot happen.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from echelon.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """What is wrong with a link.

    Attributes:
        latency: seconds, each way.
        jitter: up to so many seconds more, uniform, for each message; messages do not overtake.
        duplicate: probability that a record is appended twice, one directly after the other.
        lose_before: probability that a publish is lost before some record of it is appended: a prefix of them is, or
            none.
        lose_after: probability that a publish is lost to its caller though all was appended.
        lose_read: probability that a read is lost when there are records.
    """

    latency: float = 0.0
    jitter: float = 0.0
    duplicate: float = 0.0
    lose_before: float = 0.0
    lose_after: float = 0.0
    lose_read: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency", "jitter"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"link: {name} is {getattr(self, name)!r}; give seconds, at least 0 and finite"
                )
        for name in ("duplicate", "lose_before", "lose_after", "lose_read"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"link: {name} is {getattr(self, name)!r}; a probability is within 0..1")


class LinkModel:
    """Draws what happens on a link. Links that share a source share its sequence."""

    def __init__(self, faults: LinkFaults, random: random.Random) -> None:
        self.faults = faults
        self.random = random

    def happens(self, probability: float) -> bool:
        """Whether something of that probability happens now."""
        return probability > 0 and self.random.random() < probability

    def extra(self) -> float:
        """What jitter adds to the latency of one message, in seconds."""
        return self.random.random() * self.faults.jitter if self.faults.jitter else 0.0

    def late(self) -> float:
        """Latency and jitter of one message, in seconds."""
        return self.faults.latency + self.extra()

    def appended(self, count: int) -> int:
        """How many of so many records of one publish are appended: all, or a shorter prefix when it is lost before."""
        return self.random.randrange(count) if self.happens(self.faults.lose_before) else count

    def set_latency(self, latency: float) -> None:
        """From now on a message takes so many seconds each way."""
        self.faults = replace(self.faults, latency=latency)


class InOrder:
    """Times of arrival on one way, on which nothing overtakes."""

    def __init__(self) -> None:
        self._last = -math.inf

    def arrival(self, earliest: float) -> float:
        """When what could arrive at `earliest` does: not before what was sent earlier."""
        self._last = max(self._last, earliest)
        return self._last


class Outages:
    """When a connection is away.

    Args:
        outages: (start, end) in seconds.
        origin: the time from which those count.
    """

    def __init__(self, outages: Sequence[tuple[float, float]], origin: float) -> None:
        self._outages = sorted((origin + start, origin + end) for start, end in outages)

    def during(self, now: float) -> tuple[float, float] | None:
        """The outage that a time lies in."""
        return next(((start, end) for start, end in self._outages if start <= now < end), None)

    def next_start(self, now: float) -> float | None:
        """When the next one begins."""
        return next((start for start, _ in self._outages if start > now), None)

    def broke(self, since: float, now: float) -> bool:
        """Whether one began after `since`, at `now` or earlier."""
        return any(since < start <= now for start, _ in self._outages)
