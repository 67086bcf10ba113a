"""A derived adapter against the bytes that a commit has."""

from __future__ import annotations

import numpy as np

from echelon.audit.derived_adapter import is_encoded

ADAPTER = np.array([0.0, 1.5, -2.25], np.float32)


def test_its_own_bytes_are_its_encoding() -> None:
    assert is_encoded(ADAPTER, ADAPTER.tobytes())
    assert is_encoded(ADAPTER, memoryview(ADAPTER.tobytes()))


def test_a_bit_more_or_less_is_not() -> None:
    data = ADAPTER.tobytes()
    for wrong in (data[:-1], data + b"\0", b"", data[:-4], data[:-1] + bytes([data[-1] ^ 1])):
        assert not is_encoded(ADAPTER, wrong)


def test_two_forms_of_one_number_are_two_encodings() -> None:
    assert not is_encoded(ADAPTER, b"\0\0\0\x80" + ADAPTER.tobytes()[4:]), "minus zero"
    nan = np.array([np.nan], np.float32)
    assert is_encoded(nan, nan.tobytes())
