"""The event loop's clock, and the one way off the loop.

All time in Echelon is the running loop's clock. In real time that is the monotonic clock of the machine; in
a simulation it is a virtual clock that jumps from timer to timer. The two differ in one respect only: on the
virtual clock nothing may happen outside the loop, or runs would not repeat. So compute and blocking I/O go
through `Offload`, which knows both.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import TypeVar, TypeVarTuple

from echelon.errors import EchelonError

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class ClockError(EchelonError):
    """Something was done that the clock of the running loop does not allow."""


class VirtualClock:
    """Marks an event loop whose time is virtual (`echelon.virtual_loop` has the loop itself)."""


def is_virtual() -> bool:
    """Whether the running loop's time is virtual.

    Raises:
        RuntimeError: no event loop is running in this thread.
    """
    return isinstance(asyncio.get_running_loop(), VirtualClock)


def wall_seconds() -> int:
    """Seconds since the epoch by the machine's clock; on the virtual clock, since the loop began. Advisory only.

    Raises:
        RuntimeError: no event loop is running in this thread.
    """
    return int(asyncio.get_running_loop().time() if is_virtual() else time.time())


class Offload:
    """Runs a blocking function without holding up the event loop.

    In real time the function runs in `executor` (the loop's default threads if there is none; hand in a
    `ProcessPoolExecutor` for work that holds the interpreter lock, with picklable functions and arguments).
    On the virtual clock the call sleeps for `cost` and then runs the function inline: other tasks go on
    meanwhile, and the run repeats exactly.
    """

    def __init__(self, executor: Executor | None = None) -> None:
        self._executor = executor

    async def __call__(self, fn: Callable[[*Ts], T], *args: *Ts, cost: float) -> T:
        """Call `fn(*args)` off the loop and return what it returns, or raise what it raises.

        If the awaiting task is cancelled, the virtual clock does not run a function that has not started;
        in real time the call ends only when a function that runs already has, and its result is dropped.

        Args:
            fn: the blocking function.
            args: its positional arguments.
            cost: seconds that it is taken to need on the virtual clock; not used in real time.

        Raises:
            ClockError: `cost` is negative or not finite.
        """
        if not (math.isfinite(cost) and cost >= 0):
            raise ClockError(f"offload of {fn!r}: a cost of {cost!r} s makes no sense; give seconds >= 0")
        if is_virtual():
            await asyncio.sleep(cost)
            return fn(*args)
        running = asyncio.get_running_loop().run_in_executor(self._executor, partial(fn, *args))
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait([running])
            raise
