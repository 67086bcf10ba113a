"""The base model's loss: needed at a run's end, and no reason to wait for at its beginning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from echelon.clock import is_virtual
from echelon.run.recorder import Recorder
from echelon.training.learner import EvalResult

Evaluate = Callable[[], Awaitable[dict[str, EvalResult]]]


class BaseLoss:
    """Evaluates the base model beside a run: in real time once a window has ended, so that workers train first.

    On the virtual clock, where a run must repeat, it is evaluated before anything else.

    Args:
        evaluate: evaluates it, for each boundary.
        recorder: tells of windows.
    """

    def __init__(self, evaluate: Evaluate, recorder: Recorder) -> None:
        self._evaluate = evaluate
        self._due = asyncio.Event()
        if is_virtual():
            self._due.set()
        recorder.listeners.append(self._seen)
        self.task = asyncio.create_task(self._run(), name="loss of the base model")

    async def begin(self) -> None:
        """Before the actors start."""
        if self._due.is_set():
            await self.task

    async def result(self) -> dict[str, EvalResult]:
        """It is needed now."""
        self._due.set()
        return await self.task

    async def aclose(self) -> None:
        """Nobody needs it any more."""
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    def _seen(self, line: dict[str, Any]) -> None:
        if line["kind"] == "window":
            self._due.set()

    async def _run(self) -> dict[str, EvalResult]:
        await self._due.wait()
        return await self._evaluate()
