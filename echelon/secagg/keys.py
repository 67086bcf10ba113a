"""Every key and every signed statement of secure aggregation, each with a domain of its own.

Keys are HKDF-SHA256 (RFC 5869), salt empty, info = domain, purpose, binding. A derived key serves one purpose
in one window between one (ordered) pair, so a fixed nonce and counter 0 are used once each.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from echelon.messages.wire import pack

DOMAIN = b"echelon secure aggregation v2\x00"
_NONCE = bytes(12)


def derive(secret: bytes, purpose: bytes, binding: bytes, size: int) -> bytes:
    """HKDF-SHA256 of `secret` to `size` bytes for one purpose, bound to `binding`.

    Args:
        secret: input keying material.
        purpose: what the key is for; keys of two purposes are independent.
        binding: the window and the names that the key is for.
        size: bytes wanted.
    """
    return HKDF(SHA256(), size, None, DOMAIN + pack([purpose, binding])).derive(secret)


def statement(purpose: str, *parts: object) -> bytes:
    """The bytes that are signed or hashed for one purpose; parts are plain values of msgpack."""
    return DOMAIN + pack([purpose, *parts])


class AgreementKey:
    """An X25519 key pair (RFC 7748) from 32 private bytes; `public` has 32 bytes too."""

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def agree(self, public: bytes) -> bytes:
        """The secret shared with the owner of a public key, 32 bytes.

        Raises:
            ValueError: that key is a point of low order, so the secret would be zero.
        """
        return self._key.exchange(X25519PublicKey.from_public_bytes(public))


def usable(public: bytes) -> bool:
    """Whether an X25519 public key leads to a secret at all (it is not of low order)."""
    try:
        AgreementKey(bytes(31) + b"\x40").agree(public)
    except ValueError:
        return False
    return True


def pair_mask_key(shared: bytes, bound: bytes, one: str, other: str) -> bytes:
    """The 16-byte AES key of the mask of two devices, from the secret their mask keys agree on; in either order.

    Args:
        shared: the secret, 32 bytes.
        bound: digest of context and U1, 32 bytes.
        one: name of one of them.
        other: name of the other.
    """
    low, high = sorted((one, other))
    return derive(shared, b"pairwise mask", pack([bound, low, high]), 16)


def mask_sign(device: str, peer: str) -> int:
    """The sign with which `device` adds the mask that it shares with `peer`: the two cancel in the sum."""
    return 1 if device < peer else -1


def self_mask_key(seed: bytes, bound: bytes, device: str) -> bytes:
    """The 16-byte AES key of a device's own mask.

    Args:
        seed: the device's self-mask seed, 32 bytes.
        bound: digest of context and U1, 32 bytes.
        device: its name.
    """
    return derive(seed, b"self mask", pack([bound, device]), 16)


def commit_seed(seed: bytes, context: bytes, device: str) -> bytes:
    """SHA-256 commitment to a self-mask seed; the seed's 256 random bits hide it.

    Args:
        seed: 32 random bytes.
        context: digest of the window's context, 32 bytes.
        device: name of who commits.
    """
    return hashlib.sha256(statement("self mask seed", context, device, seed)).digest()


def seal_shares(shared: bytes, bound: bytes, sender: str, recipient: str, shares: bytes) -> bytes:
    """AES-128-GCM of two shares, under a key for this sender, recipient and window alone.

    `shared` is the secret that their cipher keys agree on.

    Args:
        shared: that secret, 32 bytes.
        bound: digest of context and U1, 32 bytes.
        sender: name of who deals the shares.
        recipient: name of who keeps them.
        shares: a share of the mask key, and behind it one of the self-mask seed.
    """
    return AESGCM(_sealing_key(shared, bound, sender, recipient)).encrypt(_NONCE, shares, None)


def open_shares(shared: bytes, bound: bytes, sender: str, recipient: str, ciphertext: bytes) -> bytes | None:
    """The two shares, or None if this sender did not seal them for this recipient in this window.

    Args:
        shared: the secret that the two cipher keys agree on, 32 bytes.
        bound: digest of context and U1, 32 bytes.
        sender: name of who dealt the shares.
        recipient: name of who keeps them.
        ciphertext: as `seal_shares` gave it, tag included.
    """
    try:
        return AESGCM(_sealing_key(shared, bound, sender, recipient)).decrypt(_NONCE, ciphertext, None)
    except InvalidTag:
        return None


def _sealing_key(shared: bytes, bound: bytes, sender: str, recipient: str) -> bytes:
    return derive(shared, b"share sealing", pack([bound, sender, recipient]), 16)
