"""Bad links for one process of a fleet: a connection that is cut while a file exists, records that are sent twice, a
broker that is far away.

For tests and measurements alone; `tools.fleet.killing` installs them where the environment says so.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from echelon.bus import Bus, open_bus
from echelon.bus.faults import FaultPlan, FaultyBus
from echelon.services import run as service

CUT, CUT_PORT, DUPLICATES = "FAULT_CUT", "FAULT_CUT_PORT", "FAULT_DUPLICATES"
"""Environment: the file that cuts the link while it exists; the port that is cut off; probability of a repeat."""
FAR_PORT, FAR_LATENCY, FAR_BANDWIDTH = "FAULT_FAR_PORT", "FAULT_FAR_LATENCY", "FAULT_FAR_BANDWIDTH"
"""Environment: the port of the broker that is far away, seconds each way, bytes per second."""
VIA = "FAULT_VIA"
"""Environment: `PORT:OTHER`, ports of this host: connections to the first go to the other, where a `Proxy` is."""
LOOK_EVERY = 0.05


def install() -> None:
    """Make the links of this process as bad as the environment says."""
    if CUT in os.environ:
        _Cut(Path(os.environ[CUT]), int(os.environ[CUT_PORT])).install()
    if VIA in os.environ:
        led = lead(*map(int, os.environ[VIA].split(":")))
        asyncio.BaseEventLoop.create_connection = led  # type: ignore[method-assign]
    if DUPLICATES in os.environ:
        _repeat(float(os.environ[DUPLICATES]))
    if FAR_PORT in os.environ:
        _far(int(os.environ[FAR_PORT]), float(os.environ[FAR_LATENCY]), float(os.environ[FAR_BANDWIDTH]))


class _Cut:
    """While the file exists, TCP connections to the port are broken and new ones are refused."""

    def __init__(self, switch: Path, port: int) -> None:
        self._switch, self._port = switch, port
        self._open: list[tuple[asyncio.AbstractEventLoop, asyncio.Transport]] = []

    def install(self) -> None:
        connect = asyncio.BaseEventLoop.create_connection

        async def cut_connect(
            loop: asyncio.BaseEventLoop,
            protocol_factory: Any,
            host: Any = None,
            port: Any = None,
            **more: Any,
        ) -> Any:
            if port == self._port and self._switch.exists():
                raise ConnectionRefusedError(f"the link to port {port} is cut")
            made = await connect(loop, protocol_factory, host, port, **more)
            if port == self._port:
                self._open.append((loop, made[0]))
            return made

        asyncio.BaseEventLoop.create_connection = cut_connect  # type: ignore[method-assign,assignment]
        threading.Thread(target=self._watch, name="cut", daemon=True).start()

    def _watch(self) -> None:
        while True:
            if self._switch.exists():
                while self._open:
                    loop, transport = self._open.pop()
                    if not loop.is_closed():
                        loop.call_soon_threadsafe(transport.abort)
            time.sleep(LOOK_EVERY)


def lead(port: int, other: int) -> Callable[..., Any]:
    """A loop's `create_connection` that leads connections to the port to the other one."""
    connect = asyncio.BaseEventLoop.create_connection

    async def led_connect(
        loop: asyncio.BaseEventLoop, protocol_factory: Any, host: Any = None, at: Any = None, **more: Any
    ) -> Any:
        return await connect(loop, protocol_factory, host, other if at == port else at, **more)

    return led_connect


def _repeat(probability: float) -> None:
    """Every bus that the service opens appends records twice with this probability."""

    async def repeating(url: str, **more: Any) -> Bus:
        seed = os.getpid()  # another stream of repeats in every process and every life
        return FaultyBus(await open_bus(url, **more), FaultPlan(duplicate=probability, seed=seed))

    service.open_bus = repeating  # type: ignore[attr-defined]


def _far(port: int, latency: float, bandwidth: float) -> None:
    """Every bus that the service opens to the broker on that port has this latency and bandwidth."""

    async def slowed(url: str, **more: Any) -> Bus:
        bus = await open_bus(url, **more)
        if f":{port}" not in url:
            return bus
        return FaultyBus(bus, FaultPlan(latency=latency, bandwidth=bandwidth, seed=os.getpid()))

    service.open_bus = slowed  # type: ignore[attr-defined]
