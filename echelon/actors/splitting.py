"""A device's side of what it does with its edge, around its pure core: frames, timers, and work beside the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from echelon.errors import CodecError, LimitExceeded
from echelon.jobs.device_part import (
    Back,
    DeviceDone,
    DeviceTask,
    Front,
    FrontBackward,
    JudgeBatch,
    PartTask,
    ShowBatch,
)
from echelon.messages.split import SplitAccept, SplitPing, SplitPong
from echelon.messages.wire import Refused
from echelon.rounds.device.split_core import DeviceSplitCore, JobEnded, LetGo, SplitEffect
from echelon.rounds.device.split_job import Outcome
from echelon.rounds.effects import (
    Evaluate,
    Incoming,
    Publish,
    Refuse,
    StartTimer,
    StopTimer,
    TimerFired,
    TrainJob,
    TripsMeasured,
)
from echelon.secagg.entropy import Entropy

PINGS, PING_SECONDS, LAST_SECONDS = 3, 0.5, 2.0
"""How often a measurement of round trips asks, seconds between two questions, and after the last one. What takes longer
is not measured."""
U32_MAX = (1 << 32) - 1


class DeviceSide(Protocol):
    """The device's part of its model, one job at a time."""

    async def part(self, task: DeviceTask) -> DeviceDone:
        """Do a piece of work; it takes as long as it takes, off the event loop. Several may be asked for at once.

        Raises:
            CodecError: a tensor of the edge's is none, or has another shape.
            TrainingError: the device's own part cannot be trained, or gives no loss.
        """
        ...


class SplitDriver:
    """The shell around `DeviceSplitCore`.

    Args:
        core: the state machine.
        side: where the device's part is computed; None for a device that trains with no edge.
        send: publishes.
        log: what people read.
    """

    def __init__(
        self,
        *,
        core: DeviceSplitCore,
        side: DeviceSide | None,
        send: Callable[[Publish], None],
        log: logging.Logger,
    ) -> None:
        self.core, self._side, self._send, self._log = core, side, send, log
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._beside: set[asyncio.Task[None]] = set()
        """Passes of batches that are under way beside each other."""
        self._next: asyncio.Queue[DeviceTask | JobEnded | BaseException] = asyncio.Queue()
        """What `run` goes on with."""

    async def run(self, job: TrainJob | Evaluate) -> Outcome:
        """Carry a job or an evaluation out with its edge.

        Returns:
            What it came to; or that it was given up, and why.

        Raises:
            TrainingError: the device's own part cannot be trained, or gives no loss.
        """
        self._next = asyncio.Queue()
        try:
            self._perform(self.core.begin(job, asyncio.get_running_loop().time()))
            while True:
                event = await self._next.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, JobEnded):
                    return self._ended(event)
                await self._part(event)
        finally:
            for handle in self._timers.values():
                handle.cancel()
            self._timers.clear()
            await asyncio.gather(*self._cancel(), return_exceptions=True)

    def take(self, event: Incoming) -> None:
        """A record of `split.down`.

        Raises:
            Refused: it is to be refused; the session ends where it cannot go on.
        """
        effects = self.core.handle(event, asyncio.get_running_loop().time())
        self._perform(effects, later=isinstance(event.message, SplitAccept))

    def _perform(self, effects: list[SplitEffect], *, later: bool = False) -> None:
        refused: Refused | None = None
        for effect in effects:
            match effect:
                case Publish():
                    self._send(effect)
                case StartTimer():
                    self._stop(effect.name)
                    loop = asyncio.get_running_loop()
                    self._timers[effect.name] = loop.call_later(effect.seconds, self._fired, effect.name)
                case StopTimer():
                    self._stop(effect.name)
                case LetGo():
                    self._cancel()
                case JobEnded():
                    self._next.put_nowait(effect)
                case Refuse():
                    refused = Refused(effect.reason, effect.detail)
                case Front() | Back() | FrontBackward() | ShowBatch() | JudgeBatch():
                    self._start(effect)
                case PartTask():
                    self._follow(effect, later=later)
                case _:
                    raise TypeError(f"{effect!r} is no effect of split training")
        if refused is not None:
            raise refused

    def _follow(self, task: DeviceTask, *, later: bool) -> None:
        """Have `run` do a piece of work; `later`: behind all that is ready now, as other passes that end."""
        if later:
            asyncio.get_running_loop().call_soon(self._next.put_nowait, task)
        else:
            self._next.put_nowait(task)

    def _ended(self, effect: JobEnded) -> Outcome:
        what = f"{effect.what} {effect.job} with {effect.edge} was given up"
        if effect.detail:
            self._log.warning("%s: %s", what, effect.detail)
        elif effect.why:
            self._log.info("%s: %s", what, effect.why)
        return effect.outcome

    # ---- timers ----------------------------------------------------------------------------------

    def _stop(self, name: str) -> None:
        handle = self._timers.pop(name, None)
        if handle is not None:
            handle.cancel()

    def _fired(self, name: str) -> None:
        del self._timers[name]
        try:
            self._perform(self.core.handle(TimerFired(name), asyncio.get_running_loop().time()))
        except Exception as error:
            self._next.put_nowait(error)

    # ---- work ------------------------------------------------------------------------------------

    def _start(self, task: DeviceTask) -> None:
        work = asyncio.create_task(self._part(task), name=f"part {type(task).__name__}")
        self._beside.add(work)
        work.add_done_callback(self._over)

    async def _part(self, task: DeviceTask) -> None:
        if self._side is None:
            raise TypeError("a device without a part of its model trains with no edge")
        try:
            done = await self._side.part(task)
        except (CodecError, LimitExceeded) as error:
            done = DeviceDone(task=task, fault=str(error))
        effects = self.core.handle(done, asyncio.get_running_loop().time())
        self._perform(effects, later=asyncio.current_task() in self._beside)

    def _over(self, work: asyncio.Task[None]) -> None:
        self._beside.discard(work)
        if not work.cancelled() and (error := work.exception()) is not None:
            self._next.put_nowait(error)

    def _cancel(self) -> list[asyncio.Task[None]]:
        """End the passes under way, but for the one that is running now."""
        mine = asyncio.current_task()
        others = [work for work in self._beside if work is not mine]
        for work in others:
            work.cancel()
        return others


class TripMeter:
    """Measures how long each edge of the boundary takes to answer.

    Args:
        slot: the device's partition.
        entropy: of the numbers of questions.
        send: publishes.
    """

    def __init__(self, slot: int, entropy: Entropy, send: Callable[[Publish], None]) -> None:
        self._slot, self._entropy, self._send = slot, entropy, send
        self._asked: dict[int, float] = {}
        self._best: dict[str, int] = {}

    async def measure(self) -> TripsMeasured:
        """Ask all edges a few times; the shortest answer of each."""
        loop = asyncio.get_running_loop()
        self._asked, self._best = {}, {}
        for seconds in (*(PING_SECONDS,) * (PINGS - 1), LAST_SECONDS):
            number = int.from_bytes(self._entropy.token(8), "big") >> 1
            self._asked[number] = loop.time()
            self._send(Publish("split.up", SplitPing(number=number), 0, partition=self._slot))
            await asyncio.sleep(seconds)
        best, self._asked = self._best, {}
        return TripsMeasured(best)

    def take(self, edge: str, pong: SplitPong) -> None:
        """An edge's answer; one to another question than was asked is passed over."""
        asked = self._asked.get(pong.number)
        if asked is not None:
            took = min(round((asyncio.get_running_loop().time() - asked) * 1e6), U32_MAX)
            self._best[edge] = min(took, self._best.get(edge, took))
