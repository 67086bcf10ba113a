"""Masks: AES-128-CTR keystreams added to, or taken from, a vector mod 2**32, or mod 2**16.

Keystream is written into one reused buffer and added from there, so masks cost no memory of the vector's
size. A piece of the vector gets all its masks before the next piece, so that piece and buffer stay in a
core's cache: the additions then cost about a third of the cipher's time instead of more than half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from echelon.errors import ProtocolError

U32 = NDArray[np.uint32]
RingVector = NDArray[np.uint32] | NDArray[np.uint16]
"""A vector of the ring of 32 bits, or of that of 16."""

CHUNK_BYTES = 1 << 17
"""Piece of a vector that is worked on at a time: with the keystream and the zeros that it is made from, a core's cache
of 512 KiB holds it. Shorter pieces cost more calls than they save."""
BLOCK_BYTES = 16
"""Of the cipher."""
BATCH = 256
"""Ciphers that are open at a time."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How the parts of a vector are worked on: one after the other, or by threads that the caller has.

    Attributes:
        parts: into how many parts a vector is cut, each of about the same length.
        run: calls a function with each part's range, and returns when all of them are done.
    """

    parts: int
    run: Callable[[Callable[[slice], None], Sequence[slice]], None]


def _in_turn(work: Callable[[slice], None], ranges: Sequence[slice]) -> None:
    for one in ranges:
        work(one)


ALONE = Spread(1, _in_turn)
"""One part, in the caller's thread."""


class Masker:
    """Adds masks; a part of a vector that is worked on takes twice `CHUNK_BYTES` of scratch memory.

    Args:
        spread: into how many parts a vector is cut, and who works on them. Sums are the same for every number.
    """

    def __init__(self, spread: Spread = ALONE) -> None:
        self._spread = spread

    def add(self, total: RingVector, masks: Iterable[tuple[bytes, int]]) -> None:
        """total ← total + Σ sign · keystream(key), in place, on the ring of the vector's type.

        Args:
            total: uint32[d] or uint16[d], contiguous.
            masks: (key, sign): 16 bytes that serve one mask in one window, as the counter starts at 0; +1 or
            -1.

        Raises:
            ProtocolError: another type of vector, key or sign; `total` may hold a part of the masks then.
        """
        check_ring(total)
        ranges = _ranges(total.size, self._spread.parts, CHUNK_BYTES // total.itemsize)
        left = iter(masks)
        while batch := list(islice(left, BATCH)):
            self._spread.run(partial(_add, total, batch), ranges)


def _ranges(size: int, parts: int, piece: int) -> list[slice]:
    """A vector's parts: whole pieces, so that each begins at a block of the cipher; none of them empty."""
    step = piece * max(1, -(-size // (piece * parts)))
    return [slice(start, min(start + step, size)) for start in range(0, size, step)]


def _add(total: RingVector, masks: Sequence[tuple[bytes, int]], where: slice) -> None:
    """Add the masks' keystreams to a part of a vector, in place."""
    part, zeros = total[where], memoryview(bytes(CHUNK_BYTES))
    # update_into asks for room for one block less a byte beyond what it writes.
    buffer = bytearray(CHUNK_BYTES + BLOCK_BYTES)
    piece, skipped = CHUNK_BYTES // total.itemsize, where.start * total.itemsize // BLOCK_BYTES
    words = np.frombuffer(buffer, f"<u{total.itemsize}", count=piece)
    streams = [_cipher(key, sign, skipped) for key, sign in masks]
    for start in range(0, part.size, piece):
        target = part[start : start + piece]
        given, drawn = zeros[: target.nbytes], words[: target.size]
        for stream, operate in streams:
            stream.update_into(given, buffer)
            operate(target, drawn, out=target)


def _cipher(key: bytes, sign: int, skipped: int = 0) -> tuple[CipherContext, np.ufunc]:
    """A keystream behind so many blocks of 16 bytes, and how it is applied."""
    if len(key) != 16 or sign not in (1, -1):
        raise ProtocolError(f"a mask needs a key of 16 bytes and a sign, not {len(key)} bytes and {sign}")
    stream = Cipher(algorithms.AES(key), modes.CTR(skipped.to_bytes(BLOCK_BYTES, "big"))).encryptor()
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


def check_ring(vector: RingVector) -> None:
    """Raise `ProtocolError` unless `vector` is uint32[d] or uint16[d], and contiguous."""
    if vector.dtype not in (np.uint32, np.uint16) or vector.ndim != 1 or not vector.flags.c_contiguous:
        raise ProtocolError(
            f"expected a contiguous uint32[d] or uint16[d], got {vector.dtype}{list(vector.shape)}"
        )


def ring_bytes(vector: RingVector) -> memoryview:
    """The bytes of a ring vector as they travel and are hashed: little-endian; a view where the machine is, too."""
    return vector.astype(vector.dtype.newbyteorder("<"), copy=False).data.cast("B")
