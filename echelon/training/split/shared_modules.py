"""What the workers of split training in one process share: the spec, the data, and the frozen modules of each cut."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import torch

from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout
from echelon.training.data.boundary import BoundaryData
from echelon.training.data.examples import Examples
from echelon.training.data.packing import Order
from echelon.training.fingerprint import PROBES_FOR_BASIS, probe_ids
from echelon.training.learner import BoundarySpec, LearnerSpec
from echelon.training.model import load_tokenizer
from echelon.training.split.cut import Cut
from echelon.training.split.segment import count_blocks, whole_layout
from echelon.training.split.tensors import Batch, Ids, Segment, SplitSpec
from echelon.training.tasks.registry import task_named

CPU = torch.device("cpu")


class SharedModules:
    """What the halves of one process share: the spec, data, and the modules of each cut."""

    def __init__(self, spec: LearnerSpec) -> None:
        self.spec = spec
        task, labels = spec.model.task, len(spec.model.labels)
        self.task = task_named(task)
        self.split = SplitSpec(
            model=spec.model, adapter=spec.adapter, train=spec.train, task=task, labels=labels
        )
        self.blocks = count_blocks(spec.model)
        self.layout: AdapterLayout = whole_layout(spec.model, spec.adapter, task, labels)
        self._segments: dict[tuple[Cut, str], Segment] = {}
        self._boundaries: dict[str, BoundaryData[Any]] = {}
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
                found = probe_ids(tokenizer, self.spec.train.sequence_length, count)
                self._probes[count] = [np.asarray([ids], np.int64) for ids in found]
            return self._probes[count]

    def data(self, name: str) -> Examples:
        """Training data of a device, or of a data shard. Raises `ConfigError`."""
        sequences = self._data_of(name).training[name]
        return self.task.examples(sequences, Order(self.spec.seed, name, len(sequences)), CPU)

    def validation(self, name: str, tokens: int, micro: int, most: int) -> list[Batch]:
        """What a device, or a data shard, evaluates: what `TorchLearner.evaluate` reads for so many tokens.

        Args:
            name: the device or shard.
            tokens: about how many tokens are read.
            micro: most sequences of one batch, padded to their longest.
            most: about the most batches.
        """
        held = self._data_of(name).validation[name].at_most(tokens)
        held = held.every(max(1, -(-len(held) // (micro * most))))
        return [Batch.of(inputs) for inputs in self.task.held(held, CPU).batches(micro)]

    def _boundary_of(self, name: str) -> BoundarySpec:
        boundary = self.spec.boundary_of.get(name)
        if boundary is None:
            raise ConfigError(f"there is no device {name!r} in the run")
        return boundary

    def _data_of(self, name: str) -> BoundaryData[Any]:
        boundary, spec = self._boundary_of(name), self.spec
        with self._lock:
            if boundary.name not in self._boundaries:
                self._boundaries[boundary.name] = self.task.load(
                    boundary.data, boundary.devices, load_tokenizer(spec.model), spec.train.sequence_length,
                    spec.model.labels,
                )  # fmt: skip
            return self._boundaries[boundary.name]
