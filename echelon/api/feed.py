"""A list that one thread writes and any number of readers follow, each from its beginning: plainly, or on a loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Feed(Generic[T]):
    """Keeps everything, so that whoever comes late misses nothing."""

    def __init__(self) -> None:
        self._items: list[T] = []
        self._ended = False
        self._grown = threading.Condition()
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def add(self, item: T) -> None:
        """Append an item and wake every reader."""
        with self._grown:
            self._items.append(item)
            self._wake()

    def end(self) -> None:
        """Say that nothing more comes."""
        with self._grown:
            self._ended = True
            self._wake()

    def _wake(self) -> None:
        self._grown.notify_all()
        waiting, self._waiting = self._waiting, []
        for loop, event in waiting:
            if not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    def __iter__(self) -> Iterator[T]:
        at = 0
        while True:
            with self._grown:
                while at == len(self._items):
                    if self._ended:
                        return
                    self._grown.wait()
                new = self._items[at:]
            at += len(new)
            yield from new

    async def __aiter__(self) -> AsyncIterator[T]:
        at = 0
        while True:
            event = asyncio.Event()
            with self._grown:
                new, ended = self._items[at:], self._ended
                if not new and not ended:
                    self._waiting.append((asyncio.get_running_loop(), event))
            if not new:
                if ended:
                    return
                await event.wait()
                continue
            at += len(new)
            for item in new:
                yield item
