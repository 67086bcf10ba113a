"""A controller's snapshot. Its bytes stand behind a mark of their version and their SHA-256."""

from __future__ import annotations

import hashlib

import numpy as np

from echelon.errors import StateError
from echelon.laws import snapshot
from echelon.laws.delta_form import DeltaForm
from echelon.laws.snapshot import SnapshotList, SnapshotMap
from echelon.messages.adapter import F32
from echelon.messages.exchange import Delta, Pace
from echelon.rounds.controller.budget import EvaluationSums
from echelon.rounds.controller.deltas import WaitingDelta

DIGEST_BYTES = 32
_MARK = b"echelon controller v3\x00"


class StoredNamedPace(SnapshotMap, frozen=True, kw_only=True):
    """The pace of a commit: H local steps, R windows for each delta, μ in millionths."""

    steps: int
    windows: int
    mu_ppm: int

    @classmethod
    def of(cls, pace: Pace) -> StoredNamedPace:
        """The numbers of a pace."""
        return cls(steps=pace.steps, windows=pace.windows, mu_ppm=pace.mu_ppm)

    def pace(self) -> Pace:
        """The pace again.

        Raises:
            ValueError: a number is out of its range.
        """
        return Pace(steps=self.steps, windows=self.windows, mu_ppm=self.mu_ppm)


class StoredDelta(SnapshotList, frozen=True, kw_only=True):
    """A delta that waits for a commit: its manifest, its payload, and where its manifest stands in its topic."""

    manifest: bytes
    payload: bytes
    offset: int

    @classmethod
    def of(cls, waiting: WaitingDelta) -> StoredDelta:
        """The bytes of a delta."""
        return cls(manifest=waiting.delta.encode(), payload=waiting.payload, offset=waiting.offset)

    def waiting(self, form: DeltaForm) -> WaitingDelta:
        """The delta again.

        Args:
            form: of the run's deltas.

        Raises:
            ProtocolError: the manifest or the payload cannot be read.
        """
        delta = Delta.decode(self.manifest)
        values = form.integers(self.payload, delta.exponent)
        return WaitingDelta(delta, self.payload, values, self.offset)


class StoredEvaluation(SnapshotList, frozen=True, kw_only=True):
    """What each boundary measured of a commit, as "loss/tokens".

    Sums of what boundaries claim may pass 64 bits: decimal strings have no such edge.
    """

    commit: int
    sums: list[str]


class ControllerSnapshot(SnapshotList, frozen=True, kw_only=True):
    """What a controller stores.

    Attributes:
        terms: SHA-256 of the run manifest.
        newest: number of the newest commit.
        tokens: tokens that were trained on up to it.
        pace: what it announced.
        intervals: R·H that each commit announced, by commit.
        adapter: float32[d], of the newest commit.
        outer: state of the outer step.
        controller: state of the pace controller.
        waiting: deltas that wait, ascending by boundary and seq.
        known: of each boundary, the SHA-256 of its deltas' manifests, joined.
        windows: of each boundary, the numbers of windows that may not come again: int64, little-endian, ascending.
        seen: of each boundary, how many manifests of `global` its newest delta had read.
        evaluations: ascending by commit.
    """

    terms: bytes
    newest: int
    tokens: int
    pace: StoredNamedPace
    intervals: list[tuple[int, int]]
    adapter: F32
    outer: bytes
    controller: bytes
    waiting: list[StoredDelta]
    known: list[bytes]
    windows: list[bytes]
    seen: list[int]
    evaluations: list[StoredEvaluation]


def sealed(held: ControllerSnapshot) -> list[bytes | memoryview]:
    """The bytes of a snapshot in parts, with the mark and their SHA-256 in front; vectors are views."""
    parts = snapshot.encode_parts(held)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return [_MARK + digest.digest(), *parts]


def held_in(data: bytes) -> ControllerSnapshot:
    """The snapshot that `sealed` gave these bytes in parts.

    Raises:
        StateError: the mark or the SHA-256 is another.
        CodecError: a field is missing, or too many, or has another type.
    """
    head = len(_MARK) + DIGEST_BYTES
    body = data[head:]
    if data[:head] != _MARK + hashlib.sha256(body).digest():
        raise StateError("the controller's state is damaged: remove it and let it be rebuilt from the topics")
    return snapshot.decode(body, ControllerSnapshot)


def evaluations_to_store(evaluations: EvaluationSums) -> list[StoredEvaluation]:
    """The sums of every commit, ascending."""
    return [
        StoredEvaluation(commit=commit, sums=[f"{loss}/{tokens}" for loss, tokens in sums])
        for commit, sums in sorted(evaluations.sums.items())
    ]


def evaluated(stored: StoredEvaluation) -> list[tuple[int, int]]:
    """Σ loss and Σ tokens of each boundary.

    Raises:
        ValueError: a text is no pair of numbers.
    """
    pairs = (text.split("/") for text in stored.sums)
    return [(int(loss), int(tokens)) for loss, tokens in pairs]


def numbers_to_store(numbers: set[int]) -> bytes:
    """Numbers as int64, little-endian, ascending."""
    return np.array(sorted(numbers), "<i8").tobytes()


def numbers_of(data: bytes) -> set[int]:
    """Numbers that were stored as int64.

    Raises:
        ValueError: the bytes are no whole numbers.
    """
    return set(np.frombuffer(data, "<i8").tolist())


def digests_of(joined: bytes) -> list[bytes]:
    """Digests that were joined."""
    return [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
