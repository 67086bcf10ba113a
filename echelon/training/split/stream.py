"""Keys from a shared secret, and the pseudorandom draws that device and edge both make from a key.

`echelon.secagg.prg` has the same stream for masks; imports go down only, so training draws its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from echelon.errors import ProtocolError

KEY_BYTES = 16


def derive(secret: bytes, *label: str | int) -> bytes:
    """A key of 16 bytes for one purpose: HKDF-SHA256 (RFC 5869) of a secret of at least 16 bytes.

    Parts of the label are told apart, so ("a", "bc") and ("ab", "c") give other keys. Raises `ProtocolError` for a
    short secret.
    """
    if len(secret) < KEY_BYTES:
        raise ProtocolError(f"a shared secret of {len(secret)} bytes is too short: at least {KEY_BYTES}")
    info = b"echelon.split.v1\0" + b"\0".join(repr(part).encode() for part in label)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def words(key: bytes, count: int) -> npt.NDArray[np.uint32]:
    """The first `count` words of the AES-128-CTR keystream of a 16-byte key, uint32[count]."""
    if len(key) != KEY_BYTES:
        raise ProtocolError(f"a stream needs a key of {KEY_BYTES} bytes, not {len(key)}")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(stream.update(bytes(4 * count)), dtype="<u4").astype(np.uint32)


def gaussians(key: bytes, count: int) -> npt.NDArray[np.float64]:
    """`count` standard normal draws by Box and Muller's transform, float64[count]."""
    half = -(-count // 2)
    uniform = (words(key, 2 * half).astype(np.float64) + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]
