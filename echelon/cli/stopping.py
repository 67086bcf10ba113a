"""Ctrl-C: the first one stops what is under way cleanly, the second one at once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, TypeVar

from echelon.errors import EchelonError

T = TypeVar("T")
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(EchelonError):
    """The run was asked to stop, and stopped cleanly.

    Attributes:
        code: the exit code that shells expect: 128 + the signal's number.
    """

    def __init__(self, code: int) -> None:
        super().__init__("stopped before its end")
        self.code = code


class Stopper:
    """Turns SIGINT and SIGTERM into a cancelled main coroutine, or a `code` to look at, while it is entered.

    The handlers are plain ones (not the loop's), so that the second signal works even while the loop is held
    up: by a virtual clock that computes inline, or by waiting for training jobs to end.

    Args:
        asked: called at the first signal, from the handler.
        last: called at the second one, right before the process ends: puts the terminal in order.
    """

    def __init__(self, asked: Callable[[], None], last: Callable[[], None]) -> None:
        self._asked, self._last = asked, last
        self.code = 0
        """128 + the number of the first signal; 0 before it."""
        self._cancel: Callable[[], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Stopper:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.code:
            self._last()
            for worker in multiprocessing.active_children():
                worker.kill()  # they ignore Ctrl-C, and would outlive this process
            os._exit(128 + number)
        self.code = 128 + number
        self._asked()
        if self._cancel is not None:
            self._cancel()

    async def run(self, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run `main()` so that the first signal cancels it.

        Raises:
            Stopped: it was cancelled by a signal.
        """
        loop, task = asyncio.get_running_loop(), asyncio.create_task(main(), name="run")

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)  # which also wakes a loop that waits for I/O

        self._cancel = cancel
        if self.code:
            task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            if self.code:
                raise Stopped(self.code) from None
            raise
        finally:
            self._cancel = None
