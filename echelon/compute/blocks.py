"""Blocks of a split boundary that too few devices train together: no sum of theirs is over enough of them.

The floors hold for every block of the adapter by itself (docs/elsa-protocol.md). So the fastest cut may not be the best
one: a block that few devices hold themselves, and few leave to each edge, is trained by all of them in vain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from echelon.config.boundary import BoundarySettings
from echelon.config.secure import SecureSettings
from echelon.config.split import ClassSettings, SplitSettings
from echelon.messages.manifest import ring_degree
from echelon.secagg.context import threshold
from echelon.secagg.floors import most_lost, partial_sum_holds


@dataclass(frozen=True, slots=True)
class InVain:
    """What is trained in vain: for so many devices of a boundary, those blocks.

    Attributes:
        held: blocks by how many devices hold them themselves.
        left: blocks by how many devices leave them to edges.
    """

    held: dict[int, list[int]]
    left: dict[int, list[int]]

    @property
    def work(self) -> int:
        """Blocks that are trained in vain, each as often as devices do it."""
        return sum(count * len(blocks) for kind in (self.held, self.left) for count, blocks in kind.items())


@dataclass(frozen=True, slots=True)
class BlockFloors:
    """What a sum of one block's updates needs in a boundary with split training.

    Attributes:
        devices: of the boundary.
        edges: that they are dealt to.
        window: most devices of one window.
        dropouts: most of a window's devices that may drop out after they masked.
        secure: the run's settings, with the floors.
    """

    devices: int
    edges: int
    window: int
    dropouts: int
    secure: SecureSettings

    @classmethod
    def of(cls, secure: SecureSettings, boundary: BoundarySettings, split: SplitSettings) -> BlockFloors:
        """The floors of a boundary.

        Args:
            secure: of the run.
            boundary: whose devices these are.
            split: how the boundary is split; its cuts do not matter here.
        """
        devices = len(boundary.device_list())
        window = min(devices, secure.cohort_max or devices)
        needed = 0 if ring_degree(secure.neighbours or 0, window) else threshold(window, secure.colluding)
        dropouts = most_lost(window, needed, secure.k_min, secure.colluding)
        return cls(devices, len(split.edge_list()), window, dropouts, secure)

    @property
    def floor(self) -> int:
        """Fewest devices that a sum is over."""
        return self.secure.floor

    def held_in_vain(self, holders: int) -> bool:
        """Whether so many devices are too few to hold a block of which the others leave the training to edges."""
        secure, held = self.secure, min(holders, self.window)
        few = not partial_sum_holds(held, self.dropouts, secure.k_min, secure.colluding)
        return 0 < holders < self.devices and few

    def left_in_vain(self, leaving: int) -> bool:
        """Whether so many devices are too few to leave a block to the edges, which share them evenly at best."""
        return leaving > 0 and min(leaving, self.window) // self.edges < self.floor

    def lost(self, holders: int) -> bool:
        """Whether nothing counts of what anybody trains of a block that so many devices hold themselves."""
        leaving = self.devices - holders
        by_devices = holders > 0 and not self.held_in_vain(holders)
        by_edges = leaving > 0 and not self.left_in_vain(leaving)
        return not by_devices and not by_edges

    def in_vain(self, split: SplitSettings, blocks: int) -> InVain:
        """Blocks that devices, or edges for them, train in vain.

        Args:
            split: the boundary's, with every cut in it.
            blocks: of the model.
        """
        held: dict[int, list[int]] = defaultdict(list)
        left: dict[int, list[int]] = defaultdict(list)
        for block, holders in enumerate(self._holders(split, blocks)):
            if self.held_in_vain(holders):
                held[holders].append(block)
            if self.left_in_vain(self.devices - holders):
                left[self.devices - holders].append(block)
        return InVain(dict(held), dict(left))

    def safe_cuts(
        self, split: SplitSettings, moving: ClassSettings, cuts: Iterable[tuple[int, int]], blocks: int
    ) -> frozenset[tuple[int, int]]:
        """Cuts to which devices of a class may move: however many of them go, every block is trained by enough.

        Other classes stay: each moves by itself.

        Args:
            split: the boundary's, with every cut in it.
            moving: the class; its devices train with an edge.
            cuts: (p, q) to choose from.
            blocks: of the model.

        Returns:
            Those of them by which no block is lost that was not before, and the class's own cut.
        """
        own, holders = split.cut_of(moving.devices[0]), self._holders(split, blocks)
        some = range(1, len(moving.devices) + 1)
        losing = [
            ()
            if self.lost(now)
            else {change for change in (-1, 1) if any(self.lost(now + change * n) for n in some)}
            for now in holders
        ]  # of each block, whether more or fewer devices that hold it would lose it
        return frozenset(
            cut
            for cut in cuts
            if all(
                _holds(cut, at, blocks) - _holds(own, at, blocks) not in losing[at] for at in range(blocks)
            )
        ) | {own}

    def _holders(self, split: SplitSettings, blocks: int) -> list[int]:
        """How many devices hold each block themselves."""
        groups = list(self._groups(split))
        return [
            sum(count for cut, count in groups if cut is None or _holds(cut, block, blocks))
            for block in range(blocks)
        ]

    def _groups(self, split: SplitSettings) -> Iterator[tuple[tuple[int, int] | None, int]]:
        """How many devices have each cut, class by class; None: the whole model."""
        for one in split.classes:
            device = one.devices[0]
            yield (split.cut_of(device) if split.splits(device) else None), len(one.devices)
        rest = self.devices - sum(len(one.devices) for one in split.classes)
        if rest:
            yield (split.front, split.back), rest


def _holds(cut: tuple[int, int], block: int, blocks: int) -> bool:
    front, back = cut
    return block < front or block >= blocks - back
