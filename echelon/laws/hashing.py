"""SHA-256 whose computing may go on elsewhere while its caller does something else: what is asked of whoever does that.

`hashlib.sha256` is a `Sha256`, which does everything in this thread; it is taken where none is given. Which one it is
changes no digest.
"""

from __future__ import annotations

from typing import Protocol


class Digest(Protocol):
    """One SHA-256 that is being computed, as `hashlib` has them."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Take more bytes. They must stay as they are until `digest` was asked for."""

    def digest(self) -> bytes:
        """SHA-256 of all of them, 32 bytes. May be asked for again.

        Raises:
            Exception: whatever the computing of it raised, wherever that was.
        """


class Sha256(Protocol):
    """Begins digests."""

    def __call__(self) -> Digest:
        """Begin the digest of no bytes so far."""
