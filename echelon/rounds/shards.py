"""Data shards: which of them a device trains, where the data of each goes on, and which offers fit into one cohort."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field

from echelon.errors import ProtocolError
from echelon.rounds.effects import ShardRead, ShardReleased


@dataclass
class Holding:
    """The data shards of one device. They come and go; where their data goes on is remembered of all.

    Attributes:
        count: how many the boundary has; None if devices have data of their own.
        held: those that are this device's now. Never stored: they are dealt out anew at every start.
        positions: where the data of each goes on, as far as this device knows.
        training: the one that the running job reads.
    """

    count: int | None
    held: set[int] = field(default_factory=set)
    positions: dict[int, int] = field(default_factory=dict)
    training: int | None = None
    _losing: set[int] = field(default_factory=set)

    @property
    def none(self) -> bool:
        """Whether there is nothing to train on at the moment."""
        return self.count is not None and not self.held

    def gain(self, shards: Iterable[tuple[int, int]]) -> None:
        """Take (shard, position) pairs over; of two positions the later one is right.

        Raises:
            ProtocolError: the boundary has no such shard; nothing was changed.
        """
        pairs = tuple(shards)
        strangers = [shard for shard, _ in pairs if not 0 <= shard < (self.count or 0)]
        if strangers:
            raise ProtocolError(
                f"shard {strangers[0]} was assigned, and the boundary has {self.count or 'none'}"
            )
        for shard, position in pairs:
            self.held.add(shard)
            self._losing.discard(shard)
            self.positions[shard] = max(position, self.position(shard))

    def lose(self, shards: Set[int]) -> list[ShardReleased]:
        """Give shards up; those come back that no job runs on."""
        self.held.difference_update(shards)
        self._losing |= {shard for shard in shards if shard == self.training}
        return [
            ShardReleased(shard, self.position(shard)) for shard in sorted(shards) if shard != self.training
        ]

    def position(self, shard: int) -> int:
        """Where a shard's data goes on; 0 for one that this device knows nothing of."""
        return self.positions.get(shard, 0)

    def begin(self) -> int | None:
        """The shard of the job that begins now: of those held, the one that was read least."""
        self.training = min(self.held, key=lambda shard: (self.position(shard), shard), default=None)
        return self.training

    def end(self, position: int) -> list[ShardRead | ShardReleased]:
        """The running job ended, and read its shard up to `position`."""
        shard, self.training = self.training, None
        if shard is None:
            return []
        self.positions[shard] = max(position, self.position(shard))
        if shard not in self._losing:
            return [ShardRead(shard, self.positions[shard])]
        self._losing.discard(shard)
        return [ShardReleased(shard, self.positions[shard])]


def disjoint(offers: Sequence[Collection[int]], floor: int) -> list[int]:
    """Which of these offers, in order of their arrival, may be in one cohort: no two name one data shard.

    Whoever came first comes first. Where that leaves fewer than `floor`, offers on few shards go before those on
    many, which stand in the way of more others.

    Args:
        offers: the shards of each; an offer on none fits with every other.
        floor: fewest that a cohort needs.

    Returns:
        Their places, ascending; fewer than `floor` where neither order finds so many.
    """
    first = _greedy(offers, range(len(offers)))
    if len(first) >= floor:
        return first
    return max(
        first, _greedy(offers, sorted(range(len(offers)), key=lambda place: len(offers[place]))), key=len
    )


def _greedy(offers: Sequence[Collection[int]], order: Iterable[int]) -> list[int]:
    taken: set[int] = set()
    chosen = []
    for place in order:
        if taken.isdisjoint(offers[place]):
            taken.update(offers[place])
            chosen.append(place)
    return sorted(chosen)
