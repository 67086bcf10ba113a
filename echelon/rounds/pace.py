"""The pace controller's seat: what answers H (local steps), R (windows per delta) and μ for what comes next.

A controller is a value. It sees only what a commit merged and the integers that the commit itself records, so
a replay asks the same questions and gets the same answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from echelon.errors import CodecError
from echelon.messages.exchange import Delta, Pace
from echelon.messages.wire import pack, plain
from echelon.rounds.delta_codec import Integers


@dataclass(frozen=True, slots=True)
class MergedDelta:
    """One delta of a commit: its manifest, its integers (int16[d] or int32[d]), τ in commits, its weight."""

    delta: Delta
    values: Integers
    staleness: int
    weight: int


@dataclass(frozen=True, slots=True)
class PaceInputs:
    """What a decision rests on: the commit's number, its deltas by (boundary, seq), its measured integers."""

    commit: int
    merged: Sequence[MergedDelta]
    measured: tuple[int, ...]


class PaceController(Protocol):
    """Decides the pace; an implementation is immutable and deterministic."""

    def observe(self, inputs: PaceInputs) -> tuple[Self, Pace]:
        """The controller after this commit, and the pace that the commit announces."""

    def encode(self) -> bytes:
        """The whole state, canonical."""

    def decode(self, data: bytes) -> Self:
        """A controller with the same terms and the state that `encode` wrote.

        Raises:
            CodecError: not such a state.
        """

    def digest(self) -> bytes:
        """SHA-256 of `encode()`, 32 bytes."""


@dataclass(frozen=True, slots=True)
class FixedPace:
    """Always the pace of the run manifest."""

    pace: Pace

    def observe(self, inputs: PaceInputs) -> tuple[FixedPace, Pace]:
        """No change, whatever was merged."""
        return self, self.pace

    def encode(self) -> bytes:
        """The pace."""
        return b"echelon fixed pace v1\x00" + pack(plain(self.pace))

    def decode(self, data: bytes) -> FixedPace:
        """The same controller; there is no state to take over."""
        if data != self.encode():
            raise CodecError("the stored pace is not the run manifest's: the state belongs to another run")
        return self

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()
