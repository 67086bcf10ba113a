"""Following a federation from outside: its exchange alone, read as an auditor reads it."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from echelon.audit.records import read_manifest
from echelon.backoff import Backoff
from echelon.bus import Record, TopicPartition, open_bus
from echelon.bus.chunks import is_chunk
from echelon.config.broker import BrokerSettings
from echelon.errors import BusError, ConnectionLost
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.provision.deployment import Deployment

LOSS_UNIT = 1 << 16
"""Sums of losses cross in units of 2**-16 nats."""
LOOK_EVERY = 0.5


@dataclass
class Crossed:
    """What was seen of one boundary; losses are nats per token."""

    windows: int = 0
    deltas: int = 0
    bytes: int = 0
    loss: float | None = None
    validation: float | None = None


@dataclass
class View:
    """The run as the exchange tells it. One thread writes it, others may read it at any time.

    Attributes:
        boundaries: by name.
        commits: number of the newest commit.
        budget: commits after which the run ends, if that is its budget; 0 otherwise.
        tokens: merged so far.
        lines: what happened, in words, oldest first.
        started_at: when following began, in seconds of the monotonic clock.
        closed_at: when the close was seen.
        error: why following ended before the close, if it did.
    """

    boundaries: dict[str, Crossed]
    commits: int = 0
    budget: int = 0
    tokens: int = 0
    lines: list[str] = field(default_factory=list)
    started_at: float = field(default_factory=time.monotonic)
    closed_at: float | None = None
    error: BaseException | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since following began, up to the close."""
        return (self.closed_at or time.monotonic()) - self.started_at

    def take(self, record: Record) -> None:
        """Count one record of the exchange."""
        name = record.topic.removeprefix("delta.")
        if name != record.topic:
            self.boundaries[name].bytes += record.size
        if is_chunk(record):
            return
        _, message = read_manifest(record)
        match message:
            case Genesis():
                self.lines.append("genesis is on the exchange")
            case Delta():
                self._delta(self.boundaries[name], message)
            case Commit():
                self.commits, self.tokens = message.commit, message.tokens
                names = list(self.boundaries)
                merged = ", ".join(f"{names[one.boundary]} {one.seq}" for one in message.merged)
                losses = ", ".join(
                    f"{place} {seen.validation:.4f}"
                    for place, seen in self.boundaries.items()
                    if seen.validation is not None
                )
                self.lines.append(
                    f"{self.elapsed:6.1f} s  commit {message.commit} of deltas {merged}; {message.tokens} tokens"
                    + (f"; validation {losses}" if losses else "")
                )
            case Refusal():
                place = list(self.boundaries)[message.boundary]
                self.lines.append(
                    f"{self.elapsed:6.1f} s  delta {message.seq} of {place} refused: {message.reason.value}"
                )
            case Close():
                self.closed_at = time.monotonic()
                self.lines.append(f"{self.elapsed:6.1f} s  closed: {message.reason.value}")
            case _:
                pass

    @staticmethod
    def _delta(seen: Crossed, delta: Delta) -> None:
        seen.deltas = max(seen.deltas, delta.seq + 1)
        seen.windows = max([seen.windows, *(window.window + 1 for window in delta.windows)])
        tokens = sum(window.loss_tokens for window in delta.windows)
        if tokens:
            seen.loss = sum(window.loss for window in delta.windows) / LOSS_UNIT / tokens
        newest = max(window.eval_commit for window in delta.windows)
        evaluated = [window for window in delta.windows if window.eval_commit == newest]
        tokens = sum(window.eval_tokens for window in evaluated)
        if tokens:
            seen.validation = sum(window.eval_loss for window in evaluated) / LOSS_UNIT / tokens


class Follower:
    """Reads the exchange in a thread of its own while it is entered.

    Args:
        broker: the exchange, as its auditor reaches it.
        deployment: names the boundaries.
    """

    def __init__(self, broker: BrokerSettings, deployment: Deployment) -> None:
        self._broker = broker
        self.view = View(
            {name: Crossed() for name in deployment.boundaries},
            budget=deployment.settings.budget.commits or 0,
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._follow())
        except Exception as error:  # the thread's last word; whoever looks at the view finds it
            self.view.error = error
            self.view.lines.append(f"the exchange is not followed any more: {error}")

    async def _follow(self) -> None:
        backoff = Backoff("follower")
        topics = ["global", *(f"delta.{name}" for name in self.view.boundaries)]
        async with (
            await open_bus(self._broker.url, security=self._broker.security, read_only=True) as bus,
            bus.reader({TopicPartition(topic): 0 for topic in topics}) as reader,
        ):
            while True:
                last = self._ended.is_set()
                try:
                    records = await reader.next(timeout=LOOK_EVERY)
                except ConnectionLost:
                    if last:
                        return
                    await backoff.wait()
                    continue
                except BusError:
                    if last:
                        return
                    raise
                backoff.reset()
                for record in records:
                    self.view.take(record)
                if last and not records:
                    return
