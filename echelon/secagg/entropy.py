"""Where random bytes come from: always an argument, never taken behind the caller's back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from echelon.errors import ConfigError
from echelon.secagg.keys import derive


class Entropy:
    """A source of random bytes.

    Outside tests and the virtual clock it is the operating system's: `Entropy(os.urandom)`. This package
    opens nothing itself, so the caller hands the function in.
    """

    def __init__(self, source: Callable[[int], bytes]) -> None:
        self._source = source

    def token(self, size: int) -> bytes:
        """`size` fresh bytes.

        Raises:
            ConfigError: the source returned another number of bytes.
        """
        token = self._source(size)
        if len(token) != size:
            raise ConfigError(f"the source of entropy gave {len(token)} bytes where {size} were asked for")
        return token

    @classmethod
    def seeded(cls, seed: bytes) -> Self:
        """A reproducible stream (AES-128-CTR under a key from `seed`): for tests and the virtual clock alone."""
        stream = Cipher(
            algorithms.AES(derive(seed, b"seeded entropy", b"", 16)), modes.CTR(bytes(16))
        ).encryptor()
        return cls(lambda size: stream.update(bytes(size)))
