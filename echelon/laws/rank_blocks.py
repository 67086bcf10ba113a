"""Rank blocks: the rows of A, and columns of B, that devices of different ranks train, and what a window makes of them.

A device of rank r moves the rows below r. Rows that the same devices move are a block, and a block's part of a window's
sum is over those devices alone: the floor holds for it by itself (`echelon.secagg.partial_sums`), and its mean is over
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.laws.exact import norm2
from echelon.messages.adapter import AdapterLayout, rank_rows
from echelon.messages.boundary import Member
from echelon.messages.manifest import RunManifest
from echelon.secagg.partial_sums import RankSum
from echelon.secagg.roster import Roster

Index = NDArray[np.uint8]
"""The number of the block that each coordinate is in, uint8[d]."""


def index_of(layout: AdapterLayout, rank_blocks: Sequence[int]) -> Index:
    """The block of each coordinate of the adapter.

    Args:
        layout: of the adapter.
        rank_blocks: where the blocks end, ascending; the last is the adapter's rank.

    Raises:
        CodecError: a layer's A or B does not have that rank.
    """
    rows = rank_rows(layout, rank_blocks[-1])
    index = np.zeros(rows.size, np.uint8)
    for end in rank_blocks[:-1]:
        index += rows >= end
    return index


@lru_cache(4)
def _index(layout: str, rank_blocks: tuple[int, ...]) -> Index:
    """Kept for the next window, and for the other devices of a process."""
    index = index_of(AdapterLayout.from_json(layout.encode()), rank_blocks)
    index.flags.writeable = False
    return index


def index_in(manifest: RunManifest) -> Index | None:
    """The block of each coordinate of a run's adapter; None where the run has no rank blocks."""
    return _index(manifest.layout, manifest.rank_blocks) if manifest.rank_blocks else None


class Places(Mapping[int, list[NDArray[np.bool_]]]):
    """Where each rank block lies in the vector: by number, a list of one mask, bool[d], made when it is asked for."""

    def __init__(self, index: Index, count: int) -> None:
        self._index, self._count = index, count

    def __getitem__(self, block: int) -> list[NDArray[np.bool_]]:
        if not 0 <= block < self._count:
            raise KeyError(block)
        return [self._index == block]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._count))

    def __len__(self) -> int:
        return self._count


def rank_of(manifest: RunManifest, roster: Roster, device: str) -> int:
    """The rank that a device trains, as its boundary's signed roster says; 0 in a run without rank blocks.

    Args:
        manifest: the run's terms.
        roster: of the device's boundary, already verified.
        device: its name.

    Raises:
        ProtocolError: the device is not enrolled, or with a rank that the run does not have.
    """
    if not manifest.rank_blocks:
        return 0
    rank = roster.entry(device).rank
    if rank not in manifest.rank_blocks:
        raise ProtocolError(
            f"the roster of {roster.boundary} gives {device} the rank {rank}, and the run's ranks are "
            f"{', '.join(map(str, manifest.rank_blocks))}: enrol it with one of them"
        )
    return rank


def reach_of(manifest: RunManifest, roster: Roster | None, device: str) -> int:
    """How many rank blocks a device trains, from the first on; 0 in a run without rank blocks.

    Args:
        manifest: the run's terms.
        roster: of the device's boundary, already verified.
        device: its name.

    Raises:
        ProtocolError: as of `rank_of`; or the run has rank blocks, and there is no roster to say who has which rank.
    """
    if not manifest.rank_blocks:
        return 0
    if roster is None:
        raise ProtocolError("devices of this run have ranks of their own, and no roster says which")
    return manifest.rank_blocks.index(rank_of(manifest, roster, device)) + 1


@dataclass(frozen=True, slots=True)
class BlockSum:
    """One block of a window's sum.

    Attributes:
        heads: included devices that added to it; 0: nobody was to.
        n: Σn of those.
        weight: Σw of those, each at most the block's cap.
        squared: squared norm of its coordinates in fixed point, an exact integer.
    """

    heads: int
    n: int
    weight: int
    squared: int


def block_sums(
    total: NDArray[np.int32],
    index: Index,
    *,
    included: Collection[Member],
    over: Mapping[int, RankSum],
) -> tuple[BlockSum, ...]:
    """The rank blocks of a window's sum, by number.

    A device that adds to a block which its rank does not reach hides in the sum, as every wrong update does. Where
    nobody is to add, what stands there is of such devices alone, and counts as 0.

    Args:
        total: int32[d], the sum.
        index: the block of each coordinate, uint8[d].
        included: the devices in the sum.
        over: who of U2 was to add to each block, and with what weight at most.
    """
    blocks = []
    for number, one in sorted(over.items()):
        adding = [member for member in included if member.device in one.devices]
        part = total[index == number] if adding else total[:0]
        blocks.append(
            BlockSum(
                heads=len(adding),
                n=sum(member.n for member in adding),
                weight=sum(min(member.weight, one.cap) for member in adding),
                squared=norm2(part) if part.size else 0,
            )
        )
    return tuple(blocks)
