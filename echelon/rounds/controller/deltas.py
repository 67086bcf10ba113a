"""Deltas that wait for a commit: their values, which of them the next commit takes, and those that wait no longer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from echelon.errors import CodecError
from echelon.laws.delta_codec import Integers
from echelon.laws.delta_form import DeltaForm
from echelon.laws.transcript import Transcript
from echelon.messages.exchange import MAX_MERGED, Delta, Merged, RefusalReason
from echelon.outer.base import WeightedDelta
from echelon.pace.base import MergedDelta

Bytes = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class RejectedDelta:
    """A delta that will not be merged; `offset` is where its manifest stands."""

    boundary: int
    seq: int
    offset: int
    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class WaitingDelta:
    """A delta that waits for a commit; `offset` is where its manifest stands."""

    delta: Delta
    payload: bytes
    values: Integers
    offset: int


@dataclass(frozen=True, slots=True)
class TakenDelta:
    """A delta that the next commit takes.

    Attributes:
        waiting: the delta.
        staleness: commits between its base and the newest one.
        count: 1, or Σn of its windows if the run weighs by tokens.
        weight: what it weighs, damped by its staleness.
    """

    waiting: WaitingDelta
    staleness: int
    count: int
    weight: int

    @property
    def delta(self) -> Delta:
        """Its manifest."""
        return self.waiting.delta

    def weighted(self) -> WeightedDelta:
        """What the outer step takes of it."""
        delta, values = self.waiting.delta, self.waiting.values
        return WeightedDelta(values, delta.exponent, self.count, self.weight, delta.base_commit)

    def observed(self, transcript: Transcript) -> MergedDelta:
        """What the pace controller takes of it."""
        read = transcript.commits(self.delta.seen_size)
        return MergedDelta(self.delta, self.waiting.values, self.staleness, self.weight, read)

    def merged(self) -> Merged:
        """What the commit says of it."""
        delta = self.delta
        return Merged(boundary=delta.boundary, seq=delta.seq, staleness=self.staleness, weight=self.weight)


def values_of(delta: Delta, payload: Bytes, sha256: bytes | None, form: DeltaForm) -> Integers:
    """The integers of a delta's payload.

    Args:
        delta: the manifest.
        payload: its bytes, as they stand in the log.
        sha256: their SHA-256, if it was computed from these very bytes.
        form: of the run's deltas.

    Raises:
        CodecError: the payload is not as the manifest or the run's terms say.
    """
    if delta.codec is not form.codec or len(payload) > form.longest:
        raise CodecError(
            f"{len(payload)} bytes of {delta.codec.value} are no {form.dim} coordinates of {form.codec.value}"
        )
    if delta.payload.length != len(payload):
        raise CodecError(f"the payload has {len(payload)} bytes, its manifest says {delta.payload.length}")
    if delta.payload.sha256 != (sha256 if sha256 is not None else hashlib.sha256(payload).digest()):
        raise CodecError("the payload's SHA-256 is not the one in its manifest")
    return form.integers(bytes(payload), delta.exponent)


def chosen(waiting: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Which deltas the next commit takes: all; of more than `MAX_MERGED`, first the oldest of every boundary.

    Args:
        waiting: (boundary, seq) of the deltas that wait.

    Returns:
        (boundary, seq) of those that it takes, ascending.
    """
    ranks: dict[int, int] = {}
    order = []
    for boundary, seq in sorted(waiting):
        rank = ranks.get(boundary, 0)
        ranks[boundary] = rank + 1
        order.append((rank, boundary, seq))
    return tuple(sorted((boundary, seq) for _, boundary, seq in sorted(order)[:MAX_MERGED]))
