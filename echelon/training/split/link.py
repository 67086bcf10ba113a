"""What tensors travel as between a device and its edge: encodings, one for each stream, and a job's keys.

A stream is what goes one way with one content. How it is encoded is named in the run file, or chosen by whoever sends
it: the smallest encoding that loses no more of the job's first tensor of that stream than it may. Either way a message
says how it is encoded, and the other end takes nothing that was not agreed on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from echelon.config.split import EncodingSettings
from echelon.training.split.choose import ErrorFeedback, candidates, choose
from echelon.training.split.compress import Array, Bfloat16, Compressor, Exact, LowRank, Quantised, TopK
from echelon.training.split.perturb import Perturbation
from echelon.training.split.sketch import Sketch
from echelon.training.split.tensor_format import (
    Limits,
    decode,
    decode_masked,
    encode,
    encode_mask,
    header,
    tensor_key,
)
from echelon.training.split.tensors import Mask

UP_LOOK, DOWN_LOOK = "up.look", "down.look"
UP_HIDDEN, DOWN_HIDDEN, UP_GRADIENT, DOWN_GRADIENT = (
    "up.hidden",
    "down.hidden",
    "up.gradient",
    "down.gradient",
)
TRAINED = (UP_HIDDEN, DOWN_HIDDEN, UP_GRADIENT, DOWN_GRADIENT)
GRADIENTS = frozenset({UP_GRADIENT, DOWN_GRADIENT})


def name_of(compressor: Compressor) -> str:
    """A compressor as run files name it; of a sketch the rows and columns."""
    match compressor:
        case Exact():
            return "exact"
        case Bfloat16():
            return "bf16"
        case Quantised():
            return f"int{compressor.bits}"
        case Sketch():
            return f"sketch {compressor.rows} x {compressor.columns}"
        case TopK():
            return f"top-{compressor.k}"
        case _:
            return f"rank {compressor.parameters[0]}"


@dataclass(frozen=True, slots=True)
class Encoding:
    """What a stream may be encoded by: one compressor, or with a `limit` the smallest that loses no more.

    `limit` is the largest relative error, Euclidean, of the tensor that is measured.
    """

    allowed: tuple[Compressor, ...]
    limit: float | None = None

    @classmethod
    def of(cls, name: str, width: int) -> Encoding:
        """What a run file names, for rows of `width` values. Raises `ConfigError` for what cannot be."""
        kind, _, value = name.partition(":")
        match kind:
            case "exact":
                return cls((Exact(),))
            case "bf16":
                return cls((Bfloat16(),))
            case "topk":
                return cls((TopK(max(1, round(float(value) * width))),))
            case "lowrank":
                return cls((LowRank(int(value)),))
            case "sketch":
                return cls((Sketch.of_ratio(width, float(value)),))
            case "error":
                return cls((*candidates(width), Exact()), float(value))
            case _:
                return cls((Quantised(int(kind.removeprefix("int"))),))

    def choose(self, sample: Array) -> Compressor:
        """The compressor for a stream whose first tensor, float32[b, L, h], is this."""
        if self.limit is None:
            return self.allowed[0]
        # What is not finite cannot be encoded at all, which `encode` says best.
        return choose([sample], self.limit, self.allowed) if np.isfinite(sample).all() else Exact()


@dataclass(frozen=True, slots=True)
class Codecs:
    """How tensors travel in each direction; a device and its edge have the same."""

    encodings: Mapping[str, Encoding]
    limits: Limits
    feedback: bool = False

    @classmethod
    def of(cls, settings: EncodingSettings, width: int, batch: int, length: int) -> Codecs:
        """From the run file; `batch` sequences of `length` tokens are the largest that is taken.

        Args:
            settings: the encoding of each stream, and whether lost parts of gradients are fed back.
            width: hidden size h of the model.
            batch: most sequences that a received tensor may have.
            length: most tokens that a sequence of it may have.
        """
        named = {
            UP_HIDDEN: settings.up_activations,
            DOWN_HIDDEN: settings.down_activations,
            UP_GRADIENT: settings.up_gradients,
            DOWN_GRADIENT: settings.down_gradients,
            UP_LOOK: settings.up_activations,
            DOWN_LOOK: settings.down_activations,
        }
        encodings = {stream: Encoding.of(name, width) for stream, name in named.items()}
        return cls(encodings, Limits(width, batch, length), settings.feedback)


class TensorCodec:
    """One job's tensors as bytes and back: rotated by the perturbation if there is one, then encoded.

    With error feedback, what a gradient lost is added to that of the same micro-batch of the next step, so that it does
    not matter in which order micro-batches that are under way together are sent.

    Raises `CodecError` or `LimitExceeded` for bytes that are no tensor as it was agreed on.

    Attributes:
        chosen: what each stream of this job is encoded by, if anything of it was sent or read.
    """

    def __init__(
        self, codecs: Codecs, secret: bytes, device: str, job: int, perturbation: Perturbation | None
    ) -> None:
        self._codecs, self._secret, self._device, self._job = codecs, secret, device, job
        self._perturbation = perturbation
        self.chosen: dict[str, Compressor] = {}
        self._lost: dict[tuple[str, int], ErrorFeedback] = {}

    def _key(self, stream: str, step: int, micro: int) -> bytes:
        return tensor_key(
            secret=self._secret, device=self._device, window=self._job, step=step, micro=micro, stream=stream
        )

    def pack(self, stream: str, step: int, micro: int, hidden: Array) -> bytes:
        """Bytes of a float32[b, L, h].

        Args:
            stream: direction and content, for example `up.hidden`; it says which encoding is used.
            step: number of the optimiser step, 0 for probes and evaluations.
            micro: number of the micro-batch in the step. Step, micro and stream make the tensor's key.
            hidden: float32[b, L, h].
        """
        if self._perturbation is not None:
            hidden = self._perturbation.apply(hidden)
        if stream not in self.chosen:
            self.chosen[stream] = self._codecs.encodings[stream].choose(hidden)
        key, codec = self._key(stream, step, micro), self.chosen[stream]
        if not self._codecs.feedback or stream not in GRADIENTS or codec == Exact():
            return encode(hidden, codec, key)
        feedback = self._lost.setdefault((stream, micro), ErrorFeedback())
        wanted = feedback.before(hidden)
        data = encode(wanted, codec, key)
        feedback.after(wanted, decode(data, self._codecs.limits, key, (codec,)))
        return data

    def unpack(self, stream: str, step: int, micro: int, data: bytes) -> Array:
        """The reverse, as far as the encoding goes.

        Args:
            stream: as it was packed.
            step: as it was packed.
            micro: as it was packed.
            data: the message. One that is damaged, too large or in another encoding is a `CodecError`.
        """
        allowed = self._codecs.encodings[stream].allowed
        hidden = decode(data, self._codecs.limits, self._key(stream, step, micro), allowed)
        if stream not in self.chosen:
            self.chosen[stream], _ = header(data)
        return hidden if self._perturbation is None else self._perturbation.undo(hidden)

    def pack_masked(self, stream: str, step: int, micro: int, hidden: Array, mask: Mask) -> bytes:
        """As `pack`, and behind it which positions are not padding, bool[b, L].

        Args:
            stream: direction and content, for example `up.hidden`.
            step: number of the optimiser step, 0 for probes and evaluations.
            micro: number of the micro-batch in the step.
            hidden: float32[b, L, h].
            mask: bool[b, L], true where a position is no padding.
        """
        return self.pack(stream, step, micro, hidden) + encode_mask(mask)

    def unpack_masked(self, stream: str, step: int, micro: int, data: bytes) -> tuple[Array, Mask]:
        """The reverse.

        Args:
            stream: as it was packed.
            step: as it was packed.
            micro: as it was packed.
            data: the message with its mask.
        """
        tensor, mask = decode_masked(data, self._codecs.limits)
        return self.unpack(stream, step, micro, tensor), mask
