"""A payload whose chunks stand on a topic so far, and digests that were begun before its chunks were read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO

from echelon.audit.records import CHUNK_BYTES, LogRecord, begin_chunk
from echelon.laws.hashing import Digest, Sha256

_MOST_BEGUN = 2
"""Payloads of one topic whose digests are begun at a time; the oldest is given up first."""


@dataclass(slots=True)
class BegunPayload:
    """The digest of a payload's first `count` chunks, begun before they were read."""

    digest: Digest
    count: int = 0


@dataclass(frozen=True, slots=True)
class BegunChunk:
    """What was begun for one chunk record: its own digest; and its payload's, in which it is the chunk `place`."""

    digest: Digest
    payload: BegunPayload | None
    place: int


class BegunDigests:
    """Begins the digests of a topic's chunks and payloads as its records come, before anything of them is checked."""

    def __init__(self, sha256: Sha256) -> None:
        self._sha256 = sha256
        self._payloads: dict[bytes, BegunPayload] = {}

    def begin(self, record: LogRecord) -> BegunChunk | None:
        """Begin what the next record needs; None: it does not have the form of a chunk."""
        digest = begin_chunk(record, self._sha256)
        if digest is None:
            return None
        transfer, place = record.headers[1][1], int.from_bytes(record.headers[2][1], "big")
        if place == 0:
            self._payloads.pop(transfer, None)
            self._payloads[transfer] = BegunPayload(self._sha256())
            if len(self._payloads) > _MOST_BEGUN:
                del self._payloads[next(iter(self._payloads))]
        payload = self._payloads.get(transfer)
        if payload is None or payload.count != place:
            return BegunChunk(digest, None, place)
        payload.digest.update(record.value)
        payload.count += 1
        return BegunChunk(digest, payload, place)


@dataclass(slots=True)
class OpenTransfer:
    """The chunks of a payload that were read, in order, one behind the other.

    Attributes:
        length: bytes of the whole payload, as its chunks say.
        total: how many chunks it has.
        first: offset of the first one.
        count: how many chunks were read.
        size: bytes of those.
        begun: the digest that was begun of these very chunks; None: there is none.
        hashed: the digest of the chunks, in place of which they are not kept; None: they are kept.
    """

    length: int
    total: int
    first: int
    count: int = 0
    size: int = 0
    begun: BegunPayload | None = None
    hashed: Digest | None = None
    _body: BytesIO = field(default_factory=BytesIO)
    """What was read; grows as chunks come, whatever length they say, and becomes the payload without a copy."""

    @classmethod
    def of(cls, parts: Iterable[bytes], *, length: int, total: int, first: int) -> OpenTransfer:
        """A transfer of which these chunks were read.

        Args:
            parts: the chunks, in order.
            length: bytes of the whole payload.
            total: how many chunks it has.
            first: offset of the first one.
        """
        transfer = cls(length, total, first)
        for part in parts:
            transfer.add(part, None)
        return transfer

    def add(self, part: bytes, begun: BegunChunk | None) -> None:
        """Take the next chunk, and what was begun for its record."""
        payload = begun.payload if begun is not None and begun.place == self.count else None
        if not self.count:
            self.begun = payload
        elif payload is not self.begun:
            self.begun = None
        if self.hashed is None:
            self._body.write(part)
        else:
            self.hashed.update(part)
        self.count += 1
        self.size += len(part)

    @property
    def parts(self) -> list[bytes]:
        """The chunks so far, each as a copy."""
        with self._body.getbuffer() as body:
            return [bytes(body[at * CHUNK_BYTES : (at + 1) * CHUNK_BYTES]) for at in range(self.count)]

    def digest(self) -> Digest | None:
        """The digest that was begun of all chunks so far, and of nothing else; None: there is none."""
        return self.begun.digest if self.begun is not None and self.begun.count == self.count else None

    def sha256(self) -> bytes:
        """SHA-256 of the chunks so far, 32 bytes."""
        digest = self.hashed or self.digest()
        if digest is None:
            with self._body.getbuffer() as body:
                digest = hashlib.sha256(body)
        return digest.digest()

    def payload(self) -> bytes | None:
        """The chunks so far, as one; None if they are not kept."""
        return None if self.hashed is not None else self._body.getvalue()
