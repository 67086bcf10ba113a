"""What a gate learns from `global`, and the versions that it derives."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """A verified commit of `global` (commit 0 is genesis), as far as this boundary is concerned.

    Attributes:
        commit: its number.
        merged: sequence numbers of this boundary's deltas that it merged.
        adapter_sha256: digest of its adapter, 32 bytes.
    """

    commit: int
    merged: tuple[int, ...]
    adapter_sha256: bytes


@dataclass(frozen=True, slots=True)
class RefusedFacts:
    """A verified refusal of one of this boundary's deltas; `after` is the newest commit that stands before it."""

    stale: bool
    after: int


@dataclass(frozen=True, slots=True)
class DerivedVersion:
    """A version of the boundary adapter that was derived: the digest is of its little-endian float32 bytes."""

    version: int
    commit: int
    sha256: bytes
    window: int
