"""What a gate learns from `global`, how far it has derived, and the versions that it derives."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.messages.boundary import Adopt, Cohort, Sealing, Version, Void, Window, WindowOpen
from echelon.messages.handshake import Included, KeyList, SharesList, Signatures
from echelon.messages.wire import Message


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


@dataclass(frozen=True, slots=True)
class DerivedSoFar:
    """How far decisions were applied.

    Attributes:
        window: number of the window that is due.
        version: newest version that was named.
        next_seq: of the delta that is sealed next.
    """

    window: int
    version: int
    next_seq: int

    def has(self, message: Message) -> bool:
        """Whether a decision repeats one that was applied."""
        match message:
            case WindowOpen() | Cohort() | Window() | Void():
                return message.window < self.window
            case KeyList() | SharesList() | Included() | Signatures():
                return message.window < self.window
            case Sealing():
                return message.seq < self.next_seq
            case Adopt() | Version():
                return message.version <= self.version
            case _:
                return False
