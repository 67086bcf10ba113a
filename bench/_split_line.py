"""Between a device and its edge: a played link, and records on a socket.

Nothing but the standard library is imported above: what a process loads is what its role needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from echelon.messages.wire import Message


class Line:
    """One direction of a link: bits leave one after the other at `rate`, and arrive `delay` seconds later.

    `rate` in bits/s; None sends at once. `sent` counts bytes.
    """

    def __init__(self, rate: float | None, delay: float, write: Callable[[bytes], None]) -> None:
        self._rate, self._delay, self._write = rate, delay, write
        self._free = 0.0
        self.sent: list[tuple[float, int]] = []

    def send(self, data: bytes) -> None:
        """Put a record on the line."""
        self.sent.append((asyncio.get_running_loop().time(), len(data)))
        if self._rate is None:
            self._write(data)
            return
        loop = asyncio.get_running_loop()
        self._free = max(loop.time(), self._free) + 8 * len(data) / self._rate
        loop.call_at(self._free + self._delay, self._write, data)


def to_record(message: Message, payload: bytes | None) -> bytes:
    """A record as it goes over the socket."""
    import msgpack

    return bytes(msgpack.packb([message.kind, message.encode(), payload]))


def from_record(data: bytes) -> tuple[Message, bytes | None]:
    """The reverse."""
    import msgpack

    from echelon.messages.split import SplitAccept, SplitFrame, SplitOpen

    kind, body, payload = msgpack.unpackb(data)
    known: dict[str, type[Message]] = {one.kind: one for one in (SplitOpen, SplitAccept, SplitFrame)}
    return known[kind].decode(body), payload


async def read(stream: asyncio.StreamReader) -> bytes | None:
    """The next record; None at the end."""
    try:
        return await stream.readexactly(int.from_bytes(await stream.readexactly(4), "big"))
    except asyncio.IncompleteReadError:
        return None


def writer_of(stream: asyncio.StreamWriter) -> Callable[[bytes], None]:
    """Writes records."""
    return lambda data: stream.write(len(data).to_bytes(4, "big") + data)
