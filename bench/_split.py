"""What the benchmarks of split training share: the shipped base cut in three, its data, and links that compress."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from echelon.config.training import AdapterSettings, DataSettings, ModelSettings, TrainSettings
from echelon.training.data.boundary import load_boundary
from echelon.training.data.examples import IGNORED
from echelon.training.data.packing import Blocks, Order
from echelon.training.model import initial_adapter, load_base, model_config
from echelon.training.split.choose import ErrorFeedback
from echelon.training.split.compress import Array, Compressor, Exact
from echelon.training.split.cut import Cut, device_indices, part_ranges
from echelon.training.split.parts import DeviceModel, EdgeModel
from echelon.training.split.segment import count_blocks, whole_layout
from echelon.training.split.tensor_format import Limits, decode, encode, tensor_key
from echelon.training.split.tensors import Batch, Segment, SplitSpec

SECRET = bytes(range(32))
STREAMS = ("up.hidden", "down.hidden", "up.gradient", "down.gradient")


@dataclass
class Link:
    """Carries tensors through a compressor and counts bytes and squared errors per stream."""

    compressor: Compressor = field(default_factory=Exact)
    feedback: bool = False
    sent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    error: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0.0))
    total: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0.0))
    residual: dict[str, ErrorFeedback] = field(default_factory=lambda: {s: ErrorFeedback() for s in STREAMS})
    count: int = 0

    def carry(self, array: Array, stream: str) -> Array:
        """What the other end decodes."""
        self.count += 1
        key = tensor_key(secret=SECRET, device="d", window=0, step=self.count, micro=0, stream=stream)
        feedback = self.residual[stream] if self.feedback and stream.endswith("gradient") else None
        wanted = array if feedback is None else feedback.before(array)
        data = encode(wanted, self.compressor, key)
        got = decode(data, Limits(array.shape[2]), key, (self.compressor,))
        if feedback is not None:
            feedback.after(wanted, got)
        self.sent[stream] += len(data)
        self.error[stream] += float(np.square((array - got).astype(np.float64)).sum())
        self.total[stream] += float(np.square(array.astype(np.float64)).sum())
        return got

    def relative(self) -> dict[str, float]:
        """||x - x'|| / ||x|| per stream."""
        return {s: (self.error[s] / self.total[s]) ** 0.5 if self.total[s] else 0.0 for s in STREAMS}


class Setting:
    """A base, cut after its first block and before its last; blocks of one device; both sides' segments, read once.

    Args:
        source: the device's text, as a run file has it; without a colon, packages of the standard library.
        length: tokens of a sequence.
        lr: of training.
        model: the base; None: the shipped one.
    """

    def __init__(
        self, source: str, length: int, *, lr: float = 1e-2, model: ModelSettings | None = None
    ) -> None:
        import torch

        self.spec = SplitSpec(
            model=model or ModelSettings(),
            adapter=AdapterSettings(rank=8, alpha=16),
            train=TrainSettings(lr=lr, sequence_length=length),
        )
        base, self.tokenizer, _ = load_base(self.spec.model, torch.device("cpu"))
        self.table = base.get_input_embeddings().weight.detach().numpy().copy()
        self.vocabulary = int(model_config(self.spec.model).vocab_size)
        del base
        data = load_boundary(
            DataSettings(source=source if ":" in source else f"stdlib:{source}"),
            ("d",),
            self.tokenizer,
            length,
        )
        self.training, self.validation = data.training["d"], data.validation["d"]
        self.cut = Cut(1, 1)
        self.layout = whole_layout(self.spec.model, self.spec.adapter, self.spec.task)
        blocks = count_blocks(self.spec.model)
        self.mine = device_indices(self.layout, self.cut, blocks)
        self.theirs = part_ranges(self.layout, self.cut, blocks)["middle"]
        self.segments = Segment(self.spec, self.cut, "device"), Segment(self.spec, self.cut, "edge")
        self.genesis = initial_adapter(self.layout, 0)

    def pair(self, vector: Array | None = None) -> tuple[DeviceModel, EdgeModel]:
        """Both sides, started at a vector (genesis by default)."""
        vector = self.genesis if vector is None else vector
        device = DeviceModel(self.spec, self.cut, self.segments[0])
        edge = EdgeModel(self.spec, self.cut, self.segments[1])
        lr = self.spec.train.lr
        mine, theirs = vector[self.mine], vector[self.theirs]
        device.start(weights=mine, base=mine, state=None, lr=lr, mu=0.0)
        edge.start("d", weights=theirs, base=theirs, state=None, lr=lr, mu=0.0)
        return device, edge

    def batches(self, size: int, seed: int) -> Callable[[int], Batch]:
        """The batch of each step."""
        order = Order(seed, "d", len(self.training))
        return lambda step: to_batch(self.training, order.take(step * size, size))

    def held_out(self, most: int) -> Batch:
        """Full validation blocks, evenly spread."""
        full = np.flatnonzero(self.validation.lengths == self.validation.tokens.shape[1] - 1)
        return to_batch(self.validation, full[:: max(1, len(full) // most)][:most])


def to_batch(blocks: Blocks, which: np.ndarray) -> Batch:
    """Blocks as a micro-batch."""
    tokens = blocks.tokens[which].astype(np.int64)
    return Batch(tokens[:, :-1].copy(), np.where(blocks.counted[which], tokens[:, 1:], IGNORED))


def one_pass(device: DeviceModel, edge: EdgeModel, batch: Batch, link: Link) -> float:
    """Forward and backward of one micro-batch through the link; its mean loss."""
    hidden = edge.forward("d", 0, link.carry(device.front(0, batch), "up.hidden"))
    back = device.back(0, link.carry(hidden, "down.hidden"))
    gradient = edge.backward("d", 0, link.carry(back.gradient, "up.gradient"))
    device.front_backward(0, link.carry(gradient, "down.gradient"))
    return back.loss_sum / back.counted


def evaluate(device: DeviceModel, edge: EdgeModel, batch: Batch) -> float:
    """Mean loss without compression."""
    loss, counted = device.evaluate(batch, edge.look("d", device.look(batch)))
    return loss / counted
