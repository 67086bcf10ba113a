"""What tensors are compressed by, from measured error; and error feedback."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from echelon.errors import ConfigError
from echelon.training.split.compress import Array, Bfloat16, Compressor, Exact, Quantised, TopK
from echelon.training.split.sketch import Sketch
from echelon.training.split.stream import derive


def relative_error(samples: Sequence[Array], compressor: Compressor) -> float:
    """||x - decode(encode(x))|| / ||x|| over all samples together, Euclidean; 0 for samples that are all zero."""
    error = total = 0.0
    for number, sample in enumerate(samples):
        key = derive(bytes(16), "measure", number)
        shape = sample.shape[0], sample.shape[1], sample.shape[2]
        back = compressor.decode(compressor.encode(sample, key), shape, key)
        error += float(np.square((sample - back).astype(np.float64)).sum())
        total += float(np.square(sample.astype(np.float64)).sum())
    return (error / total) ** 0.5 if total else 0.0


def choose(samples: Sequence[Array], limit: float, candidates: Iterable[Compressor]) -> Compressor:
    """The candidate of fewest bytes whose relative error on the samples, float32[b, L, h] each, is within `limit`.

    `Exact` when none is. Raises `ConfigError` without samples.

    Args:
        samples: tensors as training sends them, float32[b, L, h] each.
        limit: largest relative error, ‖decoded - sent‖ / ‖sent‖, that is accepted.
        candidates: compressors to choose from, in any order.
    """
    if not samples:
        raise ConfigError("no samples to measure a compressor's error on; run a few micro-batches first")
    shapes = [(s.shape[0], s.shape[1], s.shape[2]) for s in samples]
    for candidate in sorted(candidates, key=lambda c: sum(c.size(shape) for shape in shapes)):
        if relative_error(samples, candidate) <= limit:
            return candidate
    return Exact()


def candidates(width: int) -> tuple[Compressor, ...]:
    """What is tried for rows of `width` values: quantised, bfloat16, sketches and top-k of several sizes."""
    sketches = tuple(Sketch.of_ratio(width, ratio) for ratio in (1 / 16, 1 / 8, 1 / 4, 1 / 2))
    largest = tuple(TopK(max(1, round(width * ratio))) for ratio in (1 / 32, 1 / 16, 1 / 8))
    return (Quantised(4), Quantised(8), Bfloat16(), *sketches, *largest)


class ErrorFeedback:
    """Adds what the last tensor of a stream lost to the next one before it is encoded (Seide et al. 2014).

    e <- g + e - decode(encode(g + e)). What was sent adds up to what was to be sent, but for the last residual, as
    long as the compressor loses less than it is given; where it loses more, as a sketch of fewer cells than values
    does, residuals would grow, so one that is larger than the tensor it came from is dropped (`dropped` counts
    them), and so is one of another shape.
    """

    def __init__(self) -> None:
        self._residual: Array | None = None
        self.dropped = 0

    def before(self, gradient: Array) -> Array:
        """What to encode in the place of `gradient`, float32[b, L, h]."""
        if self._residual is None or self._residual.shape != gradient.shape:
            return gradient
        return gradient + self._residual

    def after(self, wanted: Array, sent: Array) -> None:
        """Note what `before` gave and what the other end decodes from it."""
        residual = wanted - sent
        if np.linalg.norm(residual) > np.linalg.norm(wanted):
            self._residual = None
            self.dropped += 1
        else:
            self._residual = residual
