"""The one supervisor: which failures of an actor are waited out, and the loop that starts it again after them.

A patience is a rule without clock or loop; `supervise` asks it after each failure.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TypeVar

from echelon.backoff import Backoff
from echelon.errors import BusDenied, BusError, EchelonError, StorageError

T = TypeVar("T")
GRACE_SECONDS = 120.0
"""How long a broker may refuse a service that it never let in: its access rules may still be on their way."""
HEALTHY_SECONDS = 30.0
"""An actor that ran so long was let in, and starts again with the shortest wait."""


class Patience(ABC):
    """Which failures are waited out. An instance is of one actor, and remembers what failed before."""

    def lived(self, _seconds: float) -> bool:
        """Take how long a life was that has failed; whether the pauses begin again with the shortest."""
        return False

    @abstractmethod
    def waits_out(self, error: BaseException, now: float) -> bool:
        """Take a failure.

        Args:
            error: what ended the life.
            now: seconds of a monotonic clock.

        Returns:
            Whether there is another life after it. If not, the error is everybody's.
        """


class BoundedPatience(Patience):
    """Waits out a broker's failures, a number of them: the broker is in the same process, and has nowhere to go.

    Args:
        most: lives after the first.
    """

    def __init__(self, most: int) -> None:
        self._left = most

    def waits_out(self, error: BaseException, _now: float) -> bool:
        """See `Patience`."""
        if not isinstance(error, BusError) or not self._left:
            return False
        self._left -= 1
        return True


class DiskPatience(Patience):
    """Waits for room on the disk, however long that takes."""

    def waits_out(self, error: BaseException, _now: float) -> bool:
        """See `Patience`."""
        return isinstance(error, StorageError)


class BrokerPatience(Patience):
    """Waits out a broker that is away for ever, and its refusals unless it never let the actor in.

    An actor that was never let in gives up after a grace that begins with the first refusal: somebody has to mend its
    rules or its certificate, and an exit code says so to whoever started it. One that was let in before never gives up:
    rules and certificates that are lost while it runs come back, and it goes on without anybody's help.

    Args:
        grace: seconds that the refusals may last.
        healthy: a life of more seconds than these was let in.
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

    def waits_out(self, error: BaseException, now: float) -> bool:
        """See `Patience`."""
        if not isinstance(error, BusDenied):
            self._first = None
            return isinstance(error, BusError)
        if self._first is None:
            self._first = now
        return self._let_in or now - self._first <= self._grace


class ServicePatience(BrokerPatience):
    """Waits for room on the disk, too."""

    def waits_out(self, error: BaseException, now: float) -> bool:
        """See `Patience`."""
        return super().waits_out(error, now) or isinstance(error, StorageError)


async def supervise(
    life: Callable[[], Awaitable[T]],
    patience: Patience,
    *,
    name: str | None,
    failed: Callable[[EchelonError], None],
) -> T:
    """Let an actor live, and live again after each failure that is waited out.

    Args:
        life: one life, from connecting to the end; it leaves nothing open.
        patience: of this actor.
        name: of the actor, whose pauses differ from those of others; None: they differ from one process to the next.
        failed: told of each failure that is waited out, before the pause.

    Returns:
        What the life gives that ends in order.

    Raises:
        EchelonError: a failure that is not waited out.
    """
    loop = asyncio.get_running_loop()
    backoff = Backoff(name)
    while True:
        begun = loop.time()
        try:
            return await life()
        except EchelonError as error:
            if patience.lived(loop.time() - begun):
                backoff.reset()
            if not patience.waits_out(error, loop.time()):
                raise
            failed(error)
        await backoff.wait()
