"""An event loop on virtual time: deterministic, and without real waiting.

`loop.time()` starts at 0. While any callback is ready it stands still; when none is, it jumps to the earliest
timer. Callbacks run in the order in which they were scheduled, timers in the order of their times and, where
those are equal, of their making. Tasks hash by the order of their making, so that code that walks over a set
of tasks (`asyncio.wait`, `TaskGroup`) does so in the same order in every run.

Nothing outside the loop can wake it: there are no sockets, no subprocesses and no threads. A loop on which
nothing is ready and no timer is set can therefore never go on, and raises `DeadlockError` instead of hanging.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple

from echelon.clock import ClockError, VirtualClock, is_virtual

__all__ = ["DeadlockError", "VirtualLoop", "is_virtual", "run_virtual"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_ADVICE = (
    "a thread or process would make the run depend on the machine; "
    "go through echelon.clock.Offload, which runs the function inline and charges its cost"
)
_TASKS_SHOWN = 20


class DeadlockError(ClockError):
    """Nothing is ready and no timer is set, yet the main coroutine has not ended."""


class _Timer(asyncio.TimerHandle):
    """A timer that is ordered by its time and then by its making; the standard one leaves ties open."""

    __slots__ = ("_key",)

    _scheduled: bool  # whether it stands in the heap: the base loop counts cancelled ones that do

    def __init__(
        self,
        when: float,
        number: int,
        *,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: asyncio.AbstractEventLoop,
        context: Context | None,
    ) -> None:
        super().__init__(when, callback, args, loop, context)
        self._key = (when, number)

    def __lt__(self, other: object) -> bool:
        return self._key < other._key if isinstance(other, _Timer) else NotImplemented


class _Task(asyncio.Task[T]):
    """A task whose hash is its number in the loop, not its address."""

    def __init__(self, coro: Coroutine[Any, Any, T], *, number: int, **options: Any) -> None:
        # Before the base class is initialised, which puts the task into a set.
        self._number = number
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class _Selector:
    """Stands where the base loop waits for I/O. There is none: to wait is to move the clock."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> tuple[()]:
        if timeout is None:
            raise self._loop.deadlock()
        if timeout > 0:
            self._loop.jump()
        return ()


class VirtualLoop(asyncio.BaseEventLoop, VirtualClock):
    """The loop. Use `run_virtual`, or `asyncio.Runner(loop_factory=VirtualLoop)`.

    The base class leaves waiting to a selector, and keeps its timers in a heap; both are parts of CPython
    that its own proactor and selector loops stand on, unchanged since 3.4.
    """

    _scheduled: list[asyncio.TimerHandle]
    _thread_id: int | None

    def __init__(self) -> None:
        super().__init__()
        self._now = 0.0
        self._timers = itertools.count()
        self._tasks = itertools.count()
        self._selector = _Selector(self)
        self._clock_resolution = math.ulp(0.0)
        self.set_task_factory(self._new_task)

    def _new_task(self, _loop: asyncio.AbstractEventLoop, coro: Any, /, **options: Any) -> asyncio.Task[Any]:
        return _Task(coro, number=next(self._tasks), loop=self, **options)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def jump(self) -> None:
        """Move the clock to the earliest timer."""
        self._now = max(self._now, self._scheduled[0].when())
        # The base loop runs what is due before now + resolution: the smallest step above now, so that a timer
        # at exactly now runs and no later one does.
        self._clock_resolution = math.ulp(self._now)

    def deadlock(self) -> DeadlockError:
        """What to raise when nothing can ever happen again: it says who waits, and where."""
        waiting = sorted(asyncio.all_tasks(self), key=hash)
        lines = [f"  {task.get_name()}: {_where(task)}" for task in waiting[:_TASKS_SHOWN]]
        if len(waiting) > _TASKS_SHOWN:
            lines.append(f"  and {len(waiting) - _TASKS_SHOWN} more")
        return DeadlockError(
            f"virtual time stopped at {self._now:.6f} s: nothing is ready, no timer is set, and "
            f"{len(waiting)} task(s) wait for what nobody will do; look for a message that is not sent or a "
            "wait without a deadline:\n" + "\n".join(lines)
        )

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call `callback(*args)` at the virtual time `when`; equal times in the order of the calls.

        Args:
            when: seconds on this loop's clock.
            callback: called once, unless the handle is cancelled before.
            *args: what it is called with.
            context: where it runs; None: a copy of the caller's.
        """
        if self.is_closed():
            raise RuntimeError("the loop is closed")
        timer = _Timer(
            when=when, number=next(self._timers), callback=callback, args=args, loop=self, context=context
        )
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon`, from the loop's own thread (a signal handler) only.

        Args:
            callback: called in the next turn of the loop.
            *args: what it is called with.
            context: where it runs; None: a copy of the caller's.

        Raises:
            ClockError: it was called from another thread.
        """
        if self._thread_id not in (None, threading.get_ident()):
            raise ClockError(f"a thread tried to wake the virtual clock with {callback!r}: {_ADVICE}")
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(  # type: ignore[override]  # it never returns, so it has no type to agree on
        self, executor: Executor | None, func: Callable[..., Any], *args: Any
    ) -> Any:
        """Refuse.

        Args:
            executor: not used: a thread's time is not the loop's.
            func: named in the error.
            *args: not used.

        Raises:
            ClockError: always.
        """
        raise ClockError(f"{func!r} was handed to an executor on the virtual clock: {_ADVICE}")

    def _process_events(self, event_list: tuple[()]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody waits in a selector who would have to be woken."""


def _where(task: asyncio.Task[Any]) -> str:
    """The innermost line outside asyncio itself that the task stands at."""
    inner: Any = task.get_coro()
    place = "unknown"
    while inner is not None:
        frame = getattr(inner, "cr_frame", None)
        if frame is not None and not frame.f_globals.get("__name__", "").startswith("asyncio."):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        inner = getattr(inner, "cr_await", None)
    return place


def run_virtual(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on a fresh virtual loop and return its result.

    Args:
        main: makes the main coroutine; it is called inside the running loop.

    Raises:
        DeadlockError: every task waits and no timer is set.
        BaseException: whatever `main` raises.
    """

    async def started() -> T:
        return await main()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(started())
