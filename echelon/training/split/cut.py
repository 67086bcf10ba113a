"""Where a model is cut, and which coordinates of the adapter vector each part owns. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, block_of

Part = Literal["front", "middle", "back"]
Indices = npt.NDArray[np.intp]

_ENTRY = re.compile(r"(^|[._])(embed|wte|wpe)")


@dataclass(frozen=True, slots=True)
class Cut:
    """The device keeps the first `p` and the last `q` blocks; the edge has those between."""

    p: int
    q: int

    def middle(self, blocks: int) -> range:
        """The edge's blocks, of `blocks` in all.

        Raises `ConfigError` unless both sides have at least one: a device without a block would have no adapter to
        train, an edge without one no purpose.
        """
        if self.p < 0 or self.q < 0 or self.p + self.q < 1 or self.p + self.q >= blocks:
            raise ConfigError(
                f"a model of {blocks} blocks cannot be cut at p = {self.p}, q = {self.q}: both are at least 0, and "
                f"p + q is from 1 to {blocks - 1}"
            )
        return range(self.p, blocks - self.q)


def part_of(key: str, cut: Cut, blocks: int) -> Part:
    """The part that holds the adapter tensor `key`: by its block's number, embeddings in front, heads at the back.

    Args:
        key: name of an adapter tensor, as in the layout.
        cut: how many blocks are before and after the middle.
        blocks: blocks of the whole model.
    """
    middle = cut.middle(blocks)
    number = block_of(key)
    if number is None:
        return "front" if _ENTRY.search(key) else "back"
    return "middle" if number in middle else "front" if number < middle.start else "back"


def part_ranges(layout: AdapterLayout, cut: Cut, blocks: int) -> Mapping[Part, Indices]:
    """Ascending indices into the adapter vector, intp[n], of each part; together they are 0 to d - 1, each once.

    `vector[indices]` is the part's own vector, whose layout is that of its own keys: both are in ascending order of
    keys. The device's vector is that of front and back together, `device_indices`.

    Args:
        layout: of the whole adapter.
        cut: how many blocks are before and after the middle.
        blocks: blocks of the whole model.
    """
    owned: dict[Part, list[Indices]] = {"front": [], "middle": [], "back": []}
    for entry in layout.entries:
        part = owned[part_of(entry.key, cut, blocks)]
        part.append(np.arange(entry.offset, entry.offset + entry.size, dtype=np.intp))
    empty = np.empty(0, dtype=np.intp)
    return {name: np.concatenate(parts) if parts else empty for name, parts in owned.items()}


def device_indices(layout: AdapterLayout, cut: Cut, blocks: int) -> Indices:
    """Ascending indices of the coordinates that the device trains: those of front and back.

    Args:
        layout: of the whole adapter.
        cut: how many blocks are before and after the middle.
        blocks: blocks of the whole model.
    """
    ranges = part_ranges(layout, cut, blocks)
    return np.sort(np.concatenate((ranges["front"], ranges["back"])))


def part_layout(layout: AdapterLayout, cut: Cut, blocks: int, *parts: Part) -> AdapterLayout:
    """The layout of the vector of these parts. Raises `ConfigError` if they own nothing.

    Args:
        layout: of the whole adapter.
        cut: how many blocks are before and after the middle.
        blocks: blocks of the whole model.
        *parts: which of front, middle and back the vector is of, in any order.
    """
    shapes = {e.key: e.shape for e in layout.entries if part_of(e.key, cut, blocks) in parts}
    if not shapes:
        raise ConfigError(
            f"no adapter tensor is in {' or '.join(parts)} at p = {cut.p}, q = {cut.q}: move the cut"
        )
    return AdapterLayout.of(shapes)
