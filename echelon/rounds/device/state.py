"""What a device's core is told at its start, and what it keeps: updates, offers, and what survives a restart."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.laws.blocks import joined
from echelon.messages.adapter import F32, WHOLE, Held
from echelon.messages.split import MAX_JOBS
from echelon.secagg.prg import ALONE, Spread

PATIENCE, HOLD, LEAVE, RETRY, TRIPS = "patience", "hold", "leave", "retry", "trips"
"""Names of a device's timers."""


@dataclass(frozen=True, slots=True)
class DeviceOptions:
    """What a device is told by its own configuration, besides the signed manifest.

    Attributes:
        patience: seconds that it waits for a newer adapter after an offer, before it trains on from its own state.
        ahead: most training jobs that it may run while one offer is undecided.
        shards: into how many shards the boundary's data is dealt; None: the device has data of its own.
        hold: seconds that an offer on shards which are another device's by now may wait for a cohort. Longer than
            windows take to close, so that only offers go which block each other.
        split: whether an edge trains the middle blocks of its model.
        retry: seconds after which a training job that broke off on the way to or from the edge begins anew.
        trips: seconds between two measurements of the round trips to all edges; None: they are not measured.
        spread: how it makes its masks: alone, or by threads.
    """

    patience: float
    ahead: int
    shards: int | None = None
    hold: float = 60.0
    split: bool = False
    retry: float = 1.0
    trips: float | None = None
    spread: Spread = ALONE


@dataclass(slots=True, kw_only=True)
class Update:
    """What was trained and is not in the boundary's adapter yet.

    Attributes:
        vector: where it moved, float32[d].
        base_version: version of the adapter that it was trained from; the oldest of them.
        base_sha256: that adapter's digest.
        tokens: tokens that were read.
        loss_sum: Σ loss in nats.
        loss_tokens: tokens that the loss counts.
        shards: the data shards that it was trained on.
        edge: which edge holds the middle of it; the vector is 0 there.
        jobs: the training jobs behind it, by which that edge knows them.
        held: the blocks that it moves itself.
    """

    vector: F32
    base_version: int
    base_sha256: bytes
    tokens: int = 0
    loss_sum: float = 0.0
    loss_tokens: int = 0
    shards: frozenset[int] = frozenset()
    edge: str = ""
    jobs: tuple[int, ...] = ()
    held: Held = WHOLE

    def fits_with(self, later: Update) -> bool:
        """Whether both can be one update for an edge: it has the middle of both, trained from one version."""
        if self.edge != later.edge:
            return False
        bases = self.base_version == later.base_version
        return not self.edge or (bases and len(self.jobs) + len(later.jobs) <= MAX_JOBS)

    def add(self, later: Update) -> None:
        """Add a later update to this one; it keeps its own base, which is the older one."""
        self.jobs = (*self.jobs, *later.jobs)
        self.vector = self.vector + later.vector
        self.held = joined(self.held, later.held)
        self.tokens += later.tokens
        self.loss_sum += later.loss_sum
        self.loss_tokens += later.loss_tokens
        self.shards |= later.shards


@dataclass(slots=True)
class Offer:
    """An update that the aggregator was told of.

    Attributes:
        number: its number on this device.
        update: what is offered.
        n: its weight before staleness, in buckets of tokens.
        window: the cohort's in which it was spent, -1 before.
        merged_in: version whose adapter contains it; -1 while undecided.
    """

    number: int
    update: Update
    n: int
    window: int = -1
    merged_in: int = -1

    @property
    def unspent(self) -> bool:
        """Whether no masked form of it has left the device."""
        return self.window < 0

    def undecided_in(self, window: int) -> bool:
        """Whether it was spent in this window, and is in no adapter."""
        return self.window == window and self.merged_in < 0


@dataclass(slots=True)
class DeviceState:
    """What survives a restart, apart from the vectors.

    Attributes:
        offers: number of the newest offer.
        member_of: newest window whose cohort this device was in.
        evaluated: newest commit that was evaluated, or that an evaluation began of.
        evaluation: (commit, Σ loss in units of 2**-16, tokens), and behind them the two integers of each metric of the
            manifest, until it was part of a sum.
        finished: whether the run has ended.
        released: (merge version, included sets) of windows for which unmasking shares left this device.
        jobs: number of the newest job that was begun with an edge.
        after: the newest job with an edge that ended, whose moments the next one goes on from.
    """

    offers: int = 0
    member_of: int = -1
    evaluated: int = -1
    evaluation: tuple[int, ...] | None = None
    finished: bool = False
    released: tuple[int, tuple[tuple[str, ...], ...]] = (-1, ())
    jobs: int = 0
    after: int = 0
