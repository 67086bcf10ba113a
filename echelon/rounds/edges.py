"""What an aggregator knows of its boundary's edges: which are there, which device has which, and whom that lets in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echelon.elsa.assignment import PPM, Device, assign
from echelon.messages.split import Assigned, Assignment
from echelon.rounds.standing import Standings

SILENT = 2
"""Looks in a row at which an edge had said nothing, after which it is taken for lost."""


@dataclass(frozen=True, slots=True)
class EdgesTerms:
    """What the aggregator's configuration says of edges.

    Attributes:
        edges: their names, ascending.
        devices: the devices that train with one, ascending.
        look: seconds between two looks at who sent a heartbeat; longer than an edge's beat.
        probed: digest of the terms in which devices are probed; None: they are not, and nobody is kept out.
        clusters: whether probed devices are clustered; otherwise all are one cluster.
        admission: whether those that are not trusted are kept out.
    """

    edges: tuple[str, ...]
    devices: tuple[str, ...]
    look: float
    probed: bytes | None = None
    clusters: bool = True
    admission: bool = True


def by_affinity(
    devices: Sequence[str],
    edges: Sequence[str],
    before: Mapping[str, str],
    labels: Mapping[str, int],
    trust: Mapping[str, int],
) -> dict[str, str]:
    """Each device's edge by `elsa.assignment`: those of one cluster together, no edge with more than its share.

    Round trips count as equal.
    """
    if not edges:
        return dict.fromkeys(devices, "")
    share = -(-len(devices) // len(edges))
    rtt = dict.fromkeys(edges, 0)
    known = {device: Device(labels.get(device, 0), trust.get(device, PPM), rtt) for device in devices}
    current = {device: edge for device, edge in before.items() if edge in rtt and device in known}
    return assign(known, dict.fromkeys(edges, share), current)


def spread(devices: Sequence[str], edges: Sequence[str], before: Mapping[str, str]) -> dict[str, str]:
    """Each device's edge: the one it had if that is there and not full, else the one with fewest; "" if none is there.

    An edge is full with its share of the devices, rounded up.
    """
    load = dict.fromkeys(edges, 0)
    share = -(-len(devices) // max(1, len(edges)))
    found: dict[str, str] = {}
    for device in devices:
        edge = before.get(device, "")
        if edge in load and load[edge] < share:
            found[device] = edge
            load[edge] += 1
    for device in devices:
        if device not in found:
            edge = min(load, key=lambda name: (load[name], name), default="")
            found[device] = edge
            if edge:
                load[edge] += 1
    return found


@dataclass
class Edges:
    """The state; `look` and `heard` say whether the assignment changed."""

    terms: EdgesTerms
    assignment: dict[str, str] = field(default_factory=dict)
    number: int = 0
    lost: set[str] = field(default_factory=set)
    _silent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        terms = self.terms
        self.standings = None if terms.probed is None else Standings(terms.probed, clustered=terms.clusters)

    @property
    def there(self) -> tuple[str, ...]:
        """Edges that are not taken for lost."""
        return tuple(edge for edge in self.terms.edges if edge not in self.lost)

    def heard(self, edge: str) -> bool:
        """A heartbeat. Whether devices have other edges now."""
        self._silent[edge] = 0
        self.lost.discard(edge)
        return self.number > 0 and self.assign()

    def look(self) -> bool:
        """A period is over: who was silent for too long is lost. Whether devices have other edges now."""
        for edge in self.there:
            self._silent[edge] = self._silent.get(edge, 0) + 1
            if self._silent[edge] > SILENT:
                self.lost.add(edge)
        return self.assign()

    def assign(self) -> bool:
        """Deal the devices out anew, moving as few as possible. Whether anything changed."""
        if self.standings is not None and self.standings.labels:
            trust = {device: self.standings.trust(device) for device in self.terms.devices}
            labels = self.standings.labels
            found = by_affinity(self.terms.devices, self.there, self.assignment, labels, trust)
        else:
            found = spread(self.terms.devices, self.there, self.assignment)
        if found == self.assignment:
            return False
        self.assignment, self.number = found, self.number + 1
        return True

    def record(self) -> Assignment:
        """The decision record of the assignment."""
        entries = tuple(
            Assigned(device=device, edge=edge) for device, edge in sorted(self.assignment.items())
        )
        return Assignment(number=self.number, entries=entries)

    def adopt(self, message: Assignment) -> None:
        """Take over what stands on `control`."""
        if message.number > self.number:
            self.number = message.number
            self.assignment = {entry.device: entry.edge for entry in message.entries}


def admitted(edges: Sequence[str], floor: int) -> list[int]:
    """Places of the offers that may be in one cohort, given the edge of each ("" for none).

    An edge with fewer than `floor` of them has none in it: it could not release the middles of so few.
    """
    return [place for place, edge in enumerate(edges) if not edge or edges.count(edge) >= floor]
