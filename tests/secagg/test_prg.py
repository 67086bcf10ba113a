from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from echelon.errors import ProtocolError
from echelon.secagg.prg import BATCH, CHUNK_BYTES, Masker, Spread, keystream


@pytest.mark.parametrize("words", [0, 1, 3, 4, CHUNK_BYTES // 4 - 1, CHUNK_BYTES // 4, CHUNK_BYTES // 2 + 5])
def test_a_mask_is_the_aes_ctr_keystream(words: int) -> None:
    key = bytes(range(16))
    raw = Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor().update(bytes(4 * words))
    assert keystream(key, words).astype("<u4").tobytes() == raw


def test_the_keystream_is_that_of_fips_197() -> None:
    """The first block is AES-128 of the zero block; under the zero key that is 66e94bd4..., a standard vector."""
    assert keystream(bytes(16), 4).astype("<u4").tobytes().hex() == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_a_mask_added_and_taken_off_leaves_nothing() -> None:
    vector = np.arange(300_000, dtype=np.uint32)
    masker = Masker()
    masker.add(vector, [(b"k" * 16, 1), (b"l" * 16, -1)])
    both = np.arange(300_000, dtype=np.uint32) + keystream(b"k" * 16, 300_000) - keystream(b"l" * 16, 300_000)
    assert np.array_equal(vector, both)
    masker.add(vector, [(b"l" * 16, 1)])
    masker.add(vector, [(b"k" * 16, -1)])
    assert np.array_equal(vector, np.arange(300_000))


@pytest.mark.parametrize("dtype", [np.uint32, np.uint16])
@pytest.mark.parametrize("size", [0, 5, CHUNK_BYTES, 3 * CHUNK_BYTES + 7])
def test_a_vector_masked_in_parts_is_the_one_masked_in_one(
    dtype: type[np.unsignedinteger], size: int
) -> None:
    masks = [(bytes([number]) * 16, 1 - 2 * (number % 2)) for number in range(5)]
    whole = np.arange(size).astype(dtype)
    Masker().add(whole, masks)
    ranges: list[slice] = []

    def backwards(work: Callable[[slice], None], given: Sequence[slice]) -> None:
        ranges.extend(given)
        for one in reversed(given):
            work(one)

    for parts in (1, 2, 3, 64):
        vector = np.arange(size).astype(dtype)
        Masker(Spread(parts, backwards)).add(vector, masks)
        assert np.array_equal(vector, whole)
        assert len(ranges) <= parts, "at most so many are worked on at a time"
        assert sum(one.stop - one.start for one in ranges) == size
        ranges.clear()


def test_masks_need_proper_arguments() -> None:
    vector = np.zeros(4, np.uint32)
    for key, sign in ((b"k" * 15, 1), (b"k" * 32, 1), (b"k" * 16, 0)):
        with pytest.raises(ProtocolError):
            Masker().add(vector, [(key, sign)])
    for wrong in (np.zeros(4, np.int32), np.zeros((2, 2), np.uint32), np.zeros(8, np.uint32)[::2]):
        with pytest.raises(ProtocolError):
            Masker().add(wrong, [(b"k" * 16, 1)])


def test_more_masks_than_ciphers_are_open_at_a_time() -> None:
    masks = [(i.to_bytes(16, "big"), 1) for i in range(BATCH + 3)]
    vector = np.zeros(5, np.uint32)
    Masker().add(vector, masks)
    assert np.array_equal(vector, sum(keystream(key, 5) for key, _ in masks))
