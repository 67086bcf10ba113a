"""How long a service waits for a broker that refuses it."""

from __future__ import annotations

GRACE_SECONDS = 120.0
"""How long a broker may refuse a service that it never let in: its access rules may still be on their way."""
HEALTHY_SECONDS = 30.0
"""An actor that ran so long was let in, and starts again with the shortest wait."""


class BrokerPatience:
    """Whether a broker's refusals end the service.

    A service that was never let in gives up after a grace that begins with the first refusal: somebody has to mend its
    rules or its certificate, and an exit code says so to whoever started it. One that was let in before never gives up:
    rules and certificates that are lost while it runs come back, and it goes on without anybody's help.
    """

    def __init__(self, grace: float = GRACE_SECONDS, healthy: float = HEALTHY_SECONDS) -> None:
        self._grace, self._healthy = grace, healthy
        self._let_in = False
        self._first: float | None = None
        """When the first of the refusals in a row came."""

    def lived(self, seconds: float) -> bool:
        """Take how long a life of the actor was; whether that was long enough to have been let in."""
        if seconds <= self._healthy:
            return False
        self._let_in, self._first = True, None
        return True

    def refused(self, now: float) -> bool:
        """Take a refusal at `now`, in seconds of a monotonic clock; whether to give up."""
        if self._first is None:
            self._first = now
        return not self._let_in and now - self._first > self._grace

    def failed_otherwise(self) -> None:
        """Take a failure that was no refusal: the row of refusals is over."""
        self._first = None
