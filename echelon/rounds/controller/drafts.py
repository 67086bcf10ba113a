"""What a commit says that follows from its inputs, and the error of a commit that says something else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from echelon.errors import ProtocolError
from echelon.messages.exchange import Merged, Pace

F32 = NDArray[np.float32]


class CommitMismatch(ProtocolError):
    """A commit says something else than its inputs give; `field` names the first such field."""

    def __init__(self, commit: int, field: str, found: object, derived: object) -> None:
        super().__init__(
            f"commit {commit}: {field} is {_short(found)}, derived from its inputs it is {_short(derived)}"
        )
        self.commit = commit
        self.field = field


@dataclass(frozen=True, slots=True)
class CommitDraft:
    """The derived part of a commit record, and the adapter (float32[d]) that is its payload."""

    commit: int
    merged: tuple[Merged, ...]
    pace: Pace
    measured: tuple[int, ...]
    tokens: int
    adapter_sha256: bytes
    state_sha256: bytes
    adapter: F32

    def payload(self) -> bytes:
        """The adapter as little-endian float32."""
        return self.adapter.astype("<f4", copy=False).tobytes()


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
