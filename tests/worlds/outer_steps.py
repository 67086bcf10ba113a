"""Deltas as a commit takes them, and the rules of this package on small numbers."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echelon.laws.delta_codec import encode, integers
from echelon.messages.exchange import DeltaCodec
from echelon.messages.manifest import OuterKind, OuterTerms, Weighting
from echelon.outer.base import OuterOptimiser, OuterState, WeightedDelta
from echelon.outer.registry import outer_optimiser

UNIT = 256


STEPS = arrays(np.float64, 5, elements=st.floats(-1, 1)).filter(lambda v: np.abs(v).max() > 1e-6)


DIM = 8


def optimiser(
    kind: OuterKind,
    *,
    boundaries: int = 2,
    lr: int = 700_000,
    momentum: int = 900_000,
    delay: int = 0,
    correction: int = 500_000,
) -> OuterOptimiser:
    terms = OuterTerms(
        kind=kind,
        weighting=Weighting.EQUAL,
        lr_ppm=lr,
        momentum_ppm=momentum,
        beta2_ppm=990_000,
        epsilon_ppb=1_000_000,
        delay=delay,
        correction_ppm=correction,
    )
    return outer_optimiser(terms, boundaries=boundaries, unit=UNIT)


def initial(kind: OuterKind, dim: int) -> OuterState:
    return optimiser(kind).initial(dim)


def delta(
    vector: np.ndarray, *, count: int = 1, s: int = UNIT, codec: DeltaCodec = DeltaCodec.INT16
) -> WeightedDelta:
    payload, exponent = encode(vector, codec)
    return WeightedDelta(integers(payload, exponent, codec), exponent, count, count * s)


def both(vector: np.ndarray) -> list[WeightedDelta]:
    return [delta(vector), delta(vector)]


def value(item: WeightedDelta) -> np.ndarray:
    return item.values.astype(np.float64) * 2.0**item.exponent


def stream(seed: int, dim: int, count: int) -> list[WeightedDelta]:
    """Deltas from hash bytes, so that no generator's version enters the golden values."""
    found = []
    for index in range(count):
        text = b"".join(
            hashlib.sha256(b"%d %d %d" % (seed, index, block)).digest() for block in range(dim // 16 + 1)
        )
        found.append(delta(np.frombuffer(text[: 2 * dim], "<i2").astype(np.float64) / 4096))
    return found


def trajectory(kind: OuterKind, sizes: tuple[int, ...], dim: int = 33) -> list[str]:
    step = optimiser(kind)
    theta, state = np.linspace(-1, 1, dim, dtype=np.float32), initial(kind, dim)
    digests, deltas = [], stream(7, dim, sum(sizes))
    for size in sizes:
        theta, state = step.step(theta, state, deltas[:size])
        deltas = deltas[size:]
        digests.append(hashlib.sha256(theta.tobytes()).hexdigest() + ":" + state.digest().hex())
    return digests
