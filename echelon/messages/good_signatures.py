"""Signatures that this process has found good, so that each is computed once, however many of its actors check it.

In a boundary of K devices every device checks the signatures of all others over the same statements. Whether a
signature is good is a function of key, signature and message alone. So a good one is remembered, by a digest of all
three; a bad one is never remembered, and is computed again each time. What is remembered is bounded.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from echelon.messages.envelope import verify_signature

MOST = 1 << 15
"""Signatures that are remembered, 32 bytes each; with one more the oldest is forgotten."""


class GoodSignatures:
    """What was found good, oldest first. Any thread may ask."""

    def __init__(self, most: int = MOST) -> None:
        """Nothing is known yet."""
        self._most = most
        # Its single steps are not divided among threads; where two forget at once, one more is forgotten.
        self._good: OrderedDict[bytes, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._good)

    def verified(self, public: bytes, signature: bytes, message: bytes) -> bool:
        """`verify_signature`, computed only if this was not found good before.

        Args:
            public: an Ed25519 public key, 32 bytes.
            signature: 64 bytes.
            message: the signed bytes.
        """
        if len(public) != 32 or len(signature) != 64:
            return False
        # Two fixed lengths before the message: no other three parts give the same bytes.
        known = hashlib.sha256(public + signature + message).digest()
        if known in self._good:
            return True
        if not verify_signature(public, signature, message):
            return False
        self._good[known] = None
        if len(self._good) > self._most:
            self._good.popitem(last=False)
        return True


_OF_PROCESS = GoodSignatures()


def verify_once(public: bytes, signature: bytes, message: bytes) -> bool:
    """`verify_signature`, shared by all actors of this process.

    Args:
        public: an Ed25519 public key, 32 bytes.
        signature: 64 bytes.
        message: the signed bytes.
    """
    return _OF_PROCESS.verified(public, signature, message)
