"""The two sides of a split model as they train: what a device computes, and what its edge server does.

One optimiser step of a device, over micro-batches m:

    device                                   edge
    front(m, batch)      -- hidden -->       forward(device, m, hidden, mask)
    back(m, hidden)      <-- hidden --
                         -- gradient -->     backward(device, m, gradient)
    front_backward(m, g) <-- gradient --
    then, once:          <-- norm --         norm_squared(device)
    step(norm)           -- factor -->       step(device, factor)

Several micro-batches may be on their way; the order of their backward passes is free. The last two lines need no
messages of their own: the edge's norm travels with the last gradient of the step, the factor with the next step's first
hidden state. They are what makes the clip that of the whole adapter's gradient, as in unsplit training.

Each device has a copy of its own of the edge's adapter, with moments of its own: the copies take exactly the steps
that unsplit devices would, whatever the order in which devices' messages arrive, a lost device leaves nothing behind
in the others', and who has trained is a fact of each copy, so that a floor on distinct devices can be kept when they
are averaged. The frozen weights are held once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from echelon.config.split import MAX_IN_FLIGHT
from echelon.errors import CodecError, ProtocolError, TrainingError
from echelon.messages.adapter import AdapterLayout, Vector
from echelon.training.split.cut import Cut
from echelon.training.split.tensors import (
    BackResult,
    Batch,
    Hidden,
    Mask,
    Segment,
    SplitSpec,
    Trainer,
    check_hidden,
    leaf_of,
    to_array,
    to_mask,
)
from echelon.training.state import TrainerState
from echelon.training.step import clip_factor


@dataclass(slots=True)
class _Flight:
    """A micro-batch between its passes."""

    batch: Batch
    divisor: int
    front: torch.Tensor
    done: bool = False


class DeviceModel:
    """The device's side: embedding and first blocks, last blocks, head and loss.

    `segment` may be shared by devices of one process; without it the modules are read from disk. Not thread-safe.
    """

    def __init__(self, spec: SplitSpec, cut: Cut, segment: Segment | None = None) -> None:
        self.segment = Segment(spec, cut, "device") if segment is None else segment
        self._trainer = self.segment.trainer()
        self._flights: dict[int, _Flight] = {}
        blocks = self.segment.anatomy.count
        self._first = range(cut.p)
        self._last = range(blocks - cut.q, blocks)

    @property
    def layout(self) -> AdapterLayout:
        """The layout of the device's vector: the adapter tensors of front and back."""
        return self.segment.layout

    @property
    def width(self) -> int:
        """h, the last axis of hidden states."""
        return self.segment.width

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Micro-batches whose front's backward pass has not been."""
        return tuple(self._flights)

    def start(
        self, *, weights: Vector, base: Vector, state: TrainerState | None, lr: float, mu: float
    ) -> None:
        """Begin a job; drops what is in flight.

        Args:
            weights: where it begins, float32[d_device].
            base: the proximal centre, float32[d_device].
            state: moments and step count to go on from; None: a first job.
            lr: the learning rate.
            mu: the proximal term's weight.
        """
        self._flights.clear()
        self._trainer.norm = None
        fresh = TrainerState.fresh(self.layout.dim)
        begin = fresh if state is None else state
        self._trainer.optimizer.start(weights=weights, base=base, state=begin, lr=lr, mu=mu)

    def front(self, micro: int, batch: Batch, divisor: int | None = None) -> Hidden:
        """The hidden state after the first p blocks, float32[b, L, h].

        `divisor` is the number of targets that the whole optimiser step counts, this micro-batch's own by default:
        gradients of a step's micro-batches add up to that of its mean loss. Raises `ProtocolError` if `micro` is in
        flight.

        Args:
            micro: number of the micro-batch; it is in flight until `back`.
            batch: tokens, mask and targets.
            divisor: targets of the whole optimiser step.
        """
        if micro in self._flights:
            raise ProtocolError(f"micro-batch {micro} is in flight already")
        divisor = batch.counted if divisor is None else divisor
        if divisor < 1:
            raise TrainingError(f"micro-batch {micro} has no target that the loss counts: leave it out")
        output = self._trainer.runner.hidden(self._first, torch.from_numpy(batch.tokens), to_mask(batch.mask))
        self._flights[micro] = _Flight(batch, divisor, output)
        return to_array(output)

    def back(self, micro: int, hidden: Hidden) -> BackResult:
        """Loss from the edge's hidden state, float32[b, L, h], and the gradient by it; adds to the back's own gradient.

        Raises `CodecError` for a hidden state of another shape or not finite, `ProtocolError` for a micro-batch that
        is not in flight or had its turn, `TrainingError` for a loss that is not finite.
        """
        flight = self._flight(micro)
        if flight.done:
            raise ProtocolError(f"the hidden state of micro-batch {micro} came twice")
        check_hidden(hidden, tuple(flight.front.shape), f"hidden state of micro-batch {micro}")
        leaf = leaf_of(hidden, flight.front.dtype)
        batch = flight.batch
        tokens, labels = torch.from_numpy(batch.tokens), torch.from_numpy(batch.labels)
        logits = self._trainer.runner.logits(self._last, leaf, tokens, to_mask(batch.mask))
        loss = self.segment.task.loss_sum(logits, labels)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss of micro-batch {micro} is not finite; lower lr, set clip_norm, or use fp32"
            )
        (loss / flight.divisor).backward()
        assert leaf.grad is not None
        flight.done = True
        return BackResult(loss.item(), batch.counted, to_array(leaf.grad))

    def front_backward(self, micro: int, gradient: Hidden) -> None:
        """Carry the gradient by the front's output back through the first blocks; the micro-batch is done.

        Raises as `back` does, and `ProtocolError` if the micro-batch's loss was not computed before.
        """
        flight = self._flight(micro)
        if not flight.done:
            raise ProtocolError(f"a gradient for micro-batch {micro} came before its hidden state")
        check_hidden(gradient, tuple(flight.front.shape), f"gradient of micro-batch {micro}")
        del self._flights[micro]
        if flight.front.requires_grad:  # else the front has no adapter: p = 0
            flight.front.backward(torch.from_numpy(gradient.copy()).to(flight.front.dtype))

    def look(self, batch: Batch) -> Hidden:
        """The hidden state after the first p blocks for an evaluation: nothing is kept for a backward pass."""
        with self._trainer.looking():
            return to_array(
                self._trainer.runner.hidden(self._first, torch.from_numpy(batch.tokens), to_mask(batch.mask))
            )

    def logits(self, batch: Batch, hidden: Hidden) -> Hidden:
        """Logits of the evaluated batch from the edge's hidden state: float32[b, L, vocabulary] or [b, labels]."""
        check_hidden(hidden, (*batch.tokens.shape, self.width), "hidden state of an evaluation")
        leaf = torch.from_numpy(hidden.copy()).to(self.segment.dtype)
        with self._trainer.looking():
            tokens, mask = torch.from_numpy(batch.tokens), to_mask(batch.mask)
            return to_array(self._trainer.runner.logits(self._last, leaf, tokens, mask))

    def last_state(self, batch: Batch, hidden: Hidden) -> Hidden:
        """The evaluated batch behind the last q blocks, before the final norm and the head: float32[b, L, h]."""
        check_hidden(hidden, (*batch.tokens.shape, self.width), "hidden state of an evaluation")
        leaf = torch.from_numpy(hidden.copy()).to(self.segment.dtype)
        with self._trainer.looking():
            return to_array(self._trainer.runner.between(self._last, leaf, to_mask(batch.mask)))

    def evaluate(self, batch: Batch, hidden: Hidden) -> tuple[float, int]:
        """Sum of the losses of an evaluated batch in nats, and how many targets it counts."""
        logits, labels = torch.from_numpy(self.logits(batch, hidden)), torch.from_numpy(batch.labels)
        loss = self.segment.task.loss_sum(logits, labels).item()
        if not math.isfinite(loss):
            raise TrainingError("the loss of an evaluation is not finite; the weights are unusable")
        return loss, batch.counted

    def drop(self, micro: int) -> None:
        """Forget a micro-batch that will not come back. What its loss added to the back's gradient stays: see
        `restart`."""
        self._flights.pop(micro, None)

    def restart(self) -> None:
        """Drop all that is in flight and the gradient of the step so far, so that the step can be taken anew."""
        self._flights.clear()
        self._trainer.norm = None
        self._trainer.flat.gradient.zero_()

    def step(self, edge_norm_squared: float = 0.0) -> float:
        """Clip by the norm over all parts, given the edge's squared norm, and step; gives the factor for the edge.

        Raises `ProtocolError` while micro-batches are in flight or for a norm that is none, `TrainingError` for
        weights that are not finite.
        """
        if self._flights:
            raise ProtocolError(f"micro-batches {sorted(self._flights)} are still in flight")
        if not (math.isfinite(edge_norm_squared) and edge_norm_squared >= 0):
            raise ProtocolError(
                f"the edge's squared norm is {edge_norm_squared}, expected a finite number from 0"
            )
        norm = math.sqrt(self._trainer.norm_squared() + edge_norm_squared)
        factor = clip_factor(self._trainer.settings.clip_norm, norm)
        self._trainer.step(factor)
        return factor

    def finish(self, cursor: int = 0) -> tuple[Vector, TrainerState]:
        """The device's vector, float32[d_device], and its state for the next window."""
        return self._trainer.flat.read(), self._trainer.optimizer.state(cursor)

    def gradient(self) -> Vector:
        """A copy of the step's gradient so far, float32[d_device]."""
        return self._trainer.flat.gradient.numpy().copy()

    def _flight(self, micro: int) -> _Flight:
        if micro not in self._flights:
            raise ProtocolError(f"micro-batch {micro} is not in flight")
        return self._flights[micro]


@dataclass(slots=True)
class _Copy:
    """One device's copy of the edge's adapter, and its micro-batches between forward and backward."""

    trainer: Trainer
    flights: dict[int, tuple[torch.Tensor, torch.Tensor]]
    steps: int = 0


class EdgeModel:
    """The edge's side: one frozen middle and an adapter copy per device. Not thread-safe.

    Devices are keyed by any string; micro-batches by an integer of the device's choice. `max_in_flight` bounds what a
    device can make the edge hold.
    """

    def __init__(
        self, spec: SplitSpec, cut: Cut, segment: Segment | None = None, *, max_in_flight: int = MAX_IN_FLIGHT
    ) -> None:
        self.segment = Segment(spec, cut, "edge") if segment is None else segment
        self._copies: dict[str, _Copy] = {}
        self._run = cut.middle(self.segment.anatomy.count)
        self._max_in_flight = max_in_flight

    @property
    def layout(self) -> AdapterLayout:
        """The layout of the edge's vector: the adapter tensors of the middle."""
        return self.segment.layout

    @property
    def width(self) -> int:
        """h, the last axis of hidden states."""
        return self.segment.width

    @property
    def trained(self) -> Mapping[str, int]:
        """Steps that each open copy took since its start."""
        return {key: mine.steps for key, mine in self._copies.items()}

    def start(
        self, key: str, *, weights: Vector, base: Vector, state: TrainerState | None, lr: float, mu: float
    ) -> None:
        """Open a device's copy, or open it anew.

        Args:
            key: the device.
            weights: where the copy begins, float32[d_middle].
            base: the proximal centre, float32[d_middle].
            state: moments and step count to go on from; None: a first job.
            lr: the learning rate.
            mu: the proximal term's weight.
        """
        mine = self._copies.get(key)
        trainer = self.segment.trainer() if mine is None else mine.trainer
        trainer.norm = None
        fresh = TrainerState.fresh(self.layout.dim)
        begin = fresh if state is None else state
        trainer.optimizer.start(weights=weights, base=base, state=begin, lr=lr, mu=mu)
        self._copies[key] = _Copy(trainer, {})

    def forward(self, key: str, micro: int, hidden: Hidden, mask: Mask | None = None) -> Hidden:
        """The hidden state after the middle blocks, float32[b, L, h] -> float32[b, L, h].

        Raises `CodecError` for a tensor or mask of another shape or not finite, `ProtocolError` for a device without
        a copy, a micro-batch in flight, or too many of them.

        Args:
            key: name of the device's copy.
            micro: number of the micro-batch; it is in flight until `backward`.
            hidden: float32[b, L, h].
            mask: bool[b, L], true where a position is no padding; None: nothing is padded.
        """
        mine = self._copy(key)
        if micro in mine.flights:
            raise ProtocolError(f"micro-batch {micro} of {key} is in flight already")
        if len(mine.flights) >= self._max_in_flight:
            raise ProtocolError(
                f"{key} has {len(mine.flights)} micro-batches in flight, the most that are held"
            )
        self._check(f"hidden state of micro-batch {micro} of {key}", hidden, mask)
        leaf = leaf_of(hidden, self.segment.dtype)
        output = mine.trainer.runner.between(self._run, leaf, to_mask(mask))
        mine.flights[micro] = leaf, output
        return to_array(output)

    def backward(self, key: str, micro: int, gradient: Hidden) -> Hidden:
        """The gradient by the micro-batch's input, from that by its output; adds to the device's copy's gradient.

        Raises as `forward` does; a gradient that is refused leaves the micro-batch in flight.

        Args:
            key: name of the device's copy.
            micro: number of a micro-batch in flight.
            gradient: of the loss by what `forward` gave, float32[b, L, h].
        """
        mine = self._copy(key)
        if micro not in mine.flights:
            raise ProtocolError(f"micro-batch {micro} of {key} is not in flight")
        leaf, output = mine.flights[micro]
        check_hidden(gradient, tuple(output.shape), f"gradient of micro-batch {micro} of {key}")
        del mine.flights[micro]
        output.backward(torch.from_numpy(gradient.copy()).to(output.dtype))
        assert leaf.grad is not None
        return to_array(leaf.grad)

    def norm_squared(self, key: str) -> float:
        """Squared norm of the copy's gradient, proximal term included, once a step's backward passes are done."""
        mine = self._copy(key)
        self._settled(key, mine)
        return mine.trainer.norm_squared()

    def step(self, key: str, factor: float | None = None) -> None:
        """Take the device's step with the clip's factor that it sent; without one, clip by the middle's own norm.

        Raises `ProtocolError` while micro-batches are in flight or for a factor outside [0, 1], `TrainingError` for
        weights that are not finite.
        """
        mine = self._copy(key)
        self._settled(key, mine)
        if factor is None:
            factor = clip_factor(mine.trainer.settings.clip_norm, math.sqrt(mine.trainer.norm_squared()))
        mine.trainer.step(factor)
        mine.steps += 1

    def restart(self, key: str) -> None:
        """Drop what is in flight of a device and the gradient of its step so far, so that it can be taken anew."""
        mine = self._copy(key)
        mine.flights.clear()
        mine.trainer.norm = None
        mine.trainer.flat.gradient.zero_()

    def take(self, key: str) -> tuple[Vector, TrainerState]:
        """The copy's vector, float32[d_middle], and its state. Its device alone trained it: average before
        releasing."""
        mine = self._copy(key)
        return mine.trainer.flat.read(), mine.trainer.optimizer.state()

    def gradient(self, key: str) -> Vector:
        """A copy of the step's gradient so far, float32[d_middle]."""
        return self._copy(key).trainer.flat.gradient.numpy().copy()

    def close(self, key: str) -> None:
        """Forget a device's copy; nothing if it has none."""
        self._copies.pop(key, None)

    def look(self, key: str, hidden: Hidden, mask: Mask | None = None) -> Hidden:
        """What `forward` gives with the device's copy, for an evaluation: nothing is kept for a backward pass.

        Args:
            key: name of the device's copy.
            hidden: float32[b, L, h].
            mask: bool[b, L], true where a position is no padding; None: nothing is padded.
        """
        trainer = self._copy(key).trainer
        self._check(f"hidden state of an evaluation of {key}", hidden, mask)
        with trainer.looking():
            leaf = torch.from_numpy(hidden.copy()).to(self.segment.dtype)
            return to_array(trainer.runner.between(self._run, leaf, to_mask(mask)))

    def _check(self, what: str, hidden: Hidden, mask: Mask | None) -> None:
        if hidden.ndim != 3 or 0 in hidden.shape:
            raise CodecError(f"{what} has shape {list(hidden.shape)}, expected [b, L, {self.width}]")
        check_hidden(hidden, (*hidden.shape[:2], self.width), what)
        if mask is not None and (mask.dtype != np.bool_ or mask.shape != hidden.shape[:2]):
            raise CodecError(f"mask of the {what} is {mask.dtype}{list(mask.shape)}")

    def _copy(self, key: str) -> _Copy:
        if key not in self._copies:
            raise ProtocolError(f"{key} has no copy of the middle here: it must start first")
        return self._copies[key]

    def _settled(self, key: str, mine: _Copy) -> None:
        if mine.flights:
            raise ProtocolError(f"micro-batches {sorted(mine.flights)} of {key} are still in flight")
