"""The manifests of `global` as they were written, and what deltas say of them: two logs that hold each other.

A commit states how far it has read each delta log; a delta states how far its gate had read `global`, with the root
over it, and the digest of the commit that it departed from. Whoever writes `global` anew is contradicted by every delta
that was signed after the place where it parts from the true one.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from echelon.errors import CodecError
from echelon.messages.exchange import Commit, Delta, Genesis
from echelon.messages.wire import Message, pack

_Stored = tuple[bytes, tuple[tuple[int, int, bytes], ...], tuple[int, ...]]
"""Roots, 32 bytes each; commits as number, place and SHA-256; the places of commits."""
_MAGIC = b"echelon transcript v1\x00"


class Clash(StrEnum):
    """How a delta contradicts `global`, or itself."""

    BACK = "back"
    """It had read less than the delta before it."""
    BEYOND = "beyond"
    """It had read more manifests than there are."""
    ROOT = "root"
    """What it had read has another root."""
    UNKNOWN_BASE = "unknown-base"
    """No commit of that number is there."""
    UNSEEN_BASE = "unseen-base"
    """It departed from a commit that it had not read."""
    OTHER_BASE = "other-base"
    """The commit of that number is another one."""


@dataclass(frozen=True, slots=True)
class Contradiction:
    """A delta and `global` cannot both be true.

    Attributes:
        clash: how.
        place: index of the manifest of `global` that the delta contradicts; None: one that is not there.
        detail: for people, without the record's place.
    """

    clash: Clash
    place: int | None
    detail: str


class Transcript:
    """Root and digest of every manifest of `global`, in order; 32 bytes for each root, 40 for each commit."""

    def __init__(self) -> None:
        self._roots: list[bytes] = []
        self._commits: dict[int, tuple[int, bytes]] = {}
        """By number (genesis is 0): index of the record, SHA-256 of its envelope."""
        self._places: list[int] = []
        """Indices of the commits, ascending, without genesis."""

    @property
    def size(self) -> int:
        """Manifests so far."""
        return len(self._roots)

    def append(self, message: Message, sha256: bytes, root: bytes) -> None:
        """Take the next manifest.

        Args:
            message: what it says.
            sha256: of its envelope.
            root: RFC 6962 root over all envelopes up to this one.
        """
        if isinstance(message, Genesis):
            self._commits.setdefault(0, (self.size, sha256))
        elif isinstance(message, Commit):
            self._commits.setdefault(message.commit, (self.size, sha256))
            self._places.append(self.size)
        self._roots.append(root)

    def commits(self, size: int) -> int:
        """How many commits stand among the first `size` manifests; so also the number of the newest of them."""
        return bisect_left(self._places, size)

    def base(self, commit: int) -> tuple[int, bytes] | None:
        """Index and SHA-256 of a commit's record (0: genesis); None if it is not there."""
        return self._commits.get(commit)

    def contradiction(self, delta: Delta, before: int) -> Contradiction | None:
        """Hold a delta against the log as far as it is written.

        Args:
            delta: the manifest.
            before: what the delta before it on its log had read; 0 if there is none.
        """
        size, base = delta.seen_size, self.base(delta.base_commit)
        if size < before:
            detail = f"it had read {size} manifests of `global`, and the delta before it {before}"
            return Contradiction(Clash.BACK, None, detail)
        if size > self.size:
            detail = (
                f"its gate had read {size} manifests of `global` (it departed from commit {delta.base_commit}), "
                f"and there are {self.size}"
            )
            return Contradiction(Clash.BEYOND, None, detail)
        if size and self._roots[size - 1] != delta.seen_root:
            detail = f"the first {size} manifests of `global` have another root than its gate had read"
            return Contradiction(Clash.ROOT, size - 1, detail)
        if base is None:
            detail = f"it departed from commit {delta.base_commit}, which is not there"
            return Contradiction(Clash.UNKNOWN_BASE, None, detail)
        place, sha256 = base
        if place >= size:
            detail = (
                f"it departed from commit {delta.base_commit}, which its gate had not read: {size} manifests"
            )
            return Contradiction(Clash.UNSEEN_BASE, place, detail)
        if sha256 != delta.base_sha256:
            detail = (
                f"it departed from a commit {delta.base_commit} with SHA-256 {delta.base_sha256.hex()}; "
                f"the one there has {sha256.hex()}"
            )
            return Contradiction(Clash.OTHER_BASE, place, detail)
        return None

    # ---- storage ---------------------------------------------------------------------------------

    def encode(self) -> bytes:
        """Everything, canonical."""
        commits = [[number, place, sha256] for number, (place, sha256) in sorted(self._commits.items())]
        return _MAGIC + pack([b"".join(self._roots), commits, self._places])

    @classmethod
    def decode(cls, data: bytes) -> Transcript:
        """What `encode` wrote.

        Raises:
            CodecError: something else.
        """
        if not data.startswith(_MAGIC):
            raise CodecError("this is no stored transcript of `global`")
        try:
            roots, commits, places = msgspec.msgpack.decode(data[len(_MAGIC) :], type=_Stored)
        except msgspec.MsgspecError as error:
            raise CodecError(f"the stored transcript cannot be read: {error}") from error
        transcript = cls()
        transcript._roots = [roots[at : at + 32] for at in range(0, len(roots), 32)]
        transcript._commits = {number: (place, sha256) for number, place, sha256 in commits}
        transcript._places = list(places)
        if transcript.encode() != data:
            raise CodecError("the stored transcript is not in its canonical form")
        return transcript
