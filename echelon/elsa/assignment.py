"""Devices to edges: a minimum-cost assignment by affinity, round trip, trust and capacity, with hysteresis under churn.

ELSA's cost is not public; this one is ours. Costs are integers of 1/1000000, so that the solver's sums are exact and
the same everywhere; equal costs are decided by order of names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echelon.errors import LimitExceeded, ProtocolError

PPM = 1_000_000
MAX_DEVICES = 4096
MAX_PLACES = 1 << 22
"""Most devices times places: what one assignment may cost in memory and time."""
MAX_COST = 1 << 27
"""Largest cost of one device: sums of 4096 of them, times as many again, are exact in a float64."""

Costs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PlacedDevice:
    """A device to be placed: its cluster, its trust in millionths, and round trips in microseconds by edge.

    An edge that is missing from `rtt_us` cannot be reached.
    """

    cluster: int
    trust: int
    rtt_us: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class AssignmentRule:
    """The weights of a cost, in millionths.

    `affinity` is the cost of sitting among strangers, `latency` that of a round trip of `rtt_unit_us`. `base` is how
    much an untrusted device's cost counts against a fully trusted one's. `hysteresis` is what a move has to gain.
    """

    affinity: int = 500_000
    latency: int = 500_000
    rtt_unit_us: int = 100_000
    base: int = 250_000
    hysteresis: int = 100_000

    def __post_init__(self) -> None:
        if min(self.affinity, self.latency, self.hysteresis) < 0 or self.rtt_unit_us < 1:
            raise ProtocolError(f"{self}: weights are not negative and the unit of round trips is positive")
        if not 0 < self.base <= PPM or max(self.affinity, self.latency, self.hysteresis) > 100 * PPM:
            raise ProtocolError(f"{self}: base is in (0, {PPM}], weights are at most {100 * PPM}")


def hosts(devices: Mapping[str, PlacedDevice], capacity: Mapping[str, int]) -> dict[tuple[int, str], int]:
    """How many devices of each cluster each edge is meant for, by (cluster, edge): where clusters should sit together.

    Clusters, the largest first, take the edge with the least mean round trip among those with the most room for them,
    and go on to the next where they do not fit. It is a target that costs refer to, not the assignment.
    """
    sizes: dict[int, int] = {}
    for device in devices.values():
        sizes[device.cluster] = sizes.get(device.cluster, 0) + 1
    room = dict(capacity)
    target: dict[tuple[int, str], int] = {}
    for cluster, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        members = [device for device in devices.values() if device.cluster == cluster]
        left = size
        while left and any(room.values()):
            edge = min(
                (edge for edge in sorted(room) if room[edge]),
                key=lambda edge: (-min(left, room[edge]), _mean_rtt(members, edge)),
            )
            taken = min(left, room[edge])
            target[cluster, edge] = target.get((cluster, edge), 0) + taken
            room[edge] -= taken
            left -= taken
    return target


def _mean_rtt(members: list[PlacedDevice], edge: str) -> float:
    known = [device.rtt_us[edge] for device in members if edge in device.rtt_us]
    missing = len(members) - len(known)
    return (sum(known) + missing * 60_000_000) / len(members)


def cost(device: PlacedDevice, edge: str, share: int, rule: AssignmentRule) -> int | None:
    """What a device at an edge costs in millionths, or None if it cannot be reached.

    (base + (1 - base) · trust) · (affinity · (1 - share) + latency · rtt / unit), with `share` in millionths the part
    of the edge that is meant for the device's cluster. Trust is a factor because it decides who gets the better place
    where places are short: a trusted device's cost weighs more.

    Args:
        device: its trust and its round trips, by edge.
        edge: name of the edge.
        share: of the device's cluster at this edge, in millionths.
        rule: weights of affinity, latency and trust.
    """
    if edge not in device.rtt_us:
        return None
    distance = rule.affinity * (PPM - share) // PPM + rule.latency * device.rtt_us[edge] // rule.rtt_unit_us
    weight = rule.base + (PPM - rule.base) * device.trust // PPM
    return min(distance * weight // PPM, MAX_COST)


def assign(
    devices: Mapping[str, PlacedDevice],
    capacity: Mapping[str, int],
    current: Mapping[str, str] | None = None,
    rule: AssignmentRule | None = None,
) -> dict[str, str]:
    """The edge of every device, by name: the least sum of costs plus `hysteresis` for every move.

    A device moves only if that lowers the sum by more than the hysteresis for each device that moves with it, so among
    assignments of one cost the one of fewest moves is taken. A device whose edge is not in `capacity` any more,
    or cannot be reached, is placed anew, and its move is free. The rectangular assignment problem is solved
    exactly, every edge being as many places as its capacity.

    Args:
        devices: cluster, trust and round trips of each, by name.
        capacity: how many devices an edge takes, by its name.
        current: edge of each device now; absent are new ones.
        rule: weights of affinity, latency and trust, and the price of a move; None: the defaults.

    Raises:
        LimitExceeded: there are more devices than places, or some device can reach no edge with room for it.
        ProtocolError: a value out of range, or too large a problem.
    """
    rule = rule or AssignmentRule()
    current = current or {}
    _check(devices, capacity)
    if not devices:
        return {}
    names, edges = sorted(devices), sorted(edge for edge, places in capacity.items() if places)
    total = sum(capacity.values())
    if len(names) > total:
        raise LimitExceeded(
            f"{len(names)} devices need a place, the {len(capacity)} edges have {total}: add edges or raise capacities"
        )
    table = _table(devices=devices, capacity=capacity, current=current, rule=rule, names=names, edges=edges)
    places = [edge for edge in range(len(edges)) for _ in range(min(capacity[edges[edge]], len(names)))]
    from scipy.optimize import linear_sum_assignment  # at use: services without edges need none of it

    rows, columns = linear_sum_assignment(table[:, places].astype(np.float64))
    chosen = {names[row]: edges[places[column]] for row, column in zip(rows, columns, strict=True)}
    unplaced = [name for name in names if chosen[name] not in devices[name].rtt_us]
    if unplaced:
        raise LimitExceeded(
            f"{len(unplaced)} device(s), {unplaced[0]} among them, find no place at an edge that they can reach: raise "
            "the capacity of those edges, or mend the links to others"
        )
    return chosen


def _table(
    devices: Mapping[str, PlacedDevice],
    capacity: Mapping[str, int],
    current: Mapping[str, str],
    *,
    rule: AssignmentRule,
    names: list[str],
    edges: list[str],
) -> Costs:
    """Costs with hysteresis, int64[devices, edges].

    Each cost is multiplied by more than the number of devices, and a move adds one: between equal sums the fewer moves
    win even without hysteresis. What cannot be reached costs more than everything else together.
    """
    unit = len(names) + 1
    target = hosts(devices, capacity)
    table = np.empty((len(names), len(edges)), dtype=np.int64)
    for row, name in enumerate(names):
        device = devices[name]
        settled = current.get(name)
        stays = settled in edges and settled in device.rtt_us
        for column, edge in enumerate(edges):
            share = PPM * target.get((device.cluster, edge), 0) // capacity[edge]
            price = cost(device, edge, share, rule)
            if price is None:
                table[row, column] = -1
            else:
                moves = stays and edge != settled
                table[row, column] = price * unit + ((rule.hysteresis * unit + 1) if moves else 0)
    table[table < 0] = (max(0, int(table.max())) + 1) * unit
    return table


def moves(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """Devices that had an edge and have another one now, in order of name."""
    return tuple(sorted(name for name, edge in after.items() if name in before and before[name] != edge))


def _check(devices: Mapping[str, PlacedDevice], capacity: Mapping[str, int]) -> None:
    if any(places < 0 for places in capacity.values()):
        raise ProtocolError("an edge has a negative capacity")
    if (
        len(devices) > MAX_DEVICES
        or len(devices) * min(sum(capacity.values()), len(devices) * len(capacity)) > MAX_PLACES
    ):
        raise ProtocolError(
            f"{len(devices)} devices at {len(capacity)} edges are more than one assignment takes; split the boundary"
        )
    for name, device in devices.items():
        if not 0 <= device.trust <= PPM or any(not 0 <= rtt < 1 << 40 for rtt in device.rtt_us.values()):
            raise ProtocolError(
                f"device {name}: trust is 0 to {PPM}, round trips are microseconds that are not negative"
            )
