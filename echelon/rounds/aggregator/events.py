"""What an aggregator hears of the exchange's decisions, beside the records of its devices."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.messages.adapter import F32
from echelon.messages.exchange import Pace


@dataclass(frozen=True, slots=True)
class BoundaryCommit:
    """A verified commit from `global` (commit 0 is genesis), as far as this boundary is concerned; `signed` is its
    record's envelope."""

    commit: int
    adapter: F32
    merged: tuple[int, ...]
    pace: Pace
    tokens: int
    signed: bytes = b""


@dataclass(frozen=True, slots=True)
class RefusedDelta:
    """A verified refusal of one of this boundary's deltas."""

    seq: int
    stale: bool


@dataclass(frozen=True, slots=True)
class Closed:
    """The run was closed on the exchange."""

    commit: int
