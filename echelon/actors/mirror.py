"""What a gate reads of `global` on the exchange, and copies into its boundary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.actors.runtime import BATCH_BYTES
from echelon.audit.merkle import EMPTY_ROOT
from echelon.bus.base import Outgoing
from echelon.messages.exchange import SOURCE_HEADER
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts


@dataclass(frozen=True, slots=True)
class Seen:
    """What the gate had read of `global`: manifests and the root over them, microseconds between the arrivals of the
    two newest commits (0: not known), and whether the run was closed."""

    size: int = 0
    root: bytes = EMPTY_ROOT
    spacing_us: int = 0
    closed: bool = False


@dataclass(frozen=True, slots=True)
class CommitRead:
    """A commit was read on `global`; its adapter, float32[d], if it is not to be read again later."""

    facts: CommitFacts
    adapter: NDArray[np.float32] | None

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.learn(self.facts, self.adapter)


@dataclass(frozen=True, slots=True)
class RefusalRead:
    """A refusal of one of the boundary's deltas was read on `global`."""

    seq: int
    stale: bool

    def tell(self, log: BoundaryLog) -> None:
        """Tell the derivation."""
        log.refuse(self.seq, self.stale)


@dataclass(frozen=True, slots=True)
class Learned:
    """Something was read on `global`; steps of the derivation may run in a thread, so it is told as an event."""

    news: tuple[CommitRead | RefusalRead, ...]


@dataclass(frozen=True, slots=True)
class ReadAgain:
    """An effect: the derivation has come to a commit whose adapter was not kept."""

    facts: CommitFacts


@dataclass(frozen=True, slots=True)
class AdapterRead:
    """The adapter of a commit was read again: float32[d]."""

    commit: int
    adapter: NDArray[np.float32]


def bytes_of(records: Sequence[Outgoing]) -> int:
    """Bytes of keys, values and headers, without the mark that mirroring adds."""
    return sum(
        len(record.key)
        + len(record.value)
        + sum(len(name) + len(value) for name, value in record.headers if name != SOURCE_HEADER)
        for record in records
    )


def batches(records: list[Outgoing]) -> Iterable[list[Outgoing]]:
    """The records in order, in batches of about as many bytes as go to the broker at once."""
    batch: list[Outgoing] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
