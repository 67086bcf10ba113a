"""Signatures that were found good once in a simulated run are not computed again.

In a federation of one process every record is verified by each of its readers. Verification is a function of key,
signature and message alone, so its result is kept; what is not known is verified as ever, and a bad signature is
never kept. Only simulations enter `remembering`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from echelon.messages import envelope


class _Key:
    """A public key as `verify_signature` uses it."""

    def __init__(self, public: bytes, good: set[bytes]) -> None:
        self._public, self._good = public, good

    def verify(self, signature: bytes, message: bytes) -> None:
        """As Ed25519PublicKey.verify."""
        known = hashlib.sha256(self._public + signature + message).digest()
        if known not in self._good:
            Ed25519PublicKey.from_public_bytes(self._public).verify(signature, message)
            self._good.add(known)


class _Keys:
    def __init__(self) -> None:
        self._good: set[bytes] = set()

    def from_public_bytes(self, public: bytes) -> _Key:
        """As Ed25519PublicKey.from_public_bytes; a bad key is refused when it is used."""
        return _Key(public, self._good)


@contextmanager
def remembering() -> Iterator[None]:
    """Within this block, and in this process, good signatures are verified once each."""
    names = vars(envelope)
    before = names["Ed25519PublicKey"]
    names["Ed25519PublicKey"] = _Keys()  # the one name that is looked up at each call
    try:
        yield
    finally:
        names["Ed25519PublicKey"] = before
