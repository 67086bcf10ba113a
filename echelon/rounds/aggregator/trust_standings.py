"""What an aggregator makes of its devices' behaviour records: clusters, trust, and who is kept out of a window.

Under secure aggregation nobody can weigh a device down afterwards, so the decision is taken at admission. It can be
seen: the cohort on `control` says who was let in, `deadletter` who was not, and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from echelon.elsa.clustering import cluster
from echelon.elsa.fingerprint import Gaussian, divergences
from echelon.elsa.trust import PPM, Standing, TrustRule, TrustVerdict, admit, judge
from echelon.errors import ProtocolError
from echelon.laws.snapshot import SnapshotList
from echelon.messages.behaviour import Behaviour, Counts
from echelon.messages.floor import heads


class RecordShape(NamedTuple):
    """What every record has: it follows from the terms in which devices are probed, and no device has a say in it."""

    dim: int
    """Of fingerprints."""
    rows: int
    """Predictive distributions."""
    classes: int
    """Of each."""


def quorum(devices: int, k_min: int, colluding: int) -> int:
    """Fewest records that a judgement may rest on.

    As many as a sum may be over, more than half of those that are probed, and enough that whoever is judged has fewer
    colluders than others beside it (2c + 1 others); or all, where there are no more. A few that report while the rest
    is silent would be each other's consensus.

    Args:
        devices: how many are probed.
        k_min: fewest devices that a sum must be over.
        colluding: c, how many devices may work together.
    """
    return min(devices, max(heads(k_min, colluding), devices // 2 + 1, 2 * colluding + 2))


StoredCounts = tuple[str, list[int], bytes]
"""A device, the shape of its counts, and the counts as little-endian uint16."""


class StoredStandings(SnapshotList, frozen=True, kw_only=True):
    """Standings in a snapshot; vectors are little-endian.

    Attributes:
        standing: the bytes of each device's standing.
        labels: the cluster of each device.
        numbers: the newest record of each device.
        counts: of the records before the last judgement, and since.
        prints: mean, float64[k], and covariance, float64[k, k], of each device's fingerprint.
    """

    standing: list[tuple[str, bytes]]
    labels: list[tuple[str, int]]
    numbers: list[tuple[str, int]]
    counts: tuple[list[StoredCounts], list[StoredCounts]]
    prints: list[tuple[str, bytes, bytes]]


@dataclass
class TrustStandings:
    """The state.

    Args:
        terms: digest that records must name to be comparable.
        shape: what every record has.
        quorum: fewest records that a judgement rests on.
        rule: how evidence becomes trust.
        clustered: whether devices are clustered by their fingerprints; otherwise all are one cluster.
    """

    terms: bytes
    shape: RecordShape
    quorum: int = 1
    rule: TrustRule = field(default_factory=TrustRule)
    clustered: bool = True
    standing: dict[str, Standing] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    _past: dict[str, Counts] = field(default_factory=dict)
    _prints: dict[str, Gaussian] = field(default_factory=dict)
    _now: dict[str, Counts] = field(default_factory=dict)

    def take(self, device: str, record: Behaviour) -> None:
        """A device's record; of several before the next judgement the newest counts.

        Raises:
            ProtocolError: it is not of the boundary's terms and shape, or older than one that was taken; nothing was
                changed.
        """
        if record.terms != self.terms:
            raise ProtocolError(
                f"{device} was probed in other terms than the boundary's: its record says nothing"
            )
        if record.number <= self.numbers.get(device, -1):
            raise ProtocolError(f"{device} sent record {record.number} again, or late")
        shape = RecordShape(record.dim, record.rows, record.classes)
        if shape != self.shape:
            raise ProtocolError(
                f"{device} reports {shape.rows} distributions over {shape.classes} classes and {shape.dim} "
                f"dimensions, by the terms they are {self.shape.rows}, {self.shape.classes} and {self.shape.dim}"
            )
        counts, print_ = record.counts(), Gaussian.of_record(record)
        self.numbers[device], self._now[device], self._prints[device] = record.number, counts, print_

    def known(self, device: str) -> bool:
        """Whether there is a record of the device."""
        return device in self._now or device in self.standing

    @property
    def enough(self) -> bool:
        """Whether as many reported since the last judgement as the next one needs."""
        return len(self._now) >= max(1, self.quorum)

    def judge(self) -> bool:
        """Cluster and score what came in since the last time; False while too few reported: nothing is judged then."""
        if not self.enough:
            return False
        names = sorted(self._prints)
        labels: Sequence[int] = [0] * len(names)
        if self.clustered:
            labels = cluster(divergences([self._prints[name] for name in names])).labels
        self.labels = dict(zip(names, labels, strict=True))
        self.standing, _ = judge(self._now, self._past, self.labels, self.standing, self.rule)
        self._past |= self._now
        self._now = {}
        return True

    def verdict(self, device: str) -> TrustVerdict:
        """Whether the device may be in a window now, and if not, why; who reported and was not judged yet may be."""
        if device in self._now and device not in self.standing:
            return TrustVerdict.ADMITTED
        return admit(self.standing.get(device), self.rule)

    def trust(self, device: str) -> int:
        """In millionths; full for a device of which nothing is known."""
        standing = self.standing.get(device)
        return PPM if standing is None else standing.trust

    def facts(self) -> StoredStandings:
        """What a snapshot keeps."""
        return StoredStandings(
            standing=[(device, standing.encode()) for device, standing in sorted(self.standing.items())],
            labels=sorted(self.labels.items()),
            numbers=sorted(self.numbers.items()),
            counts=(_counts(self._past), _counts(self._now)),
            prints=[
                (device, one.mean.astype("<f8").tobytes(), one.covariance.astype("<f8").tobytes())
                for device, one in sorted(self._prints.items())
            ],
        )

    def restore(self, stored: StoredStandings) -> None:
        """Take over what a snapshot kept.

        Raises:
            CodecError: a standing has another form.
            ValueError: a vector has another length.
        """
        self.standing = {device: Standing.decode(data) for device, data in stored.standing}
        self.labels, self.numbers = dict(stored.labels), dict(stored.numbers)
        past, now = stored.counts
        self._past, self._now = _uncounted(past), _uncounted(now)
        self._prints = {}
        for device, mean, covariance in stored.prints:
            centre = np.frombuffer(mean, "<f8").astype(np.float64)
            square = np.frombuffer(covariance, "<f8").astype(np.float64).reshape(centre.size, centre.size)
            self._prints[device] = Gaussian(centre, square)


def _counts(counts: dict[str, Counts]) -> list[StoredCounts]:
    return [(device, list(one.shape), one.astype("<u2").tobytes()) for device, one in sorted(counts.items())]


def _uncounted(plain: list[StoredCounts]) -> dict[str, Counts]:
    return {
        device: np.frombuffer(data, "<u2").astype(np.uint16).reshape(shape) for device, shape, data in plain
    }
