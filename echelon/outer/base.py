"""Outer optimisers: from the global adapter and some boundary deltas to the next global adapter, bit for bit.

Everything is a fixed sequence of element-wise IEEE-754 binary64 operations (+ − × ÷ √, each correctly
rounded) with no reduction over coordinates: the result does not depend on machine, block size or number of
threads.

For deltas i in ascending order of (boundary, seq), with k_i the integers on the wire, e_i their exponent, N_i
= 1 (equal) or Σ n of the delta's windows (tokens), w_i = N_i·s(τ_i), S0 = s(0), M the number of boundaries,
and the integer sums and products exact before they become float64:

    c_i = ((w_i / (S0·Σ N)) · (|B| / M)) · 2**e_i         scalars
    g   = ((0 + c_1·k_1) + c_2·k_2) + …                   element-wise

Dividing by S0·Σ N and not by Σ w keeps the damping when all deltas are equally late, and |B|/M gives a delta
the same share of a step whether it is merged alone or with others.

Momentum is a memory in steps of the outer loop. Where the interval R·H between those changes during a run, the memory
is kept as long in local steps as it was at the start: with an interval of 2**k times the first one, rounded to an
integer k ("octaves"),

    β_k  = β**(2**k)                                  by squaring or square roots
    lr_k = lr · (1 − β_k) / (1 − β)                   the same displacement per local step in a steady state
    m    = m · 2**(k − k') · (1 − β_k') / (1 − β_k)   when k' becomes k: what a steady state at k would have built up

so k = 0 changes nothing. (Adaptive intervals without such a correction were reported to be slightly worse than a
fixed one: AutoLoCo, 2026. The formulas are ours.)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import Integers
from echelon.messages.manifest import MILLION, OuterKind, OuterTerms
from echelon.outer.corrected import Correctable, corrected

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

_BLOCK = 1 << 15  # coordinates worked on at a time: three float64 blocks stay in a core's cache
_BILLION = 1_000_000_000
MOST_OCTAVES = 4
"""Intervals beyond 16 times, or below a sixteenth of, the first one are treated like those."""
_ARRAYS = {OuterKind.AVERAGE: 0, OuterKind.NESTEROV: 2, OuterKind.FEDADAM: 2, OuterKind.CORRECTED: 2}
_WITH_MOMENTUM = {OuterKind.NESTEROV, OuterKind.CORRECTED}


@dataclass(frozen=True, slots=True)
class WeightedDelta:
    """A delta as the optimiser takes it: integers k (int16[d] or int32[d]), exponent, N and w = N·s(τ)."""

    values: Integers
    exponent: int
    count: int
    weight: int
    base: int = 0
    """The commit that it departed from: which factor it moves where factors alternate."""


@dataclass(frozen=True, slots=True)
class OuterState:
    """What an outer optimiser carries from commit to commit. Arrays are never changed in place.

    Nesterov, corrected: `first` is the momentum m, `second` the sum of the g since m was advanced, `counted` how
    many deltas those were.
    FedAdam: `first` and `second` are the moments m and v. Average has neither. `octaves` is the k that m belongs to.
    """

    kind: OuterKind
    dim: int
    first: F64
    second: F64
    counted: int = 0
    octaves: int = 0

    @classmethod
    def initial(cls, kind: OuterKind, dim: int) -> OuterState:
        """Zeros."""
        size = dim if _ARRAYS[kind] else 0
        return cls(kind, dim, np.zeros(size, np.float64), np.zeros(size, np.float64))

    def encode(self) -> bytes:
        """A fixed header (kind, dim, counted, octaves), then the arrays as little-endian float64."""
        arrays = b"".join(array.astype("<f8", copy=False).tobytes() for array in (self.first, self.second))
        return self._header() + arrays

    def _header(self) -> bytes:
        return (
            b"echelon outer v2\x00"
            + self.kind.value.encode().ljust(16, b"\x00")
            + b"".join(
                number.to_bytes(8, "big") for number in (self.dim, self.counted, self.octaves + MOST_OCTAVES)
            )
        )

    @classmethod
    def decode(cls, data: bytes, kind: OuterKind, dim: int) -> OuterState:
        """Read what `encode` wrote for this kind and dimension.

        Raises:
            CodecError: anything else.
        """
        empty = cls.initial(kind, dim)
        header, size = len(empty._header()), empty.first.size
        expected = header + 16 * size
        if len(data) != expected:
            raise CodecError(
                f"{len(data)} bytes are no {kind.value} state of {dim} coordinates ({expected} bytes)"
            )
        counted = int.from_bytes(data[header - 16 : header - 8], "big")
        octaves = int.from_bytes(data[header - 8 : header], "big") - MOST_OCTAVES
        both = np.frombuffer(data, "<f8", offset=header).astype(np.float64)
        found = cls(kind, dim, both[:size], both[size:], counted, octaves)
        if found._header() != data[:header]:
            raise CodecError("an outer state of another optimiser or another number of coordinates")
        return found

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        digest = hashlib.sha256(self._header())
        for array in (self.first, self.second):
            digest.update(np.ascontiguousarray(array, "<f8").data)
        return digest.digest()


class OuterOptimiser:
    """The outer step of one run: its terms, M boundaries, s(0). Holds no state of its own."""

    def __init__(self, terms: OuterTerms, *, boundaries: int, unit: int) -> None:
        """`unit` is s(0), the integer weight of a delta that is not late.

        Raises:
            ProtocolError: no boundary, or s(0) = 0.
        """
        if boundaries < 1 or unit < 1:
            raise ProtocolError(f"an outer step needs boundaries and s(0) > 0, not {boundaries} and {unit}")
        self.terms = terms
        self.boundaries = boundaries
        self.unit = unit
        self.delay = terms.delay or boundaries
        self._strength = np.float64(terms.correction_ppm) / np.float64(MILLION)
        self._lr = np.float64(terms.lr_ppm) / np.float64(MILLION)
        self._beta1 = np.float64(terms.momentum_ppm) / np.float64(MILLION)
        self._beta2 = np.float64(terms.beta2_ppm) / np.float64(MILLION)
        self._epsilon = np.float64(terms.epsilon_ppb) / np.float64(_BILLION)

    def _memory(self, octaves: int) -> np.float64:
        """β_k."""
        beta = self._beta1
        for _ in range(abs(octaves)):
            beta = beta * beta if octaves > 0 else np.sqrt(beta)
        return np.float64(beta)

    def coefficients(self, deltas: Sequence[WeightedDelta]) -> list[np.float64]:
        """c_i of the module's docstring, in the order of `deltas`.

        Raises:
            ProtocolError: Σ N is not positive.
        """
        total = self.unit * sum(delta.count for delta in deltas)
        if total < 1:
            raise ProtocolError("deltas without a single token bucket have no mean")
        share = np.float64(len(deltas)) / np.float64(self.boundaries)
        parts = [(np.float64(delta.weight) / np.float64(total)) * share for delta in deltas]
        return [part * np.float64(math.ldexp(1.0, d.exponent)) for part, d in zip(parts, deltas, strict=True)]

    def step(
        self, theta: F32, state: OuterState, deltas: Sequence[WeightedDelta], octaves: int = 0
    ) -> tuple[F32, OuterState]:
        """One commit: θ' (float32[d], rounded once, at the end) and the state after it.

        average   θ' = θ + lr·g
        nesterov  buffer += g; once N deltas were counted since the last time: m = β·m + buffer, buffer = 0
                  and θ' = θ + lr·(β·m + g); otherwise θ' = θ + lr·g. N is the terms' delay, M if that is 0.
                  With at least N deltas in every commit this is Nesterov's momentum as in DiLoCo (Douillard et
                  al. 2023); with fewer it is delayed Nesterov (Liu et al. 2024, "Asynchronous Local-SGD Training
                  for Language Modeling", c = 0). Those over N count towards the next time.
        corrected the same, with the deltas corrected first: see `outer_corrected`.
        fedadam   m = β1·m + (1 − β1)·g; v = β2·v + (1 − β2)·g·g; θ' = θ + lr·(m / (√v + ε)) (Reddi et al.
                  2021, "Adaptive Federated Optimization", algorithm 2; v starts at 0, no bias correction)

        Args:
            theta: float32[d], finite.
            state: of the same kind and dimension.
            deltas: at least one, ascending by (boundary, seq).
            octaves: k of the module's docstring, for these deltas; only rules with momentum look at it.

        Raises:
            ProtocolError: no deltas, other dimensions, or a coordinate of θ' that is not finite.
        """
        kind = self.terms.kind
        if not deltas:
            raise ProtocolError("a commit merges at least one delta")
        if state.kind is not kind or state.dim != theta.size:
            raise ProtocolError(f"a {state.kind.value} state of {state.dim} for {kind.value} of {theta.size}")
        if any(delta.values.shape != theta.shape for delta in deltas):
            raise ProtocolError(f"a delta has another number of coordinates than the adapter's {theta.size}")
        factors = self.coefficients(deltas)
        counted = state.counted + len(deltas) if kind in _WITH_MOMENTUM else 0
        advance = counted >= self.delay
        reference, along = None, np.float64(0.0)
        if kind is OuterKind.CORRECTED:
            items = [Correctable(delta.values, delta.exponent, delta.weight) for delta in deltas]
            factors, reference, along = corrected(items, factors, state.first, self._strength)
        octaves = max(-MOST_OCTAVES, min(MOST_OCTAVES, octaves)) if kind in _WITH_MOMENTUM else 0
        beta, rate, rescale = self._beta1, self._lr, None
        if octaves or state.octaves:
            one = np.float64(1.0)
            beta = self._memory(octaves)
            rate = self._lr * ((one - beta) / (one - self._beta1))
            built = (one - self._memory(state.octaves)) / (one - beta)
            rescale = built * np.float64(math.ldexp(1.0, octaves - state.octaves))
        after = np.empty(theta.size, np.float32)
        first, second = np.empty_like(state.first), np.empty_like(state.second)
        for start in range(0, theta.size, _BLOCK):
            at = slice(start, start + _BLOCK)
            g = _weighted_sum(deltas, factors, at)
            if reference is not None:
                g = g + along * reference[at].astype(np.float64)
            if kind in _WITH_MOMENTUM:
                buffer = state.second[at] + g
                built_up = state.first[at] if rescale is None else state.first[at] * rescale
                if advance:
                    first[at] = beta * built_up + buffer
                    second[at] = 0.0
                    g = beta * first[at] + g
                else:
                    first[at] = built_up
                    second[at] = buffer
            elif kind is OuterKind.FEDADAM:
                one = np.float64(1.0)
                first[at] = self._beta1 * state.first[at] + (one - self._beta1) * g
                second[at] = self._beta2 * state.second[at] + ((one - self._beta2) * g) * g
                denominator = np.sqrt(second[at]) + self._epsilon
                # 0/0 where nothing ever moved and ε is 0: no step there.
                g = np.divide(first[at], denominator, out=np.zeros_like(g), where=denominator != 0.0)
            with np.errstate(over="ignore"):
                after[at] = theta[at].astype(np.float64) + rate * g
            if not np.isfinite(after[at]).all():
                raise ProtocolError(
                    "the outer step leaves float32's range: lower its learning rate or the clip"
                )
        return after, OuterState(kind, state.dim, first, second, counted % self.delay, octaves)


def octaves_between(interval: int, first: int) -> int:
    """log2(interval / first) to the nearest integer, by comparing squares; within ±`MOST_OCTAVES`."""
    k = -MOST_OCTAVES
    # interval / first >= 2**(k + 1/2), squared
    while k < MOST_OCTAVES and (interval**2 << (2 * MOST_OCTAVES)) >= (
        first**2 << (2 * (k + MOST_OCTAVES) + 1)
    ):
        k += 1
    return k


def _weighted_sum(deltas: Sequence[WeightedDelta], factors: Sequence[np.float64], at: slice) -> F64:
    total: F64 = np.zeros(deltas[0].values[at].size, np.float64)
    term = np.empty_like(total)
    for delta, factor in zip(deltas, factors, strict=True):
        np.multiply(delta.values[at], factor, out=term, dtype=np.float64)
        np.add(total, term, out=total)
    return total
