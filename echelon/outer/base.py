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

A rule is one class in one file: a subclass of `OuterOptimiser` that says how a block of coordinates moves. The registry
names the class of every `OuterKind` (`messages/kinds.py`).
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import Integers
from echelon.laws.hashing import Digest, Sha256
from echelon.messages.adapter import F32, F64
from echelon.messages.manifest import MILLION, OuterKind, OuterTerms

_BLOCK = 1 << 16  # coordinates worked on at a time: the arrays of a block stay in the processor's cache
MOST_OCTAVES = 4
"""Intervals beyond 16 times, or below a sixteenth of, the first one are treated like those."""


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
    `begun` is the digest of all that, if it was computed while the state was made.
    """

    kind: OuterKind
    dim: int
    first: F64
    second: F64
    counted: int = 0
    octaves: int = 0
    begun: Digest | None = field(default=None, compare=False, repr=False)

    @classmethod
    def zeros(cls, kind: OuterKind, dim: int, size: int) -> OuterState:
        """Build a state before the first commit.

        Args:
            kind: of the rule that carries the state.
            dim: number of coordinates of the adapter.
            size: number of coordinates of each array: `dim`, or 0 for a rule without arrays.

        Returns:
            A state of zeros.
        """
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

    def decode(self, data: bytes) -> OuterState:
        """Read what `encode` wrote for a state of this kind and of these sizes.

        Raises:
            CodecError: the bytes are anything else.
        """
        kind, dim = self.kind, self.dim
        header, size = len(self._header()), self.first.size
        expected = header + 16 * size
        if len(data) != expected:
            raise CodecError(
                f"{len(data)} bytes are no {kind.value} state of {dim} coordinates ({expected} bytes)"
            )
        counted = int.from_bytes(data[header - 16 : header - 8], "big")
        octaves = int.from_bytes(data[header - 8 : header], "big") - MOST_OCTAVES
        both = np.frombuffer(data, "<f8", offset=header).astype(np.float64)
        state = OuterState(kind, dim, both[:size], both[size:], counted=counted, octaves=octaves)
        if state._header() != data[:header]:
            raise CodecError("an outer state of another optimiser or another number of coordinates")
        return state

    def brief(self) -> bytes:
        """SHA-256 of the header of `encode()`, 32 bytes: kind, dimension and counters, without the arrays."""
        return hashlib.sha256(b"echelon brief v1\x00" + self._header()).digest()

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        if self.begun is not None:
            return self.begun.digest()
        digest = hashlib.sha256(self._header())
        for array in (self.first, self.second):
            digest.update(_written(array))
        return digest.digest()


class EncodableState(Protocol):
    """What an outer step carries from commit to commit, whoever wrote the step."""

    def encode(self) -> bytes:
        """Canonical bytes."""

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""

    def brief(self) -> bytes:
        """SHA-256 of what of it does not follow from genesis and merged deltas by a rule of this package."""


class Outer(Protocol):
    """The outer step of a run, whoever wrote it."""

    def initial(self, dim: int) -> Any:
        """The state before the first commit."""

    def decode(self, data: bytes, dim: int) -> Any:
        """The state that `encode` wrote. Raises `CodecError` for any other."""

    def step(self, theta: F32, state: Any, deltas: Sequence[WeightedDelta], octaves: int) -> tuple[F32, Any]:
        """Make one commit.

        Args:
            theta: float32[d], the newest adapter.
            state: what the last step returned.
            deltas: at least one, ascending by (boundary, seq).
            octaves: log2 of the interval that the deltas were trained at over the first one, rounded.

        Returns:
            θ', float32[d], and the state after it.

        Raises:
            ProtocolError: the commit cannot be made.
        """


@dataclass(frozen=True, slots=True)
class Scale:
    """What the weights of deltas are divided by: M boundaries, and s(0), the weight of a delta that is not late."""

    boundaries: int
    unit: int

    def __post_init__(self) -> None:
        if self.boundaries < 1 or self.unit < 1:
            raise ProtocolError(
                f"an outer step needs boundaries and s(0) > 0, not {self.boundaries} and {self.unit}"
            )

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


@dataclass(frozen=True, slots=True)
class CommitInputs:
    """What a rule plans one commit from.

    Attributes:
        state: of the rule's kind and of the adapter's dimension.
        deltas: at least one, ascending by (boundary, seq).
        factors: c_i of the module's docstring, one for each delta.
        octaves: log2 of the interval that the deltas were trained at over the first one, rounded.
    """

    state: OuterState
    deltas: Sequence[WeightedDelta]
    factors: Sequence[np.float64]
    octaves: int


@dataclass(frozen=True, slots=True)
class Block:
    """One block of coordinates while its move is made. A rule may overwrite every array of it.

    Attributes:
        at: which coordinates.
        g: float64[n], the weighted sum of the deltas there.
        spare: float64[n], of no meaning: room for what a rule computes.
        first: float64[n], `first` of the state after the commit, which the rule writes; empty if it has no arrays.
        second: likewise, `second`.
    """

    at: slice
    g: F64
    spare: F64
    first: F64
    second: F64


@dataclass(frozen=True, slots=True)
class Plan:
    """How one commit is made; the same for every block of coordinates.

    Attributes:
        move: writes the state of a block after the commit, and gives the direction, float64[n], that θ moves along
            there: θ' = θ + rate·direction. It may be an array of the block.
        rate: the learning rate.
        factors: c_i by which the deltas are summed.
        counted: of the state after the commit.
        octaves: of the state after the commit.
    """

    move: Callable[[Block], F64]
    rate: np.float64
    factors: Sequence[np.float64]
    counted: int = 0
    octaves: int = 0


class OuterOptimiser(ABC):
    """The outer step of one run: its terms, M boundaries, s(0). Holds no state of its own."""

    kind: ClassVar[OuterKind]
    carries_arrays: ClassVar[bool] = True
    """Whether the state has two arrays of the adapter's dimension; otherwise both are empty."""

    def __init__(self, terms: OuterTerms, scale: Scale) -> None:
        """Keep the terms, of this rule's kind, and the scale of the deltas' weights."""
        self.terms = terms
        self.scale = scale
        self.lr = np.float64(terms.lr_ppm) / np.float64(MILLION)
        self.sha256: Sha256 | None = None
        """Who computes the digest of a state while it is made; None: it is computed when it is asked for."""

    @abstractmethod
    def plan(self, inputs: CommitInputs) -> Plan:
        """Say how a commit moves the adapter and the state."""

    def initial(self, dim: int) -> OuterState:
        """Build the state before the first commit."""
        return OuterState.zeros(self.kind, dim, dim if self.carries_arrays else 0)

    def decode(self, data: bytes, dim: int) -> OuterState:
        """Read a state that `OuterState.encode` wrote.

        Raises:
            CodecError: the bytes are no state of this rule and dimension.
        """
        return self.initial(dim).decode(data)

    def step(
        self, theta: F32, state: OuterState, deltas: Sequence[WeightedDelta], octaves: int = 0
    ) -> tuple[F32, OuterState]:
        """Make one commit: θ' is rounded to float32 once, at the end.

        Args:
            theta: float32[d], finite.
            state: of the same kind and dimension.
            deltas: at least one, ascending by (boundary, seq).
            octaves: k for these deltas; only rules with momentum look at it.

        Returns:
            θ', float32[d], and the state after the commit.

        Raises:
            ProtocolError: no deltas, other dimensions, or a coordinate of θ' that is not finite.
        """
        self._check(theta, state, deltas)
        plan = self.plan(CommitInputs(state, deltas, self.scale.coefficients(deltas), octaves))
        after = np.empty(theta.size, np.float32)
        first, second = np.empty_like(state.first), np.empty_like(state.second)
        begun = None if self.sha256 is None else self.sha256()
        following = OuterState(
            self.kind, state.dim, first, second, counted=plan.counted, octaves=plan.octaves, begun=begun
        )
        if begun is not None:
            begun.update(following._header())
        room = np.empty((2, min(_BLOCK, theta.size)), np.float64)
        with np.errstate(over="ignore"):
            for start in range(0, theta.size, _BLOCK):
                at = slice(start, min(start + _BLOCK, theta.size))
                g, spare = room[:, : at.stop - start]
                _sum_weighted(deltas, plan.factors, at, (g, spare))
                direction = plan.move(Block(at, g, spare, first[at], second[at]))
                np.multiply(direction, plan.rate, out=g)
                np.copyto(spare, theta[at])
                after[at] = np.add(g, spare, out=g)
                if not np.isfinite(after[at]).all():
                    raise ProtocolError(
                        "the outer step leaves float32's range: lower its learning rate or the clip"
                    )
                if begun is not None:
                    begun.update(_written(first[at]))
        if begun is not None:
            for start in range(0, second.size, _BLOCK):
                begun.update(_written(second[start : start + _BLOCK]))
        return after, following

    def _check(self, theta: F32, state: OuterState, deltas: Sequence[WeightedDelta]) -> None:
        kind = self.kind
        if not deltas:
            raise ProtocolError("a commit merges at least one delta")
        if state.kind is not kind or state.dim != theta.size:
            raise ProtocolError(f"a {state.kind.value} state of {state.dim} for {kind.value} of {theta.size}")
        if any(delta.values.shape != theta.shape for delta in deltas):
            raise ProtocolError(f"a delta has another number of coordinates than the adapter's {theta.size}")


def octaves_between(interval: int, first: int) -> int:
    """log2(interval / first) to the nearest integer, by comparing squares; within ±`MOST_OCTAVES`."""
    k = -MOST_OCTAVES
    # interval / first >= 2**(k + 1/2), squared
    while k < MOST_OCTAVES and (interval**2 << (2 * MOST_OCTAVES)) >= (
        first**2 << (2 * (k + MOST_OCTAVES) + 1)
    ):
        k += 1
    return k


def _written(array: F64) -> memoryview:
    """An array as it is written: little-endian float64."""
    return np.ascontiguousarray(array, "<f8").data


def _sum_weighted(
    deltas: Sequence[WeightedDelta], factors: Sequence[np.float64], at: slice, room: tuple[F64, F64]
) -> None:
    """Write g = ((0 + c_1·k_1) + c_2·k_2) + … of the block `at` into the first array of the room."""
    total, term = room
    for place, (delta, factor) in enumerate(zip(deltas, factors, strict=True)):
        product = term if place else total
        np.copyto(product, delta.values[at])
        np.multiply(product, factor, out=product)
        if place:
            np.add(total, term, out=total)
        elif not factor > 0.0:
            total += 0.0  # of −0 it makes 0; no product with a factor above 0 is −0
