"""Masks: AES-128-CTR keystreams added to, or taken from, a vector mod 2**32.

Keystream is written into one reused buffer and added from there, so masks cost no memory of the vector's
size. A piece of the vector gets all its masks before the next piece, so that piece and buffer stay in a
core's cache: the additions then cost about a third of the cipher's time instead of more than half.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from echelon.errors import ProtocolError

U32 = NDArray[np.uint32]

CHUNK_BYTES = 1 << 19
"""Piece of a vector that is worked on at a time; from 1 << 17 on `bench/secagg.py` sees little difference."""
BATCH = 256
"""Ciphers that are open at a time."""
_WORDS = CHUNK_BYTES // 4


class Masker:
    """Adds masks; holds twice `CHUNK_BYTES` of scratch memory."""

    def __init__(self) -> None:
        self._zeros = memoryview(bytes(CHUNK_BYTES))
        # update_into asks for room for one block less a byte beyond what it writes.
        self._buffer = bytearray(CHUNK_BYTES + 16)
        self._words = np.frombuffer(self._buffer, "<u4", count=_WORDS)

    def add(self, total: U32, masks: Iterable[tuple[bytes, int]]) -> None:
        """total ← total + Σ sign · keystream(key) mod 2**32, in place.

        Args:
            total: uint32[d], contiguous.
            masks: (key, sign): 16 bytes that serve one mask in one window, as the counter starts at 0; +1 or
            -1.

        Raises:
            ProtocolError: another type of vector, key or sign; `total` may hold a part of the masks then.
        """
        check_ring(total)
        left = iter(masks)
        while batch := [_cipher(key, sign) for key, sign in islice(left, BATCH)]:
            for start in range(0, total.size, _WORDS):
                part = total[start : start + _WORDS]
                zeros, words = self._zeros[: 4 * part.size], self._words[: part.size]
                for stream, operate in batch:
                    stream.update_into(zeros, self._buffer)
                    operate(part, words, out=part)


def _cipher(key: bytes, sign: int) -> tuple[CipherContext, np.ufunc]:
    if len(key) != 16 or sign not in (1, -1):
        raise ProtocolError(f"a mask needs a key of 16 bytes and a sign, not {len(key)} bytes and {sign}")
    stream = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()
    return stream, np.add if sign > 0 else np.subtract


def keystream(key: bytes, words: int) -> U32:
    """The first `words` words of the mask of a 16-byte key, uint32[words]."""
    total = np.zeros(words, np.uint32)
    Masker().add(total, [(key, 1)])
    return total


def keystream_parts(key: bytes, size: int) -> Iterator[U32]:
    """The words of the mask of a 16-byte key without end, uint32[size] at a time; each array is good until the next."""
    stream, _ = _cipher(key, 1)
    zeros, buffer = bytes(4 * size), bytearray(4 * size + 16)
    words = np.frombuffer(buffer, "<u4", count=size)
    while True:
        stream.update_into(zeros, buffer)
        yield words


def check_ring(vector: U32, length: int | None = None) -> None:
    """Raise `ProtocolError` unless `vector` is uint32[length] (any length if None) and contiguous."""
    wrong = vector.dtype != np.uint32 or vector.ndim != 1 or not vector.flags.c_contiguous
    if wrong or (length is not None and vector.size != length):
        wanted = "d" if length is None else length
        raise ProtocolError(f"expected a contiguous uint32[{wanted}], got {vector.dtype}{list(vector.shape)}")
