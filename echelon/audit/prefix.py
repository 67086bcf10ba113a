"""The running digest of a topic: what a manifest's `prefix` says about everything that stands before it.

    h_0 = SHA-256(tag || topic),   h_{i+1} = SHA-256(tag || h_i || record_hash_i)

over distinct records in order of first appearance. At-least-once delivery may repeat a record byte for byte;
a repeat changes nothing. Void transfers count like every other record, so nothing can be slipped in between
manifests.
"""

from __future__ import annotations

import hashlib

from echelon.audit.records import CrossingChunk, LogRecord, is_chunk, read_chunk, record_hash
from echelon.errors import CodecError
from echelon.messages.wire import Refused

_TAG = b"echelon prefix v1\x00"


def record_digest(record: LogRecord) -> bytes:
    """The hash, 32 bytes, by which a record counts in the chain of its topic."""
    chunk: CrossingChunk | None = None
    if is_chunk(record):
        try:
            chunk = read_chunk(record)
        except Refused:
            chunk = None  # damaged: it still counts, as the bytes that it is
    return record_hash(record, chunk)


class PrefixChain:
    """The chain of one topic. Memory: 32 bytes for each distinct record."""

    def __init__(self, topic: str) -> None:
        self.value = hashlib.sha256(_TAG + topic.encode("utf-8", "surrogatepass")).digest()
        """Digest of everything so far; what the next manifest must state."""
        self._seen: dict[bytes, None] = {}

    def __len__(self) -> int:
        return len(self._seen)

    def append(self, record: LogRecord) -> bool:
        """Take the next record; False if it repeats an earlier one byte for byte."""
        return self.append_hash(record_digest(record))

    @property
    def newest(self) -> bytes:
        """The `record_digest` of the record that was appended last, 32 bytes; none: no bytes."""
        return next(reversed(self._seen), b"")

    def seen(self, record_digest: bytes) -> bool:
        """Whether a record with this `record_hash` was appended before."""
        return record_digest in self._seen

    def append_hash(self, record_digest: bytes) -> bool:
        """`append` for a record whose `record_hash` is known."""
        if record_digest in self._seen:
            return False
        self._seen[record_digest] = None
        self.value = hashlib.sha256(_TAG + self.value + record_digest).digest()
        return True

    def encode(self) -> bytes:
        """The value, then the seen hashes in order of appearance."""
        return self.value + b"".join(self._seen)

    @classmethod
    def decode(cls, topic: str, data: bytes) -> PrefixChain:
        """Read what `encode` wrote.

        Raises:
            CodecError: a length that cannot be.
        """
        if len(data) < 32 or len(data) % 32:
            raise CodecError(f"{len(data)} bytes are no state of a prefix chain")
        chain = cls(topic)
        chain.value = data[:32]
        chain._seen = dict.fromkeys(data[at : at + 32] for at in range(32, len(data), 32))
        return chain
