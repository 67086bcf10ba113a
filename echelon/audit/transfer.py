"""A payload whose chunks stand on a topic so far."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from echelon.laws.hashing import Digest


@dataclass(slots=True)
class OpenTransfer:
    """The chunks of a payload that were read, in order.

    Attributes:
        length: bytes of the whole payload, as its chunks say.
        total: how many chunks it has.
        first: offset of the first one.
        digest: of the parts so far, if it is computed while they come; None: it may not be needed.
        parts: the chunks that were read.
        size: bytes of those.
    """

    length: int
    total: int
    first: int
    digest: Digest | None
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, part: bytes) -> None:
        """Take the next chunk."""
        self.parts.append(part)
        self.size += len(part)
        if self.digest is not None:
            self.digest.update(part)

    def sha256(self) -> bytes:
        """SHA-256 of the chunks so far, 32 bytes."""
        digest = self.digest
        if digest is None:
            digest = hashlib.sha256()
            for part in self.parts:
                digest.update(part)
        return digest.digest()

    def payload(self) -> bytes:
        """The chunks so far, as one."""
        return self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
