"""What an aggregator is told beside the signed manifest."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.rounds.aggregator.edge_assignment import EdgeAssignmentOptions
from echelon.secagg.prg import ALONE, Spread


@dataclass(frozen=True, slots=True)
class AggregatorOptions:
    """What an aggregator's own configuration says.

    Attributes:
        cohort: K, devices that close a window at once; at most the manifest's `cohort_max`.
        deadline: seconds after which a window closes with whoever is ready, if the floor allows it.
        round_timeout: seconds that each round of secure aggregation may take.
        shards: into how many shards the boundary's data is dealt; then devices come and go, and windows wait only
            for those that check in. None: devices have data of their own, and every enrolled one is waited for.
        edges: the boundary's edges; None: it has none.
        spread: how masks are taken off a sum: alone, or by threads.
    """

    cohort: int
    deadline: float
    round_timeout: float
    shards: int | None = None
    edges: EdgeAssignmentOptions | None = None
    spread: Spread = ALONE
