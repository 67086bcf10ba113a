"""The pace controller's seat: what answers H (local steps), R (windows per delta) and μ for what comes next.

A controller is a value. It sees only what a commit merged and the integers that the commit itself records, so
a replay asks the same questions and gets the same answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import msgpack

from echelon.errors import CodecError
from echelon.laws.delta_codec import Integers
from echelon.laws.timing import CONTROLLER, Spacing, middle
from echelon.messages.exchange import Delta, Pace
from echelon.messages.manifest import PaceKind, RunManifest
from echelon.messages.stored import stored

MEASURED_SPACING = 0
"""Place of the microseconds since the commit before in a commit's measured integers."""


@dataclass(frozen=True, slots=True)
class MergedDelta:
    """One delta of a commit: its manifest, its integers (int16[d] or int32[d]), τ in commits, its weight, and the
    newest commit that its gate had read."""

    delta: Delta
    values: Integers
    staleness: int
    weight: int
    seen_commit: int = 0


@dataclass(frozen=True, slots=True)
class PaceInputs:
    """What a decision rests on.

    Attributes:
        commit: number of the commit, from 1.
        merged: its deltas by (boundary, seq).
        measured: the integers that the commit records; see `MEASURED_SPACING`.
        progress_ppm: share of the budget that is spent with this commit, in millionths.
    """

    commit: int
    merged: Sequence[MergedDelta]
    measured: tuple[int, ...]
    progress_ppm: int = 0

    @property
    def reports(self) -> tuple[Spacing, ...]:
        """What each party states of the time between two commits: the controller of this commit and the one before it,
        a gate of the two newest that it had read. Each may lie."""
        spacings = []
        if len(self.measured) > MEASURED_SPACING and self.measured[MEASURED_SPACING] > 0:
            spacings.append(Spacing(CONTROLLER, self.commit, self.measured[MEASURED_SPACING]))
        spacings += [
            Spacing(item.delta.boundary, item.seen_commit, item.delta.spacing_us)
            for item in self.merged
            if item.delta.spacing_us > 0
        ]
        return tuple(spacings)

    @property
    def spacing_us(self) -> int:
        """Microseconds between commits: the middle of what the parties state with this one; 0: nothing to believe."""
        return middle(list({report.reporter: report.microseconds for report in self.reports}.values()))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a controller saw and did at one commit, for people; part of its state, so that a replay gives it too.

    Coherences and noise in millionths, None where nothing could be measured.

    Attributes:
        phase: what the controller is doing ("fixed", "reference", "probe", …).
        reason: why the pace is what it is.
        devices: coherence among the devices of the merged windows.
        boundaries: coherence among the merged deltas.
        noise: share of sampling noise in the deltas' squared norms.
        floor: steps that hide a sync; 0: not known.
        sync_us: what a sync takes; 0: not known.
    """

    phase: str
    reason: str
    devices: int | None = None
    boundaries: int | None = None
    noise: int | None = None
    floor: int = 0
    sync_us: int = 0

    def plain(self) -> list[object]:
        """Fields in order, for canonical encodings."""
        return [
            self.phase, self.reason, self.devices, self.boundaries, self.noise, self.floor, self.sync_us,
        ]  # fmt: skip


SCHEDULE_START = Decision("schedule", "start")
"""The decision of a pace by schedule before the first commit."""


class PaceController(Protocol):
    """Decides the pace; an implementation is immutable and deterministic."""

    @property
    def decision(self) -> Decision:
        """The newest decision; before the first commit: that there was none."""
        ...

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


class PaceRule(PaceController, Protocol):
    """A pace of this package, which `pace/registry.py` names by its kind."""

    kind: ClassVar[PaceKind]

    @classmethod
    def of(cls, manifest: RunManifest) -> Self:
        """The pace of a run in its initial state, by the manifest's settings."""


def unpacked(data: bytes, magic: bytes, length: int) -> tuple[Any, ...]:
    """Read the fields of a stored controller.

    Args:
        data: what `encode` of a controller wrote.
        magic: the bytes that this controller's state starts with.
        length: how many fields follow them.

    Returns:
        The fields, in the order that `encode` wrote them.

    Raises:
        CodecError: the state belongs to another controller, or it cannot be read.
    """
    try:
        fields = msgpack.unpackb(data[len(magic) :], raw=False, use_list=False)
    except (ValueError, msgpack.UnpackException) as error:
        raise CodecError(f"the stored pace cannot be read: {error}") from error
    if not data.startswith(magic) or not isinstance(fields, tuple) or len(fields) != length:
        raise CodecError("the stored pace is of another controller: the state belongs to another run")
    return fields


class _Stored(Protocol):
    def encode(self) -> bytes: ...


T = TypeVar("T", bound=_Stored)


def checked(state: T, data: bytes) -> T:
    """Return the controller if it encodes to the bytes that it was read from.

    Raises:
        CodecError: the bytes are not in the canonical form.
    """
    with stored("the stored pace", CodecError):
        same = state.encode() == data
    if not same:
        raise CodecError("the stored pace is not in its canonical form")
    return state
