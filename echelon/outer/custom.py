"""A user's own outer step: a class that a run's manifest names, and what the controller's core asks of it.

It is a class

    class Rule:
        def __init__(self, parameters: Mapping[str, int | str]) -> None: ...
        def initial(self, dim: int) -> Sequence[float64[...]]: the state before the first commit
        def step(self, inputs: OuterInputs) -> tuple[float32[d], Sequence[float64[...]]]: θ' and the state after

`laws/rules.py` says which code may run. Replay gives the same bits if a rule uses what `outer` uses: + − × ÷ √ element
by element in a fixed order, Python's integers, and the exact reductions of `exact`; no sums of floats over coordinates,
no BLAS, no randomness, no clock. A commit in which a rule gives two results for the same inputs is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError, ProtocolError
from echelon.laws.rules import Allowed, class_of, guarded
from echelon.messages.adapter import F32, F64
from echelon.messages.manifest import OuterTerms, RuleTerms
from echelon.messages.wire import pack
from echelon.outer.base import Scale, WeightedDelta

MAX_ARRAYS = 16
"""Most arrays that a rule may carry from commit to commit."""


@dataclass(frozen=True, slots=True)
class OuterInputs:
    """What an outer step is given. Arrays are read-only.

    Attributes:
        theta: float32[d], the newest adapter.
        state: what the last step returned.
        deltas: ascending by (boundary, seq): integers k_i, exponent e_i, N_i and w_i.
        factors: c_i, so that the plain weighted mean is g = Σ c_i·k_i; see `outer`.
        boundaries: M.
        terms: the manifest's settings of the outer optimiser.
        octaves: log2 of the interval R·H that the deltas were trained at, over the first one, to the nearest integer.
    """

    theta: F32
    state: tuple[F64, ...]
    deltas: tuple[WeightedDelta, ...]
    factors: tuple[np.float64, ...]
    boundaries: int
    terms: OuterTerms
    octaves: int = 0

    def mean(self) -> F64:
        """g = ((0 + c_1·k_1) + c_2·k_2) + …, float64[d]."""
        total: F64 = np.zeros(self.theta.size, np.float64)
        for delta, factor in zip(self.deltas, self.factors, strict=True):
            total = total + delta.values.astype(np.float64) * factor
        return total


class OuterRule(Protocol):
    """A user's outer step."""

    def initial(self, dim: int) -> Sequence[F64]:
        """The state before the first commit: at most `MAX_ARRAYS` arrays of float64."""

    def step(self, inputs: OuterInputs) -> tuple[F32, Sequence[F64]]:
        """θ', float32[d], and the state after it, in the same shapes."""


@dataclass(frozen=True, slots=True)
class RuleState:
    """The state of a user's outer step, under the rule's name."""

    name: str
    arrays: tuple[F64, ...]

    def encode(self) -> bytes:
        """A header (name, shapes), then the arrays as little-endian float64."""
        head = b"echelon rule v1\x00" + pack([self.name, [list(array.shape) for array in self.arrays]])
        return head + b"".join(array.astype("<f8", copy=False).tobytes() for array in self.arrays)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()

    def brief(self) -> bytes:
        """SHA-256 of all of it, 32 bytes: whether a user's rule gives the same numbers everywhere is not known."""
        return self.digest()


@dataclass(frozen=True)
class Custom:
    """A user's outer step: its results are checked, and each step is taken twice."""

    name: str
    rule: OuterRule
    terms: OuterTerms
    scale: Scale

    def initial(self, dim: int) -> RuleState:
        """What the rule starts with."""
        return RuleState(self.name, self._arrays(self._guarded(lambda: self.rule.initial(dim))))

    def decode(self, data: bytes, dim: int) -> RuleState:
        """Read a state of the same shapes as the initial one."""
        initial = self.initial(dim)
        empty = initial.encode()
        body = sum(array.nbytes for array in initial.arrays)
        head = len(empty) - body
        if len(data) != len(empty) or data[:head] != empty[:head]:
            raise CodecError(f"{len(data)} bytes are no state of the rule {self.name}")
        arrays, at = [], head
        for array in initial.arrays:
            part = np.frombuffer(data, "<f8", array.size, at).astype(np.float64).reshape(array.shape)
            arrays.append(part)
            at += array.nbytes
        return RuleState(self.name, tuple(arrays))

    def step(
        self, theta: F32, state: Any, deltas: Sequence[WeightedDelta], octaves: int
    ) -> tuple[F32, RuleState]:
        """Make one commit, twice, and compare both results.

        Args:
            theta: float32[d], the newest adapter.
            state: of this rule.
            deltas: at least one, ascending by (boundary, seq).
            octaves: log2 of the interval that the deltas were trained at over the first one, rounded.

        Returns:
            θ', float32[d], and the state after the commit.

        Raises:
            ProtocolError: no deltas; the rule failed, gave what is no adapter, or gave two different results.
        """
        if not isinstance(state, RuleState) or state.name != self.name or not deltas:
            raise ProtocolError(
                f"the rule {self.name} was asked for a step from what is no commit of its run"
            )
        after, following = self._once(theta, state, deltas, octaves)
        again, other = self._once(theta, state, deltas, octaves)
        if after.tobytes() != again.tobytes() or following.encode() != other.encode():
            raise ProtocolError(
                f"the rule {self.name} gave two results for the same inputs: it depends on something else than "
                f"what it is given, and nobody could derive its commits again"
            )
        return after, following

    def _once(
        self, theta: F32, state: RuleState, deltas: Sequence[WeightedDelta], octaves: int
    ) -> tuple[F32, RuleState]:
        inputs = OuterInputs(
            theta=_read_only(theta),
            state=tuple(_read_only(array) for array in state.arrays),
            deltas=tuple(deltas),
            factors=tuple(self.scale.coefficients(deltas)),
            boundaries=self.scale.boundaries,
            terms=self.terms,
            octaves=octaves,
        )
        stepped = self._guarded(lambda: self.rule.step(inputs))
        if not (isinstance(stepped, tuple) and len(stepped) == 2):
            raise ProtocolError(f"the rule {self.name} gave no pair of an adapter and a state")
        after, arrays = stepped
        if not isinstance(after, np.ndarray) or after.dtype != np.float32 or after.shape != theta.shape:
            raise ProtocolError(f"the rule {self.name} gave no float32[{theta.size}] as the next adapter")
        if not np.isfinite(after).all():
            raise ProtocolError(f"the rule {self.name} gave an adapter that is not finite")
        following = RuleState(self.name, self._arrays(arrays))
        if [array.shape for array in following.arrays] != [array.shape for array in state.arrays]:
            raise ProtocolError(f"the rule {self.name} gave a state of other shapes than it was given")
        return np.ascontiguousarray(after), following

    def _arrays(self, sequence: Any) -> tuple[F64, ...]:
        arrays = tuple(sequence)
        if len(arrays) > MAX_ARRAYS:
            raise ProtocolError(
                f"the rule {self.name} has {len(arrays)} arrays of state, at most {MAX_ARRAYS}"
            )
        if any(not isinstance(array, np.ndarray) or array.dtype != np.float64 for array in arrays):
            raise ProtocolError(f"the state of the rule {self.name} is not made of float64 arrays")
        return tuple(np.array(array, np.float64, order="C") for array in arrays)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        return guarded(self.name, call)


def custom_step(rule: RuleTerms, terms: OuterTerms, scale: Scale, allowed: Allowed) -> Custom:
    """Build a user's outer step.

    Args:
        rule: the name, the parameters and the digest that the manifest gives.
        terms: the manifest's settings of the outer optimiser.
        scale: what the weights of deltas are divided by.
        allowed: the code that may run, by name.

    Returns:
        The user's step, guarded.

    Raises:
        RuleRefused: the rule is not among those allowed.
        ProtocolError: the rule cannot be made.
    """
    make = class_of(rule, allowed)
    return Custom(rule.name, guarded(rule.name, lambda: make(rule.arguments())), terms, scale)


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view
