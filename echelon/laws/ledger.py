"""The boundary's ledger: θ = anchor + κ·Σ pending + r (design 6.5).

- anchor (float32[d]): the adapter of the newest commit that the boundary took over;
- pending (integers[d] with an exponent each, by seq): deltas that were sent and are not decided yet, exactly as they go
  on the wire;
- r (float64[d]): what windows moved since the last delta, with the residue of every delta before: what its
  rounding left, and where deltas are sparse what it did not carry.

κ is 1 unless the run takes outer steps eagerly (`ExchangeTerms.eager_ppm`): then it is what the outer step will make of
a boundary's own delta. It says what is trained from, not what is kept: no delta is another for it.

What a window contributed stands in exactly one of these, so a delta that is merged, left out of a commit,
refused, or sent while another is in flight counts once or never. The aggregator and the gate run this same code.

Vectors may be large: r is changed in place, block by block, and no step makes another vector of float64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from echelon.errors import CodecError, ProtocolError
from echelon.laws.delta_codec import Integers, exact
from echelon.laws.delta_form import DeltaForm
from echelon.laws.snapshot import LazyVector, SnapshotMap
from echelon.messages.adapter import F32, F64
from echelon.messages.boundary import SealedDelta
from echelon.messages.exchange import MAX_WINDOWS, DeltaCodec, WindowSummary
from echelon.messages.manifest import MILLION, ExchangeTerms, SecureTerms

_BLOCK = 1 << 14
"""Coordinates that are added up at a time: their float64 numbers stay in a core's cache."""


def window_mean(total: NDArray[np.int64], weight_sum_n: int, terms: SecureTerms) -> F64:
    """The damped mean Σ n·s(τ)·Δ / Σ n of a window, decoded from the integer sum.

    Args:
        total: int64[d], the sum of round(w/W · Δ · 2**scale_bits) over the included devices.
        weight_sum_n: Σ n of the included devices.
        terms: W, s(0) and the scale.

    Devices scale by w/W = n·s(τ)/W, so Σ n·s(τ)/s(0)·Δ / Σ n = total · W / (2**scale_bits · s(0) · Σ n).
    """
    return total.astype(np.float64) * _mean_factor(weight_sum_n, terms)


def _mean_factor(weight_sum_n: int, terms: SecureTerms) -> np.float64:
    if weight_sum_n <= 0:
        raise ProtocolError("a window whose included devices trained nothing has no mean")
    return np.float64(terms.weight_max) / (
        np.float64(1 << terms.scale_bits) * np.float64(terms.staleness[0]) * np.float64(weight_sum_n)
    )


class WindowMean:
    """`window_mean` of a sum, computed a part at a time: the float64 numbers of a whole vector are nowhere at once.

    Args:
        total: int32[d], the sum. It is not copied, and must stay as it is.
        weight_sum_n: Σ n of the included devices.
        terms: W, s(0) and the scale.
        shorter: the factor that the mean is shortened by; 1.0: it is not.
        blocks: the block of each coordinate, uint8[d], and Σ n of the devices that added to each block: their mean is
            over those, and 0 where there are none. None: all devices added to all coordinates.

    Raises:
        ProtocolError: nothing was trained.
    """

    def __init__(
        self,
        total: NDArray[np.int32],
        weight_sum_n: int,
        terms: SecureTerms,
        shorter: float = 1.0,
        blocks: tuple[NDArray[np.uint8], Sequence[int]] | None = None,
    ) -> None:
        self._total, self._shorter = total, shorter
        self._factor = _mean_factor(weight_sum_n, terms)
        self._index: NDArray[np.uint8] | None = None
        if blocks is not None:
            self._index, divisors = blocks
            self._factors = np.array([_mean_factor(n, terms) if n else 0.0 for n in divisors], np.float64)

    def __getitem__(self, part: slice) -> F64:
        """A part of the mean, float64."""
        factor = self._factor if self._index is None else self._factors[self._index[part]]
        mean = self._total[part].astype(np.float64) * factor
        return mean if self._shorter == 1.0 else mean * self._shorter


@dataclass(frozen=True, slots=True)
class RoundedDelta:
    """A delta as it goes on the wire."""

    seq: int
    base_commit: int
    windows: tuple[WindowSummary, ...]
    codec: DeltaCodec
    exponent: int
    payload: bytes

    def is_sealed_as(self, message: SealedDelta) -> bool:
        """Whether the record of a sealed delta is this one's."""
        mine = (self.base_commit, self.windows, self.codec, self.exponent)
        return (
            mine == (message.base_commit, message.windows, message.codec, message.exponent)
            and hashlib.sha256(self.payload).digest() == message.payload.sha256
        )


class PendingDelta(LazyVector):
    """A delta that was sent.

    Args:
        numbers: int16[d] or int32[d] as on the wire, or float64[d] after a restart.
        exponent: a number stands for that number times 2**exponent.
        windows: those in it.
    """

    __slots__ = ("_exponent", "_numbers", "windows")

    def __init__(self, numbers: Integers | F64, exponent: int, windows: tuple[WindowSummary, ...]) -> None:
        self._numbers, self._exponent, self.windows = numbers, exponent, windows

    def __getitem__(self, part: slice) -> F64:
        """A part of its exact value, float64."""
        return exact(self._numbers[part], self._exponent)

    @property
    def size(self) -> int:
        """d."""
        return self._numbers.size

    @property
    def value(self) -> F64:
        """Its exact value, float64[d], as a new array."""
        return self[:]


Summary: TypeAlias = dict[str, int | bytes | tuple[int, ...]]
"""The fields of a `WindowSummary`."""


class StoredLedger(SnapshotMap, frozen=True, kw_only=True):
    """A ledger without its anchor; vectors are float64[d].

    Attributes:
        commit: of the anchor.
        next_seq: of the delta that is sealed next.
        remainder: what no delta holds.
        windows: in the remainder.
        pending: seq, value and windows of each delta that is not decided.
    """

    commit: int
    next_seq: int
    remainder: F64
    windows: list[Summary]
    pending: list[tuple[int, F64, list[Summary]]]


@dataclass(slots=True)
class Ledger:
    """State of one boundary's adapter; see the module's docstring."""

    anchor: F32
    commit: int = 0
    next_seq: int = 0
    remainder: F64 = field(default_factory=lambda: np.zeros(0, np.float64))
    windows: tuple[WindowSummary, ...] = ()
    pending: dict[int, PendingDelta] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.remainder.size == 0:
            self.remainder = np.zeros(self.anchor.size, np.float64)
        elif not self.remainder.flags.writeable:  # of a snapshot
            self.remainder = self.remainder.copy()

    def theta(self, terms: ExchangeTerms | None = None) -> F32:
        """The boundary adapter, float32[d]; additions in ascending seq, then r. See `write_theta`."""
        vector = np.empty(self.anchor.size, np.float32)
        self.write_theta(vector, terms)
        return vector

    def write_theta(self, vector: F32, terms: ExchangeTerms | None = None) -> None:
        """Write the boundary adapter into a vector, float32[d].

        Args:
            vector: is overwritten.
            terms: the run's, which say κ; None: 1.
        """
        ppm = None if terms is None else terms.eager_ppm
        share = None if ppm is None else np.float64(ppm) / np.float64(MILLION)
        pending = [self.pending[seq] for seq in sorted(self.pending)]
        for part in self._parts():
            total = self.anchor[part].astype(np.float64)
            for delta in pending:
                total += delta[part] if share is None else delta[part] * share
            total += self.remainder[part]
            vector[part] = total

    def _parts(self) -> Iterator[slice]:
        return (slice(start, start + _BLOCK) for start in range(0, self.anchor.size, _BLOCK))

    @property
    def outstanding(self) -> int:
        """Windows that no commit has taken: those in r and those of pending deltas."""
        return len(self.windows) + sum(len(delta.windows) for delta in self.pending.values())

    def add_window(self, summary: WindowSummary, mean: F64 | WindowMean) -> None:
        """r ← r + mean.

        Args:
            summary: of the window.
            mean: float64[d], what it moves.

        Raises:
            ProtocolError: the window is in the ledger already, or a delta could not hold one more.
        """
        if any(summary.window == known.window for known in self.windows):
            raise ProtocolError(f"window {summary.window} is in the remainder already")
        if len(self.windows) >= MAX_WINDOWS:
            raise ProtocolError(
                f"the remainder holds {MAX_WINDOWS} windows, the most that one delta can carry"
            )
        for part in self._parts():
            self.remainder[part] += mean[part]
        self.windows = (*self.windows, summary)

    def seal(self, form: DeltaForm, moving: NDArray[np.bool_] | None = None) -> RoundedDelta:
        """Δ = decode(encode(r)) becomes pending under the next seq; the residue stays in r.

        Args:
            form: of the delta, for as many coordinates as the anchor has.
            moving: bool[d], the coordinates that the delta may carry; what r holds elsewhere stays there, and the
                delta is exactly zero. None: all.

        Raises:
            ProtocolError: no window since the last delta.
        """
        if not self.windows:
            raise ProtocolError("nothing to seal: no window closed since the last delta")
        carried = self.remainder if moving is None else np.where(moving, self.remainder, 0.0)
        payload, exponent = form.encode(carried)
        delta = PendingDelta(form.integers(payload, exponent), exponent, self.windows)
        sealed = RoundedDelta(
            seq=self.next_seq,
            base_commit=self.commit,
            windows=self.windows,
            codec=form.codec,
            exponent=exponent,
            payload=payload,
        )
        self.pending[self.next_seq] = delta
        for part in self._parts():
            self.remainder[part] -= delta[part]
        self.windows = ()
        self.next_seq += 1
        return sealed

    def adopt(
        self,
        commit: int,
        adapter: F32,
        *,
        merged: tuple[int, ...],
        returned: tuple[int, ...],
        dropped: tuple[int, ...],
    ) -> None:
        """Take a commit over: anchor ← its adapter; decided deltas leave pending, stale ones go back to r.

        Args:
            commit: number of the commit; not below the anchor's.
            adapter: the commit's adapter, float32[d].
            merged: sequence numbers of own deltas that the commit merged.
            returned: those that came too late; their values and windows go into a later delta.
            dropped: those that the controller refused; they are lost.

        Raises:
            ProtocolError: the commit is not newer, or a delta that is not pending is named.
        """
        if commit < self.commit:
            raise ProtocolError(f"commit {commit} is older than commit {self.commit}, which is the anchor")
        if adapter.shape != self.anchor.shape:
            raise ProtocolError(
                f"commit {commit} has {adapter.size} coordinates, the adapter has {self.anchor.size}"
            )
        decided = (*merged, *returned, *dropped)
        unknown = [seq for seq in decided if seq not in self.pending]
        if unknown or len(set(decided)) != len(decided):
            raise ProtocolError(
                f"commit {commit} decides deltas {sorted(decided)}; pending are {sorted(self.pending)}"
            )
        for seq in sorted(returned):
            delta = self.pending[seq]
            for part in self._parts():
                self.remainder[part] += delta[part]
        back = [window for seq in returned for window in self.pending[seq].windows]
        self.windows = tuple(sorted((*back, *self.windows), key=lambda window: window.window))
        for seq in decided:
            del self.pending[seq]
        self.anchor = adapter
        self.commit = commit

    def facts(self) -> StoredLedger:
        """What is stored of the state beside its anchor; good until the next step."""
        return StoredLedger(
            commit=self.commit,
            next_seq=self.next_seq,
            remainder=self.remainder,
            windows=[_fields(window) for window in self.windows],
            pending=[
                # It is written as the vector that it stands for, and computed only then.
                (seq, cast(F64, delta), [_fields(one) for one in delta.windows])
                for seq, delta in sorted(self.pending.items())
            ],
        )

    @classmethod
    def of(cls, anchor: F32, stored: StoredLedger) -> Ledger:
        """The ledger of an anchor and those facts.

        Raises:
            ValueError: a vector has another length than the anchor, or a number of a summary is out of its range.
            CodecError: a field of a summary has another type.
        """

        def values(found: F64) -> F64:
            if found.size != anchor.size:
                raise ValueError(f"a vector of the ledger has {found.size} numbers, its anchor {anchor.size}")
            return found

        return cls(
            anchor=anchor,
            commit=stored.commit,
            next_seq=stored.next_seq,
            remainder=values(stored.remainder),
            windows=_summaries(stored.windows),
            pending={
                seq: PendingDelta(values(value), 0, _summaries(windows))
                for seq, value, windows in stored.pending
            },
        )


def _fields(summary: WindowSummary) -> Summary:
    return summary.written()


def _summaries(stored: list[Summary]) -> tuple[WindowSummary, ...]:
    for fields in stored:
        for name, value in fields.items():
            if isinstance(value, tuple) is not (name in WindowSummary.left_out):
                raise CodecError(f"no StoredLedger: `{name}` of a window's summary has another type")
    return tuple(WindowSummary.model_validate(fields) for fields in stored)
