"""What a commit says that follows from its inputs, and the error of a commit that says something else."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.errors import ProtocolError
from echelon.messages.adapter import F32
from echelon.messages.exchange import Commit, Merged, Pace
from echelon.outer.base import EncodableState
from echelon.pace.base import PaceController


class CommitMismatch(ProtocolError):
    """A commit says something else than its inputs give; `field` names the first such field."""

    def __init__(self, commit: int, field: str, written: object, derived: object) -> None:
        super().__init__(
            f"commit {commit}: {field} is {_short(written)}, derived from its inputs it is {_short(derived)}"
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


@dataclass(frozen=True, slots=True)
class DerivedCommit:
    """A draft with what becomes the state once its commit is applied.

    Attributes:
        draft: what the commit says.
        keys: (boundary, seq) of the deltas that it takes, ascending.
        outer: state of the outer step after it.
        pace: the pace controller after it.
    """

    draft: CommitDraft
    keys: tuple[tuple[int, int], ...]
    outer: EncodableState
    pace: PaceController


def check_commit(commit: Commit, draft: CommitDraft) -> None:
    """Compare a commit with the draft that its inputs give.

    Raises:
        CommitMismatch: a field differs; the error names the first such field.
    """
    for field, written, expected in (
        ("merged", commit.merged, draft.merged),
        ("pace", commit.pace, draft.pace),
        ("tokens", commit.tokens, draft.tokens),
        ("adapter_sha256", commit.adapter_sha256, draft.adapter_sha256),
        ("state_sha256", commit.state_sha256, draft.state_sha256),
        ("payload.length", commit.payload.length, 4 * draft.adapter.size),
        ("payload.sha256", commit.payload.sha256, draft.adapter_sha256),
    ):
        if written != expected:
            raise CommitMismatch(commit.commit, field, written, expected)


def _short(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= 160 else f"{text[:157]}..."
