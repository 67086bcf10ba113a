"""Runs in a process of its own: `child.py URL write|crash|forever ...`.

The variable BROKER_SETTINGS has the settings of a broker that needs more than a URL, as JSON.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys

sys.path.insert(0, os.getcwd())

from echelon.bus import Bus, Outgoing, open_bus
from echelon.bus.chunks import to_chunks, transfer_of
from echelon.config.broker import BrokerSettings


async def connect(url: str) -> Bus:
    """Open the broker."""
    settings = os.environ.get("BROKER_SETTINGS")
    security = BrokerSettings.model_validate_json(settings).security if settings else None
    return await open_bus(url, security=security)


async def write(url: str, who: str, count: int) -> None:
    """Publish so many records, each awaited, and say so."""
    async with await connect(url) as bus:
        for number in range(count):
            await bus.publish(Outgoing("t", str(number).encode(), who.encode()))
    print("done", flush=True)


async def crash(url: str, size: int, chunks: int) -> None:
    """Publish the first chunks of a transfer, and die."""
    bus = await connect(url)
    payload = bytes(range(256)) * (size // 256)
    for number, chunk in enumerate(to_chunks(payload, transfer_of(payload, b"context"), topic="t", key=b"s")):
        if number == chunks:
            os.kill(os.getpid(), signal.SIGKILL)
        await bus.publish(chunk)


async def forever(url: str) -> None:
    """Publish batches of three, and print the last offset of each batch that is acknowledged."""
    bus = await connect(url)
    for number in range(1_000_000):
        value = str(number).encode() + bytes(20_000)
        offsets = await bus.publish_many([Outgoing("t", value, bytes([part])) for part in range(3)])
        print(offsets[-1], flush=True)


if __name__ == "__main__":
    url, task, *arguments = sys.argv[1:]
    if task == "write":
        asyncio.run(write(url, arguments[0], int(arguments[1])))
    elif task == "crash":
        asyncio.run(crash(url, int(arguments[0]), int(arguments[1])))
    else:
        asyncio.run(forever(url))
