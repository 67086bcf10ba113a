"""Who masks with whom.

On the complete graph everybody shares a mask with everybody (Bonawitz et al. 2017). On a k-regular graph over
a random order each device has k neighbours, so its work no longer grows with the cohort (Bell et al., CCS
2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead", section 3). Theirs hides a device with
high probability over the graph; ours has a higher threshold and checks that the ring is nowhere cut, and needs no
luck (docs/secagg.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from echelon.errors import ConfigError
from echelon.messages.wire import DeviceId, pack

Graph = Mapping[DeviceId, frozenset[DeviceId]]
"""For each device its neighbours: symmetric, nobody is a neighbour of itself."""


def complete(devices: Iterable[DeviceId]) -> Graph:
    """Everybody next to everybody else."""
    everybody = frozenset(devices)
    return {device: everybody - {device} for device in sorted(everybody)}


@dataclass(frozen=True)
class Ring:
    """A Harary graph: on a ring in some order, each device next to the `degree` others that are nearest.

    Attributes:
        order: the devices, around the ring.
        degree: k, even, at most two less than there are devices.

    Raises:
        ConfigError: there is no such graph.
    """

    order: tuple[DeviceId, ...]
    degree: int

    def __post_init__(self) -> None:
        n = len(self.order)
        if len(set(self.order)) != n or not 2 <= self.degree <= n - 2 or self.degree % 2:
            raise ConfigError(
                f"no ring of degree {self.degree} on {n} devices: take an even degree in 2..{n - 2}"
            )

    @classmethod
    def of(cls, devices: Iterable[DeviceId], degree: int, seed: bytes) -> Ring:
        """In an order that follows from `seed` and the names alone; `seed` is public.

        Args:
            devices: names of the cohort, in any order.
            degree: neighbours of each device.
            seed: public; whoever has it derives the same ring.
        """
        order = sorted(set(devices), key=lambda device: hashlib.sha256(pack([seed, device])).digest())
        return cls(tuple(order), degree)

    @cached_property
    def neighbours(self) -> Graph:
        """Who is next to whom."""
        n, half = len(self.order), self.degree // 2
        steps = [step for near in range(1, half + 1) for step in (near, -near)]
        return {
            device: frozenset(self.order[(place + step) % n] for step in steps)
            for place, device in sorted(enumerate(self.order), key=lambda item: item[1])
        }

    def thinnest(self, devices: Collection[DeviceId]) -> int:
        """The fewest of these devices on any arc of degree / 2 consecutive places: 0 where the ring is cut."""
        present = [device in devices for device in self.order]
        half = self.degree // 2
        here = sum(present[:half])
        fewest = here
        for place in range(len(present)):
            here += present[(place + half) % len(present)] - present[place]
            fewest = min(fewest, here)
        return fewest


def bits(graph: Graph) -> bytes:
    """A canonical encoding: rows in ascending order of device, one bit per column, rows padded to bytes."""
    order = sorted(graph)
    width = (len(order) + 7) // 8
    columns = {device: column for column, device in enumerate(order)}
    rows = (sum(1 << columns[other] for other in graph[device]) for device in order)
    return b"".join(row.to_bytes(width, "little") for row in rows)
