"""Predictive distributions on probes as integers, and how far two sets of them are apart."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from echelon.errors import ProtocolError
from echelon.messages.adapter import F64
from echelon.messages.behaviour import MAX_CLASSES, UNIT, Counts

MAX_VOCABULARY = 1 << 20


def vocabulary_classes(vocabulary: int, classes: int, seed: int) -> npt.NDArray[np.int64]:
    """A public partition of the vocabulary, int64[vocabulary] of values below `classes`, sizes differing by at most 1.

    A record cannot hold a probability for each of 50,000 tokens. Summed over classes, divergences can only become
    smaller (data processing inequality), never appear from nothing. The order is that of 64-bit words of
    SHAKE-256, so it is the same on every machine.

    Args:
        vocabulary: how many tokens there are.
        classes: how many classes they become.
        seed: public, of the run.

    Raises:
        ProtocolError: sizes out of range.
    """
    if not 2 <= classes <= min(MAX_CLASSES, vocabulary) or vocabulary > MAX_VOCABULARY:
        raise ProtocolError(
            f"{classes} classes of a vocabulary of {vocabulary}: choose 2 to {MAX_CLASSES} classes, no more than tokens"
        )
    label = f"echelon.elsa.classes.v1\0{seed}\0{vocabulary}\0{classes}".encode()
    words = np.frombuffer(hashlib.shake_256(label).digest(8 * vocabulary), "<u8")
    order = np.argsort(words, kind="stable")
    partition = np.empty(vocabulary, dtype=np.int64)
    partition[order] = np.arange(vocabulary) % classes
    return partition


def quantise(probabilities: F64) -> Counts:
    """Distributions, float[rows, classes], in units of 1/65535, uint16[rows, classes]; rows add up exactly.

    By largest remainders, the first class among equals. Rows are divided by their sums before.

    Raises:
        ProtocolError: values that are negative or not finite, or a row of zeros.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim != 2 or not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ProtocolError("predictive distributions must be finite, not negative, and [rows, classes]")
    sums = values.sum(axis=1, keepdims=True)
    if np.any(sums <= 0):
        raise ProtocolError("a predictive distribution has no mass")
    scaled = values / sums * UNIT
    whole = np.floor(scaled).astype(np.int64)
    missing = UNIT - whole.sum(axis=1)
    order = np.argsort(whole - scaled, axis=1, kind="stable")
    for row, more in enumerate(missing):
        whole[row, order[row, :more]] += 1
    counts: Counts = whole.astype(np.uint16)
    return counts


def jensen_shannon(left: Counts | F64, right: Counts | F64) -> float:
    """Mean over rows of the Jensen-Shannon divergence in bits, in [0, 1] (Lin 1991, equation 4.1).

    JS(p, q) = ½ KL(p ‖ m) + ½ KL(q ‖ m) with m = (p + q) / 2, base 2. It is finite where a probability is 0, so
    nothing needs smoothing. Inputs are [rows, classes], divided by the sums of their rows.

    Raises:
        ProtocolError: shapes differ.
    """
    if left.shape != right.shape or left.ndim != 2:
        raise ProtocolError(f"distributions of shapes {left.shape} and {right.shape} are not comparable")
    p, q = _normal(left), _normal(right)
    middle = (p + q) / 2
    total = _relative_entropy(p, middle) + _relative_entropy(q, middle)
    return min(1.0, max(0.0, 0.5 * float(total.mean())))


def consensus(predictions: list[Counts]) -> F64:
    """The median of every probability over devices, rows divided by their sums, float64[rows, classes].

    The median because fewer than half of the devices, whatever they say, cannot move it beyond what the others say.

    Raises:
        ProtocolError: no device.
    """
    if not predictions:
        raise ProtocolError("a consensus of no device")
    middle = np.median(np.stack([counts.astype(np.float64) for counts in predictions]), axis=0)
    # A median of distributions that share no class may be 0 everywhere; the mean is not.
    empty = middle.sum(axis=1) == 0
    if np.any(empty):
        middle[empty] = np.mean([counts.astype(np.float64)[empty] for counts in predictions], axis=0)
    return _normal(middle)


def _normal(values: Counts | F64) -> F64:
    floats = values.astype(np.float64)
    return np.asarray(floats / floats.sum(axis=1, keepdims=True), dtype=np.float64)


def _relative_entropy(p: F64, m: F64) -> F64:
    """KL(p ‖ m) of every row in bits; m is positive wherever p is."""
    logarithm = np.log2(np.divide(p, m, out=np.ones_like(p), where=p > 0))
    return np.asarray((p * logarithm).sum(axis=1), dtype=np.float64)
