"""What an aggregator knows of its boundary's edges: which are there, which device has which, and whom that lets in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from echelon.elsa.assignment import PPM, AssignmentRule, PlacedDevice, assign
from echelon.errors import ConfigError
from echelon.laws.snapshot import SnapshotMap
from echelon.messages.split import Assigned, Assignment, Trips
from echelon.rounds.aggregator.trust_standings import RecordShape, StoredStandings, TrustStandings

KEPT, ENOUGH = 4, 2
"""How many measurements of a round trip are kept, and how many it takes to go by them."""
SILENT = 2
"""Looks in a row at which an edge had said nothing, after which it is taken for lost."""


@dataclass(frozen=True, slots=True)
class EdgeAssignmentOptions:
    """What the aggregator's configuration says of edges.

    Attributes:
        edges: their names, ascending.
        devices: the devices that train with one, ascending.
        look: seconds between two looks at who sent a heartbeat; longer than an edge's beat.
        limits: the most devices of those edges that have a limit of their own.
        floor: fewest devices with which an edge can release anything.
        shape: what every record of a probed device has.
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
    limits: Mapping[str, int] = field(default_factory=dict)
    floor: int = 1
    shape: RecordShape | None = None


def places(count: int, edges: Sequence[str], limits: Mapping[str, int]) -> dict[str, int]:
    """How many of `count` devices each edge takes at most: its limit, and without one its equal share.

    Where some have limits, the others take a share that is rounded up, or what the limits leave, if that is more.

    Args:
        count: devices to be placed.
        edges: names of the edges.
        limits: most devices of an edge, where it has a limit.
    """
    free = [edge for edge in edges if edge not in limits]
    if len(free) == len(edges):
        return even(count, edges, limits)
    room = {edge: min(count, limits.get(edge, -(-count // len(edges)))) for edge in edges}
    left = count - sum(room.values())
    if free and left > 0:
        room |= {edge: room[edge] + -(-left // len(free)) for edge in free}
    return room


def even(count: int, edges: Sequence[str], limits: Mapping[str, int]) -> dict[str, int]:
    """Room for exactly `count` devices, as evenly as limits allow; for fewer if they do not.

    Args:
        count: devices to be placed.
        edges: names of the edges; of equal ones the first is filled first.
        limits: most devices of an edge, where it has a limit.
    """
    room = dict.fromkeys(edges, 0)
    while count > 0:
        open_ = [edge for edge in edges if room[edge] < limits.get(edge, count + room[edge])]
        if not open_:
            break
        edge = min(open_, key=lambda name: room[name])
        room[edge] += 1
        count -= 1
    return room


Measured = Mapping[str, Mapping[str, Sequence[int]]]
"""Round trips in microseconds, by device and edge, the newest last."""


def trip_of(measured: Sequence[int]) -> int | None:
    """What measurements say of a distance: the shortest, up to the next power of two. None of fewer than `ENOUGH`.

    What is above the shortest are waits of machines that had other things to do; and where these decide, two edges
    within a factor of two of each other cannot be told apart.
    """
    if len(measured) < ENOUGH:
        return None
    shortest = min(measured)
    return 1 << (shortest - 1).bit_length() if shortest else 0


def distances(devices: Sequence[str], edges: Sequence[str], trips: Measured) -> dict[str, dict[str, int]]:
    """Each device's round trip to each edge, in microseconds.

    What was not measured counts as the mean of what other devices measured to that edge, or else of what this device
    measured to others; where nothing was measured all are equal.

    Args:
        devices: names of those to be placed.
        edges: names of the edges.
        trips: measured round trips, by device and edge.
    """
    known: dict[str, dict[str, int]] = {}
    for device, measured in trips.items():
        trips_known = {edge: trip_of(measured.get(edge, ())) for edge in edges}
        known[device] = {edge: trip for edge, trip in trips_known.items() if trip is not None}
    to = {
        edge: [trips_known[edge] for trips_known in known.values() if edge in trips_known] for edge in edges
    }
    distance = {}
    for device in devices:
        mine = known.get(device, {})
        guesses = {edge: to[edge] or list(mine.values()) or [0] for edge in edges}
        distance[device] = {edge: mine.get(edge, _mean(guesses[edge])) for edge in edges}
    return distance


def _mean(values: Sequence[int]) -> int:
    return sum(values) // len(values)


def by_cost(
    devices: Sequence[str],
    *,
    room: Mapping[str, int],
    before: Mapping[str, str],
    labels: Mapping[str, int],
    trust: Mapping[str, int],
    trips: Measured,
) -> dict[str, str]:
    """Each device's edge by `elsa.assignment`: near, and with those of its cluster; no edge has more than its room.

    Where there is too little room, the least trusted have none ("").

    Args:
        devices: names of those to be placed.
        room: how many devices each edge takes.
        before: the edge that each device had; "" or absent: none.
        labels: cluster of each device, as far as known.
        trust: of each device in millionths; absent: full.
        trips: measured round trips, by device and edge.
    """
    ranked = sorted(devices, key=lambda device: (-trust.get(device, PPM), not before.get(device), device))
    placed = ranked[: sum(room.values())]
    far = distances(placed, tuple(room), trips)
    known = {
        device: PlacedDevice(labels.get(device, 0), trust.get(device, PPM), far[device]) for device in placed
    }
    current = {device: edge for device, edge in before.items() if edge in room and device in known}
    # Nobody is a stranger where nothing is known of clusters.
    rule = AssignmentRule() if labels else AssignmentRule(affinity=0)
    return dict.fromkeys(devices, "") | assign(known, room, current, rule)


def spread(devices: Sequence[str], room: Mapping[str, int], before: Mapping[str, str]) -> dict[str, str]:
    """Each device's edge: the one it had if that is there and not full, else the one with fewest; "" if all are full.

    `room` has the edges that are there, and how many devices each takes.

    Args:
        devices: names, in the order that they choose.
        room: how many devices each edge takes.
        before: the edge that each device had; "" or absent: none.
    """
    load = dict.fromkeys(room, 0)
    assigned: dict[str, str] = {}
    for device in devices:
        edge = before.get(device, "")
        if edge in load and load[edge] < room[edge]:
            assigned[device] = edge
            load[edge] += 1
    for device in devices:
        if device not in assigned:
            open_ = [edge for edge in room if load[edge] < room[edge]]
            edge = min(open_, key=lambda name: (load[name], name), default="")
            assigned[device] = edge
            if edge:
                load[edge] += 1
    return assigned


class StoredEdges(SnapshotMap, frozen=True, kw_only=True):
    """Edges in a snapshot.

    Attributes:
        assignment: the bytes of its record.
        standings: of probed devices.
        trips: the newest measurements, by device and edge.
    """

    assignment: bytes
    standings: StoredStandings | None
    trips: dict[str, dict[str, list[int]]]


@dataclass
class Edges:
    """The state; `look` and `heard` say whether the assignment changed."""

    terms: EdgeAssignmentOptions
    assignment: dict[str, str] = field(default_factory=dict)
    number: int = 0
    lost: set[str] = field(default_factory=set)
    trips: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """The newest measurements; see `Measured`."""
    quorum: int = 1
    """Fewest records that a judgement of probed devices rests on."""
    _silent: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        terms = self.terms
        self.standings: TrustStandings | None = None
        if terms.probed is not None:
            if terms.shape is None:
                raise ConfigError(
                    "probed devices need the shape of what they report: it follows from the probes"
                )
            self.standings = TrustStandings(terms.probed, terms.shape, self.quorum, clustered=terms.clusters)

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

    def measured(self, device: str, message: Trips) -> None:
        """A device says how far edges are away; the next look goes by it."""
        held = self.trips.setdefault(device, {})
        for entry in message.entries:
            if entry.edge in self.terms.edges:
                held[entry.edge] = [*held.get(entry.edge, ()), entry.microseconds][-KEPT:]

    def assign(self) -> bool:
        """Deal the devices out anew, moving as few as possible. Whether anything changed."""
        terms, there = self.terms, self.there
        if not there:
            assigned = dict.fromkeys(terms.devices, "")
        else:
            assigned = self._dealt(places(len(terms.devices), there, terms.limits))
            heads = Counter(edge for edge in assigned.values() if edge)
            if any(count < terms.floor for count in heads.values()):
                # The few of an edge would wait there for others that never come.
                assigned = self._dealt(even(len(terms.devices), there, terms.limits))
        if assigned == self.assignment:
            return False
        self.assignment, self.number = assigned, self.number + 1
        return True

    def _dealt(self, room: Mapping[str, int]) -> dict[str, str]:
        devices, standings = self.terms.devices, self.standings
        labels = {} if standings is None else standings.labels
        if not labels and not self.trips:
            return spread(devices, room, self.assignment)
        trust = {} if standings is None else {device: standings.trust(device) for device in devices}
        return by_cost(
            devices=devices, room=room, before=self.assignment, labels=labels, trust=trust, trips=self.trips
        )

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

    def facts(self) -> StoredEdges:
        """What a snapshot keeps. Who is silent is found out anew after a restart."""
        return StoredEdges(
            assignment=self.record().encode(),
            standings=None if self.standings is None else self.standings.facts(),
            trips=self.trips,
        )

    def restore(self, stored: StoredEdges) -> None:
        """Take over what a snapshot kept."""
        self.trips = stored.trips
        self.adopt(Assignment.decode(stored.assignment))
        if self.standings is not None and stored.standings is not None:
            self.standings.restore(stored.standings)


def admitted(
    edges: Sequence[str], floor: int, bases: Sequence[int] = (), *, overdue: bool = True
) -> list[int]:
    """Places of the offers that may be in one cohort.

    An edge with fewer than `floor` of them has none in it: it could not release the middles of so few. Its part is over
    devices that trained from one version. The oldest version with enough of them is the one that counts: who trained
    from a newer one waits for others that will, who trained from an older one is not waited for, and goes along.

    Args:
        edges: the edge of each offer, "" for none.
        floor: fewest devices of a part.
        bases: version that each trained from; none: all from one.
        overdue: whether an edge's devices are let in though no version has enough of them. Their middles are lost then,
            and they go on from one version again.
    """
    bases = bases or [0] * len(edges)
    newest: dict[str, int] = {}
    for edge in {edge for edge in edges if edge}:
        counts = Counter(base for name, base in zip(edges, bases, strict=True) if name == edge)
        enough = [base for base, count in counts.items() if count >= floor]
        if enough:
            newest[edge] = min(enough)
        elif overdue and counts.total() >= floor:
            newest[edge] = max(counts)
    return [place for place, edge in enumerate(edges) if not edge or bases[place] <= newest.get(edge, -1)]
