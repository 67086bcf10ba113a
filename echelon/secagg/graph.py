"""Who masks with whom.

On the complete graph everybody shares a mask with everybody (Bonawitz et al. 2017). On a k-regular graph over
a random order each device has k neighbours, so its work no longer grows with the cohort (Bell et al., CCS
2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", section 3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from echelon.errors import ConfigError
from echelon.messages.wire import DeviceId, pack

Graph = Mapping[DeviceId, frozenset[DeviceId]]
"""For each device its neighbours: symmetric, nobody is a neighbour of itself."""


def complete(devices: Iterable[DeviceId]) -> Graph:
    """Everybody next to everybody else."""
    everybody = frozenset(devices)
    return {device: everybody - {device} for device in sorted(everybody)}


def regular(devices: Iterable[DeviceId], degree: int, seed: bytes) -> Graph:
    """A Harary graph of this degree: on a ring in random order, each next to the nearest `degree` others.

    The order follows from `seed` (public, chosen once the cohort is known) alone. With an odd degree the
    device opposite on the ring is the last neighbour, which takes an even number of devices.

    Raises:
        ConfigError: no such graph: degree outside 2..n - 1, or degree and n both odd.
    """
    ring = sorted(set(devices), key=lambda device: hashlib.sha256(pack([seed, device])).digest())
    n = len(ring)
    if not 2 <= degree < n or (degree % 2 and n % 2):
        raise ConfigError(
            f"no graph of degree {degree} on {n} devices: take a degree in 2..{n - 1}, an even one if n is odd"
        )
    steps = [step for half in range(1, degree // 2 + 1) for step in (half, -half)]
    if degree % 2:
        steps.append(n // 2)
    return {
        device: frozenset(ring[(place + step) % n] for step in steps)
        for place, device in sorted(enumerate(ring), key=lambda item: item[1])
    }


def bits(graph: Graph) -> bytes:
    """A canonical encoding: rows in ascending order of device, one bit per column, rows padded to bytes."""
    order = sorted(graph)
    width = (len(order) + 7) // 8
    rows = []
    for device in order:
        row = sum(1 << column for column, other in enumerate(order) if other in graph[device])
        rows.append(row.to_bytes(width, "little"))
    return b"".join(rows)
