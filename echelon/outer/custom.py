"""A user's own rules: classes that a run's manifest names, and what the cores ask of them.

The manifest has a rule's name, its parameters and the SHA-256 of its source file (`RuleTerms`). This package runs a
rule only if it is handed one of that very digest (`AllowedRule`): it loads no code, and no log can make it. Who
hands it over has decided to run it: the operator by the run file, an auditor on the command line.

An **outer step** is a class

    class Rule:
        def __init__(self, parameters: Mapping[str, int | str]) -> None: ...
        def initial(self, dim: int) -> Sequence[float64[...]]: the state before the first commit
        def step(self, inputs: OuterInputs) -> tuple[float32[d], Sequence[float64[...]]]: θ' and the state after

a **pace** is a class made from `(pace, parameters)` that is a `PaceController`, a **staleness table** one made from
`(parameters)` whose `table(horizon)` gives s(0) … s(horizon) as integers; the table itself stands in the manifest,
so nobody needs that code again.

Replay gives the same bits if a rule uses what `outer` uses: + − × ÷ √ element by element in a fixed order, Python's
integers, and the exact reductions of `exact`; no sums of floats over coordinates, no BLAS, no randomness, no clock. A
rule that gives two results for the same inputs is refused in the commit in which it does so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError, EchelonError, ProtocolError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import OuterTerms, RuleSlot, RuleTerms, RunManifest
from echelon.messages.wire import pack
from echelon.outer.base import F32, F64, Scale, WeightedDelta
from echelon.pace.base import Decision, PaceController, PaceInputs

Parameters = Mapping[str, int | str]

MAX_ARRAYS = 16
"""Most arrays that a rule may carry from commit to commit."""


class RuleRefused(ProtocolError):
    """A run needs code that was not handed over, or another version of it than it was started with."""


@dataclass(frozen=True, slots=True)
class AllowedRule:
    """Code that may run.

    Attributes:
        name: `package.module:Class`.
        sha256: of the source file's bytes.
        make: gives the class; called only after the digest was compared with the manifest's.
    """

    name: str
    sha256: bytes
    make: Callable[[], Callable[..., Any]]


Allowed = Mapping[str, AllowedRule]
"""By name."""


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
        found = self._guarded(lambda: self.rule.step(inputs))
        if not (isinstance(found, tuple) and len(found) == 2):
            raise ProtocolError(f"the rule {self.name} gave no pair of an adapter and a state")
        after, arrays = found
        if not isinstance(after, np.ndarray) or after.dtype != np.float32 or after.shape != theta.shape:
            raise ProtocolError(f"the rule {self.name} gave no float32[{theta.size}] as the next adapter")
        if not np.isfinite(after).all():
            raise ProtocolError(f"the rule {self.name} gave an adapter that is not finite")
        following = RuleState(self.name, self._arrays(arrays))
        if [array.shape for array in following.arrays] != [array.shape for array in state.arrays]:
            raise ProtocolError(f"the rule {self.name} gave a state of other shapes than it was given")
        return np.ascontiguousarray(after), following

    def _arrays(self, found: Any) -> tuple[F64, ...]:
        arrays = tuple(found)
        if len(arrays) > MAX_ARRAYS:
            raise ProtocolError(
                f"the rule {self.name} has {len(arrays)} arrays of state, at most {MAX_ARRAYS}"
            )
        if any(not isinstance(array, np.ndarray) or array.dtype != np.float64 for array in arrays):
            raise ProtocolError(f"the state of the rule {self.name} is not made of float64 arrays")
        return tuple(np.array(array, np.float64, order="C") for array in arrays)

    def _guarded(self, call: Callable[[], Any]) -> Any:
        return _guarded(self.name, call)


@dataclass(frozen=True)
class CustomPace:
    """A user's pace: what it decides stays within the manifest's bounds."""

    name: str
    inner: PaceController
    windows_most: int

    @property
    def decision(self) -> Decision:
        """What the rule says of its newest decision, if it does."""
        found = getattr(self.inner, "decision", None)
        return found if isinstance(found, Decision) else Decision("rule", self.name)

    def observe(self, inputs: PaceInputs) -> tuple[Self, Pace]:
        """As the rule decides, within bounds.

        Raises:
            ProtocolError: it failed, or decided what no boundary could follow.
        """
        after, pace = _guarded(self.name, lambda: self.inner.observe(inputs))
        if not isinstance(pace, Pace) or not 1 <= pace.windows <= self.windows_most or pace.steps < 1:
            raise ProtocolError(
                f"the rule {self.name} decided {pace}; R must be in 1..{self.windows_most} and H at least 1"
            )
        return type(self)(self.name, after, self.windows_most), pace

    def encode(self) -> bytes:
        """The rule's own state."""
        return bytes(_guarded(self.name, self.inner.encode))

    def decode(self, data: bytes) -> Self:
        """The rule with that state."""
        return type(self)(self.name, _guarded(self.name, lambda: self.inner.decode(data)), self.windows_most)

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


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
    return Custom(rule.name, _guarded(rule.name, lambda: make(rule.arguments())), terms, scale)


def pace_of(manifest: RunManifest, allowed: Allowed) -> PaceController | None:
    """The user's pace that a run's manifest names; None if it names none.

    Raises:
        RuleRefused: not among those allowed.
        ProtocolError: the rule cannot be made.
    """
    terms = manifest.rule(RuleSlot.PACE)
    if terms is None:
        return None
    make = class_of(terms, allowed)
    exchange = manifest.exchange
    inner = _guarded(terms.name, lambda: make(manifest.pace, terms.arguments()))
    return CustomPace(terms.name, inner, exchange.windows_max // (exchange.pending_max + 1))


def class_of(terms: RuleTerms, allowed: Allowed) -> Callable[..., Any]:
    """The class that the terms name, if it may run.

    Raises:
        RuleRefused: it was not handed over, or its source is another than the run was started with.
    """
    found = allowed.get(terms.name)
    if found is None:
        raise RuleRefused(
            f"the {terms.slot.value} rule of this run is {terms.name}, code that was not allowed here: its commits "
            f"were not derived again. Read the code, compare its SHA-256 with {terms.sha256}, and allow it with --rule "
            f"{terms.name}"
        )
    if found.sha256.hex() != terms.sha256:
        raise RuleRefused(
            f"the source of {terms.name} has SHA-256 {found.sha256.hex()}, the run was started with {terms.sha256}: "
            f"its commits were not derived again. Get that version of the file"
        )
    return found.make()


def table_of(name: str, rule: Any, horizon: int) -> tuple[int, ...]:
    """Check the staleness table of a user's rule.

    Args:
        name: of the rule, for the message.
        rule: the user's object.
        horizon: greatest lateness that the table has a weight for.

    Returns:
        s(0) … s(horizon).

    Raises:
        ProtocolError: it failed, or the table is not horizon + 1 integers in 0..2**20, the first above 0.
    """
    table = tuple(_guarded(name, lambda: rule.table(horizon)))
    fits = all(type(weight) is int and 0 <= weight <= 1 << 20 for weight in table)
    if len(table) != horizon + 1 or not fits or table[0] < 1:
        raise ProtocolError(
            f"the rule {name} gave no table of {horizon + 1} integers from 0 to 2**20, the first above 0"
        )
    return table


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    view = array.view()
    view.flags.writeable = False
    return view


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """Call a user's code: whatever it raises is an error of that rule, said as one."""
    try:
        return call()
    except EchelonError:
        raise
    except Exception as error:
        raise ProtocolError(f"the rule {name} failed: {type(error).__name__}: {error}") from error
