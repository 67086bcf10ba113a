"""Which records an actor has taken: delivery is at least once, and what it repeats, it repeats soon."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echelon.actors.state import REMEMBERED
from echelon.bus.base import TopicPartition


class TakenRecords:
    """The newest signatures of each partition, and those of them that no stored step has remembered yet.

    A restart may well stand between a record and its repeat, and the chunks of both before it: what the stored state
    has taken is remembered with it.
    """

    def __init__(self) -> None:
        self._known: dict[TopicPartition, dict[bytes, None]] = {}
        self._unstored: dict[TopicPartition, dict[bytes, None]] = {}

    def begin_with(self, known: Mapping[TopicPartition, Iterable[bytes]]) -> None:
        """Begin with what the stored state has taken: signatures by partition, oldest first."""
        self._known = {at: dict.fromkeys(signatures) for at, signatures in known.items()}
        self._unstored.clear()

    def forget(self) -> None:
        """Topics are about to be read from their start once more."""
        self._known.clear()
        self._unstored.clear()

    def again(self, at: TopicPartition, signature: bytes) -> bool:
        """Whether that very record was taken before; if not, it is now.

        Args:
            at: where it was read.
            signature: of its envelope, 64 bytes.
        """
        known = self._known.setdefault(at, {})
        if signature in known:
            return True
        unstored = self._unstored.setdefault(at, {})
        known[signature] = unstored[signature] = None
        if len(known) > REMEMBERED:
            oldest = next(iter(known))
            del known[oldest]
            unstored.pop(oldest, None)
        return False

    def unstored(self) -> dict[TopicPartition, list[bytes]]:
        """What was taken since this was last asked for; asked for once in each stored step."""
        taken = {at: list(signatures) for at, signatures in self._unstored.items()}
        self._unstored.clear()
        return taken
