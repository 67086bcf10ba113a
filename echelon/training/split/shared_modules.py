"""What the workers of split training in one process share: the spec, the data, and the frozen modules of each cut."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout
from echelon.training.data.boundary import BoundaryData, load_boundary, load_rows
from echelon.training.data.packing import Blocks, Order
from echelon.training.data.rows import Rows
from echelon.training.fingerprint import load_probes
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.local import IGNORED
from echelon.training.model import load_tokenizer
from echelon.training.split.cut import Cut
from echelon.training.split.parts import (
    Batch,
    Ids,
    Segment,
    SplitSpec,
)
from echelon.training.split.segment import count_blocks, whole_layout

Chosen = np.ndarray[tuple[int], np.dtype[np.intp]]
PROBES_FOR_BASIS = 16
"""Probes whose hidden states say in which subspace a device's activations are rotated."""


class _Data(Protocol):
    """A device's or shard's training data, whatever the task."""

    @property
    def order(self) -> Order:
        """In which it is read."""
        ...

    def read(self, chosen: Chosen) -> int:
        """Tokens of these blocks or rows, without padding."""
        ...

    def batch(self, chosen: Chosen) -> Batch:
        """One micro-batch."""
        ...


@dataclass(frozen=True)
class _BlockData:
    blocks: Blocks
    labels: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    order: Order

    def read(self, chosen: Chosen) -> int:
        """See `_Data`."""
        return int(self.blocks.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Batch:
        """See `_Data`."""
        return Batch(self.blocks.tokens[chosen, :-1].astype(np.int64), self.labels[chosen])


@dataclass(frozen=True)
class _RowData:
    rows: Rows
    order: Order

    def read(self, chosen: Chosen) -> int:
        """See `_Data`."""
        return int(self.rows.lengths[chosen].sum())

    def batch(self, chosen: Chosen) -> Batch:
        """See `_Data`."""
        return Batch(*self.rows.batch(chosen))


class SharedModules:
    """What the halves of one process share: the spec, data, and the modules of each cut."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        task, labels = spec.model.task, len(spec.model.labels)
        self.split = SplitSpec(
            model=spec.model, adapter=spec.adapter, train=spec.train, task=task, labels=labels
        )
        self.classifies = task == "classify"
        """Then rows are padded, and each micro-batch goes to the edge with its mask."""
        self.blocks = count_blocks(spec.model)
        self.layout: AdapterLayout = whole_layout(spec.model, spec.adapter, task, labels)
        self._segments: dict[tuple[Cut, str], Segment] = {}
        self._boundaries: dict[str, BoundaryData[Blocks]] = {}
        self._row_boundaries: dict[str, BoundaryData[Rows]] = {}
        self._probes: dict[int, list[Ids]] = {}
        self._lock = threading.Lock()

    def fits(self, front: int, back: int) -> bool:
        """Whether there is a middle between so many first and last blocks."""
        try:
            Cut(front, back).middle(self.blocks)
        except ConfigError:
            return False
        return True

    def device_segment(self, cut: Cut) -> Segment:
        """The modules that every device of this cut shares in this process."""
        with self._lock:
            if (cut, "device") not in self._segments:
                self._segments[cut, "device"] = Segment(self.split, cut, "device")
            return self._segments[cut, "device"]

    def forget_device_segment(self, cut: Cut) -> None:
        """A device has another cut now: the modules go when the last one that still uses them does."""
        with self._lock:
            self._segments.pop((cut, "device"), None)

    def edge_segment(self, cut: Cut) -> Segment:
        """Likewise for edges."""
        with self._lock:
            if (cut, "edge") not in self._segments:
                self._segments[cut, "edge"] = Segment(self.split, cut, "edge")
            return self._segments[cut, "edge"]

    def forget_edge_segment(self, cut: Cut) -> None:
        """An edge has let a cut go: the modules go when the last one that still uses them does."""
        with self._lock:
            self._segments.pop((cut, "edge"), None)

    def probe_tokens(self, count: int = PROBES_FOR_BASIS) -> list[Ids]:
        """The first shipped probes as tokens, int64[1, L] each."""
        with self._lock:
            if count not in self._probes:  # read once, not by every device of the process
                tokenizer = load_tokenizer(self.spec.model)
                length = self.spec.train.sequence_length
                texts = load_probes().texts[:count]
                found = (tokenizer(text, truncation=True, max_length=length)["input_ids"] for text in texts)
                self._probes[count] = [np.asarray([ids], np.int64) for ids in found if ids]
            return self._probes[count]

    def data(self, name: str) -> _Data:
        """Training data of a device, or of a data shard. Raises `ConfigError`."""
        if self.classifies:
            rows = self._rows_of(name).training[name]
            return _RowData(rows, Order(self.spec.seed, name, len(rows)))
        blocks = self._blocks_of(name).training[name]
        return _BlockData(blocks, _targets(blocks), Order(self.spec.seed, name, len(blocks)))

    def validation(self, name: str, tokens: int, micro: int, most: int) -> list[Batch]:
        """What a device, or a data shard, evaluates: what `TorchLearner.evaluate` reads for so many tokens.

        In batches of at most `micro` sequences, padded to their longest; at most about `most` batches.
        """
        if self.classifies:
            rows = self._rows_of(name).validation[name].at_most(tokens)
            rows = rows.every(max(1, -(-len(rows) // (micro * most))))
            places = np.arange(len(rows))
            return [Batch(*rows.batch(places[at : at + micro])) for at in range(0, len(rows), micro)]
        blocks = self._blocks_of(name).validation[name].at_most(tokens)
        blocks = blocks.every(max(1, -(-len(blocks) // (micro * most))))
        targets, batches = _targets(blocks), []
        for at in range(0, len(blocks), micro):
            part, width = slice(at, at + micro), int(blocks.lengths[at])  # longest first
            batches.append(Batch(blocks.tokens[part, :width].astype(np.int64), targets[part, :width]))
        return batches

    def _boundary_of(self, name: str) -> BoundarySpec:
        boundary = self.spec.boundary_of.get(name)
        if boundary is None:
            raise ConfigError(f"there is no device {name!r} in the run")
        return boundary

    def _rows_of(self, name: str) -> BoundaryData[Rows]:
        boundary, labels = self._boundary_of(name), self.spec.model.labels
        with self._lock:
            if boundary.name not in self._row_boundaries:
                self._row_boundaries[boundary.name] = load_rows(
                    boundary.data, boundary.devices, load_tokenizer(self.spec.model),
                    self.spec.train.sequence_length, labels,
                )  # fmt: skip
            return self._row_boundaries[boundary.name]

    def _blocks_of(self, name: str) -> BoundaryData[Blocks]:
        boundary = self._boundary_of(name)
        with self._lock:
            if boundary.name not in self._boundaries:
                self._boundaries[boundary.name] = load_boundary(
                    boundary.data, boundary.devices, load_tokenizer(self.spec.model),
                    self.spec.train.sequence_length,
                )  # fmt: skip
            return self._boundaries[boundary.name]


def _targets(blocks: Blocks) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """The tokens to be predicted, `IGNORED` where none is counted."""
    return np.where(blocks.counted, blocks.tokens[:, 1:].astype(np.int64), IGNORED)
