"""The adapters of relayed commits inside a boundary, held against what the exchange names.

Outside a relayed commit stands without its adapter; inside its gate puts the adapter's chunks in front of it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from echelon.audit.records import CrossingChunk, StoredRecord, read_chunk
from echelon.laws.hashing import Digest
from echelon.messages.exchange import Payload
from echelon.messages.wire import Refused


@dataclass(slots=True)
class _Inside:
    """One adapter as its chunks came: what they are together, and the digest of each."""

    whole: Digest = field(default_factory=hashlib.sha256)
    parts: list[bytes] = field(default_factory=list)


class RelayedInside:
    """Takes the relayed chunks of a boundary's `global`, and says what is wrong with them.

    Args:
        payloads: by number of each relayed commit of the exchange: what its signed record says of its adapter.
    """

    def __init__(self, payloads: dict[int, Payload]) -> None:
        self._payloads = payloads
        self._inside: dict[int, _Inside] = {}
        self._good: set[int] = set()

    def take(self, commit: int, record: StoredRecord) -> str:
        """Take a chunk; a repeat of one that was taken is none.

        Args:
            commit: whose adapter it says that it is of.
            record: without the mark that says so.

        Returns:
            What is wrong with it, in words; empty: nothing.
        """
        payload = self._payloads.get(commit)
        if payload is None:
            return f"a chunk of the adapter of commit {commit}, which is no relayed commit outside"
        try:
            chunk = read_chunk(record)
        except Refused as error:
            return f"no chunk of the adapter of commit {commit}: {error}"
        if (chunk.transfer, chunk.length) != (payload.transfer, payload.length):
            return f"a chunk of another adapter of commit {commit} than the exchange names"
        return self._add(commit, payload, chunk)

    def _add(self, commit: int, payload: Payload, chunk: CrossingChunk) -> str:
        inside = self._inside.setdefault(commit, _Inside())
        digest = hashlib.sha256(chunk.data).digest()
        if chunk.index < len(inside.parts):
            same = inside.parts[chunk.index] == digest
            return (
                "" if same else f"another chunk {chunk.index} of the adapter of commit {commit} than before"
            )
        if chunk.index > len(inside.parts):
            return f"chunk {chunk.index} of the adapter of commit {commit}, where {len(inside.parts)} is due"
        inside.parts.append(digest)
        inside.whole.update(chunk.data)
        if len(inside.parts) < chunk.total:
            return ""
        if inside.whole.digest() != payload.sha256:
            return f"the adapter of commit {commit} inside is not the one that the exchange names"
        self._good.add(commit)
        return ""

    def lacks(self, commit: int) -> bool:
        """Whether a commit is relayed and its whole adapter was not taken."""
        return commit in self._payloads and commit not in self._good
