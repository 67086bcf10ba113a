"""Who is admitted to a window: consistency of a device's predictions on public probes, with its cluster and its past.

Under secure aggregation nobody can weigh a device down afterwards, so trust decides before: a device of low trust stays
out of the cohort. The measure and every constant are ours; docs/elsa.md says what they were chosen from.

Divergences are floats and may differ in their last bits between machines. They are rounded to integers once
(`TrustEvidence`), and everything from there on is integer arithmetic, so that a recorded decision can be taken again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Self

import numpy as np

from echelon.elsa.predictions import consensus, jensen_shannon
from echelon.errors import CodecError, ProtocolError
from echelon.messages.behaviour import Counts
from echelon.messages.wire import pack, unpack

PPM = 1_000_000
"""Trust and scores are integers of 1/1000000."""
MILLI = 1000
"""Robust deviations are integers of 1/1000."""
MOST = 10**9
"""Largest magnitude of a deviation, in thousandths."""


class TrustVerdict(StrEnum):
    """Why a device is admitted or kept out: the closed list that goes with a refusal."""

    ADMITTED = "admitted"
    NO_RECORD = "no-record"
    INCONSISTENT = "inconsistent"
    ERRATIC = "erratic"
    STALE = "stale"

    @property
    def admitted(self) -> bool:
        """Whether the device may take part in a window."""
        return self is TrustVerdict.ADMITTED


@dataclass(frozen=True, slots=True)
class TrustRule:
    """How evidence becomes trust.

    A deviation up to `fine` scores 1, from `bad` on 0, in between linearly; both are robust standard deviations of log
    divergence. `spread` is the smallest standard deviation that is believed, in nats of log divergence. `half`
    is the weight of the newest score, in parts of 256. A device under `low` is kept out until it is over `high`.
    `floor` is a divergence in bits that counts as none. `still` is the share of the cluster's typical movement under
    which a device has not moved; after `patience` such records in a row it is stale. A cluster of fewer than `peers`
    others, or of no more than the share `minor` of the boundary, is no consensus: then the whole boundary is asked.
    Otherwise a few devices that are wrong in one way would vouch for each other.
    """

    fine: float = 5.0
    bad: float = 9.0
    spread: float = 0.35
    half: int = 128
    low: int = 400_000
    high: int = 600_000
    floor: float = 1e-5
    still: float = 0.02
    patience: int = 2
    peers: int = 2
    minor: float = 0.34

    def __post_init__(self) -> None:
        if not 0 < self.fine < self.bad or self.spread <= 0 or not 1 <= self.half <= 256:
            raise ProtocolError(f"{self}: needs 0 < fine < bad, a positive spread, and half of 1 to 256")
        if not 0 <= self.low < self.high <= PPM or self.floor <= 0 or not 0 <= self.still < 1:
            raise ProtocolError(
                f"{self}: needs 0 <= low < high <= {PPM}, a positive floor, and still in [0, 1)"
            )
        if self.patience < 1 or self.peers < 1 or not 0 <= self.minor < 1:
            raise ProtocolError(f"{self}: patience and peers are at least 1, minor is a share in [0, 1)")


@dataclass(frozen=True, slots=True)
class TrustEvidence:
    """What one record says about a device, as integers.

    `apart` is the robust deviation of its divergence from the consensus, `moved` of its divergence from its own past,
    both in thousandths and 0 where there is nothing to compare with; `still` says that it has not moved while the
    cluster did.
    """

    apart: int
    moved: int
    still: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """A device's trust: all integers, so that it serialises and replays exactly.

    `trust` is in millionths, `records` counts what it rests on, `idle` the records in a row without movement, `out`
    says that it is kept out, `apart` and `moved` are of the newest evidence.
    """

    trust: int = PPM
    records: int = 0
    idle: int = 0
    out: bool = False
    apart: int = 0
    moved: int = 0

    def encode(self) -> bytes:
        """Its one encoding: canonical msgpack of six integers."""
        return pack([self.trust, self.records, self.idle, int(self.out), self.apart, self.moved])

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The standing that `encode` wrote. Raises `CodecError` for anything else."""
        fields = unpack(data, limit=256)
        if (
            not isinstance(fields, tuple)
            or len(fields) != 6
            or not all(type(field) is int for field in fields)
        ):
            raise CodecError("a standing is a list of six integers")
        trust, records, idle, out, apart, moved = fields
        bounded = abs(apart) <= MOST and abs(moved) <= MOST
        if not (0 <= trust <= PPM and records >= 0 and 0 <= idle <= records and out in (0, 1) and bounded):
            raise CodecError("a standing has a value out of range")
        standing = cls(trust, records, idle, bool(out), apart, moved)
        if standing.encode() != data:
            raise CodecError("a standing re-encodes to other bytes")
        return standing


def evidence(
    now: Sequence[Counts],
    past: Sequence[Counts | None],
    labels: Sequence[int],
    standing: Sequence[Standing],
    rule: TrustRule | None = None,
) -> tuple[TrustEvidence, ...]:
    """What a round of records says about every device, in their order.

    `now` are predictive distributions, uint16[rows, classes]; `past` those of each device's record before, None at its
    first; `labels` the clusters. For device i of cluster C:

    * a_i = JS(P_i, consensus of C without i), m_i = JS(P_i, P_i before);
    * deviation of x_i: (ln x_i - median ln x) / max(1.4826 MAD(ln x), spread), median and MAD over the others of C.

    Logarithms because divergences spread by factors; others alone, so that nobody hides in a scale that they
    widened. Devices that are kept out do not speak for others. Where C has too few, the others are those of all
    clusters.

    Args:
        now: of each device's newest record.
        past: of each device's record before; None at its first.
        labels: cluster of each device.
        standing: of each device before this round.
        rule: thresholds; None: the defaults.

    Raises:
        ProtocolError: lists of different lengths, or records of different shapes.
    """
    rule = rule or TrustRule()
    count = len(now)
    if not len(past) == len(labels) == len(standing) == count:
        raise ProtocolError("evidence needs a past, a label and a standing for every device")
    trusted = [place for place in range(count) if not standing[place].out]

    def others_of(place: int) -> list[int]:
        everyone = [other for other in trusted if other != place]
        near = [other for other in everyone if labels[other] == labels[place]]
        enough = len(near) >= rule.peers and len(near) + 1 > rule.minor * (len(everyone) + 1)
        return near if enough else everyone

    peers = [others_of(place) for place in range(count)]
    apart = [
        jensen_shannon(now[place], consensus([now[other] for other in peers[place]]))
        if peers[place]
        else None
        for place in range(count)
    ]
    moved: list[float | None] = []
    for current, before in zip(now, past, strict=True):
        moved.append(None if before is None else jensen_shannon(current, before))
    records = []
    for place in range(count):
        typical = [value for other in peers[place] if (value := moved[other]) is not None]
        own = moved[place]
        middle = float(np.median(typical)) if typical else 0.0
        still = own is not None and middle > rule.floor and own < rule.still * middle
        records.append(
            TrustEvidence(
                _deviation(apart[place], [apart[other] for other in peers[place]], rule),
                _deviation(own, typical, rule),
                still,
            )
        )
    return tuple(records)


def _deviation(value: float | None, others: Sequence[float | None], rule: TrustRule) -> int:
    """The robust deviation of a divergence from others' in thousandths, on a logarithmic scale."""
    known = [math.log(max(other, rule.floor)) for other in others if other is not None]
    if value is None or len(known) < 2:
        return 0
    middle = float(np.median(known))
    spread = max(1.4826 * float(np.median(np.abs(np.array(known) - middle))), rule.spread)
    scaled = round(MILLI * (math.log(max(value, rule.floor)) - middle) / spread)
    return max(-MOST, min(MOST, scaled))


def score(seen: TrustEvidence, rule: TrustRule) -> int:
    """How well a record agrees, in millionths: by the larger of both deviations; only being too far counts."""
    fine, bad = round(rule.fine * MILLI), round(rule.bad * MILLI)
    worst = max(seen.apart, seen.moved)
    return max(0, min(PPM, PPM * (bad - worst) // (bad - fine)))


def update(standing: Standing, seen: TrustEvidence, rule: TrustRule | None = None) -> Standing:
    """The standing after one more record.

    trust ← trust + (score - trust) · half / 256, in integers rounded down; the first record's score is taken as it is,
    because a newcomer has no credit. Out when trust < low, in again when trust > high. A device that does not
    move is out from the `patience`-th record in a row on, and in again with the first that moves if its trust is high.

    Args:
        standing: of the device before.
        seen: evidence of its record.
        rule: thresholds; None: the defaults.
    """
    rule = rule or TrustRule()
    agrees = score(seen, rule)
    trust = agrees if standing.records == 0 else standing.trust + (agrees - standing.trust) * rule.half // 256
    idle = standing.idle + 1 if seen.still else 0
    out = idle >= rule.patience or trust < rule.low or (standing.out and trust <= rule.high)
    return replace(
        standing,
        trust=trust,
        records=standing.records + 1,
        idle=idle,
        out=out,
        apart=seen.apart,
        moved=seen.moved,
    )


def admit(standing: Standing | None, rule: TrustRule | None = None) -> TrustVerdict:
    """Whether a device may take part in the next window, and if not, why.

    `None` or no record yet: kept out, because a record costs a device one warm-up and says all that is asked for.
    """
    rule = rule or TrustRule()
    if standing is None or standing.records == 0:
        return TrustVerdict.NO_RECORD
    if not standing.out:
        return TrustVerdict.ADMITTED
    if standing.idle >= rule.patience:
        return TrustVerdict.STALE
    return TrustVerdict.ERRATIC if standing.moved > standing.apart else TrustVerdict.INCONSISTENT


def judge(
    now: Mapping[str, Counts],
    past: Mapping[str, Counts],
    labels: Mapping[str, int],
    standing: Mapping[str, Standing],
    rule: TrustRule | None = None,
) -> tuple[dict[str, Standing], dict[str, TrustEvidence]]:
    """One round over named devices: the new standing of all, and the evidence that a replay needs.

    Devices without a record in `now` keep their standing. The result does not depend on the order of the maps.

    Args:
        now: newest records of this round, uint16[rows, classes], by device.
        past: their records before; devices at their first are absent.
        labels: clusters by device.
        standing: by device; absent are newcomers.
        rule: thresholds; None: the defaults.

    Raises:
        ProtocolError: a device has a record and no label.
    """
    rule = rule or TrustRule()
    names = sorted(now)
    missing = [name for name in names if name not in labels]
    if missing:
        raise ProtocolError(f"device {missing[0]} has a record and no cluster: cluster before judging")
    before = [standing.get(name, Standing()) for name in names]
    seen = evidence(
        [now[name] for name in names],
        [past.get(name) for name in names],
        [labels[name] for name in names],
        before,
        rule,
    )
    after = dict(standing)
    for name, old, new in zip(names, before, seen, strict=True):
        after[name] = update(old, new, rule)
    return after, dict(zip(names, seen, strict=True))
