"""Snapshots as typed structs: the same bytes as plain msgpack, and nothing read that does not fit."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.errors import CodecError, StateError
from echelon.laws.snapshot import (
    APART_BYTES,
    PART,
    LazyVector,
    SnapshotList,
    SnapshotMap,
    StoredPace,
    decode,
    encode,
    encode_parts,
    parts_of,
)
from echelon.messages.adapter import F32, F64
from echelon.messages.exchange import Pace
from echelon.messages.stored import stored
from tests.memory import traced


class Part(SnapshotList, frozen=True, kw_only=True):
    number: int
    share: float
    names: tuple[str, ...]


class Whole(SnapshotMap, frozen=True, kw_only=True):
    parts: tuple[Part, ...]
    digests: tuple[tuple[int, bytes], ...]
    vector: F32 | None
    done: bool


INTEGERS = st.integers(-(2**63), 2**64 - 1)
PARTS = st.builds(
    Part,
    number=INTEGERS,
    share=st.floats(allow_nan=False),
    names=st.lists(st.text(max_size=40), max_size=20).map(tuple),
)


@pytest.mark.slow
@given(
    parts=st.lists(PARTS, max_size=20),
    digests=st.lists(st.tuples(INTEGERS, st.binary(max_size=300)), max_size=20),
    vector=st.none() | st.lists(st.floats(width=32, allow_nan=False), max_size=80),
    done=st.booleans(),
)
def test_a_snapshot_is_plain_msgpack_and_reads_back(
    parts: list[Part], digests: list[tuple[int, bytes]], vector: list[float] | None, done: bool
) -> None:
    held = None if vector is None else np.array(vector, np.float32)
    whole = Whole(parts=tuple(parts), digests=tuple(digests), vector=held, done=done)
    data = encode(whole)
    assert data == msgpack.packb(
        {
            "parts": [[part.number, part.share, part.names] for part in parts],
            "digests": digests,
            "vector": None if held is None else held.tobytes(),
            "done": done,
        }
    )
    found = decode(data, Whole)
    assert (found.parts, found.digests, found.done) == (whole.parts, whole.digests, whole.done)
    if held is None:
        assert found.vector is None
    else:
        assert found.vector is not None
        assert found.vector.dtype == np.float32
        np.testing.assert_array_equal(found.vector, held)


GOOD: dict[str, Any] = {
    "parts": [[1, 0.5, ["a"]]],
    "digests": [[1, b"x"]],
    "vector": b"\0\0\0\0",
    "done": False,
}


@pytest.mark.parametrize(
    "changed",
    [
        {"parts": [[1, 0.5]]},
        {"parts": [[1, 0.5, ["a"], 0]]},
        {"parts": [{"number": 1, "share": 0.5, "names": []}]},
        {"parts": [["1", 0.5, []]]},
        {"parts": [[True, 0.5, []]]},
        {"digests": [[1, "x"]]},
        {"digests": [[1, b"x", 2]]},
        {"vector": b"\0\0\0"},
        {"vector": [0.0]},
        {"done": 0},
        {"done": None},
        {"more": 1},
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any]) -> None:
    decode(msgpack.packb(GOOD), Whole)
    with pytest.raises(CodecError):
        decode(msgpack.packb(GOOD | changed), Whole)


@pytest.mark.parametrize("missing", list(GOOD))
def test_a_missing_field_is_refused(missing: str) -> None:
    with pytest.raises(CodecError, match=missing):
        decode(msgpack.packb({name: value for name, value in GOOD.items() if name != missing}), Whole)


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.packb(GOOD) + b"\0", msgpack.packb(GOOD)[:-1]])
def test_bytes_that_are_no_msgpack_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError), stored("the state", CodecError):
        decode(data, Whole)
    with pytest.raises(StateError, match="the state cannot be read"), stored("the state"):
        decode(data, Whole)


def test_numbers_of_numpy_are_plain_floats() -> None:
    assert encode(Part(number=1, share=np.float64(2.5), names=())) == msgpack.packb([1, 2.5, []])


def test_other_types_have_no_place_in_a_snapshot() -> None:
    with pytest.raises(TypeError, match="object"):
        encode(Part(number=1, share=object(), names=()))  # type: ignore[arg-type]


def test_a_pace_comes_back() -> None:
    pace = Pace(steps=20, windows=3, mu_ppm=100)
    assert decode(encode(StoredPace.of(pace)), StoredPace).pace() == pace


class Vectors(SnapshotMap, frozen=True, kw_only=True):
    single: F32 | None
    double: F64
    payload: bytes
    pending: list[tuple[int, F64, str]]


LENGTHS = st.sampled_from([0, 1, 31, 8191, 8192, 16383, 16384, 16385, 20_000])
VECTORS = st.builds(
    Vectors,
    single=st.none() | LENGTHS.map(lambda size: np.arange(size, dtype=np.float32)),
    double=LENGTHS.map(lambda size: np.arange(size, dtype=np.float64)[::-1]),
    payload=LENGTHS.map(lambda size: bytes(4 * size)),
    pending=st.lists(st.tuples(INTEGERS, LENGTHS.map(np.zeros), st.text(max_size=5)), max_size=3),
)


@pytest.mark.slow
@given(
    st.builds(
        Whole,
        parts=st.lists(PARTS, max_size=20).map(tuple),
        digests=st.just(()),
        vector=st.none(),
        done=st.booleans(),
    )
    | VECTORS
)
def test_parts_are_the_bytes_of_the_whole(snapshot: Whole | Vectors) -> None:
    written = encode(snapshot)
    assert b"".join(encode_parts(snapshot)) == written
    assert encode(decode(written, type(snapshot))) == written


def test_large_vectors_are_not_copied_into_parts() -> None:
    vector = np.arange(APART_BYTES, dtype=np.float32)
    parts = encode_parts([vector, {"small": np.zeros(3, np.float32)}])
    assert any(np.shares_memory(np.frombuffer(part, np.uint8), vector) for part in parts)
    assert sum(len(part) for part in parts if isinstance(part, bytes)) < 100


def test_parts_hold_no_value_of_another_type() -> None:
    with pytest.raises(TypeError):
        encode_parts([object()])


class Halves(LazyVector):
    """0, ½, 1, …"""

    def __init__(self, size: int) -> None:
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.arange(self._size, dtype=np.float64)[part] / 2


@pytest.mark.parametrize("size", [0, 1, APART_BYTES // 8 - 1, APART_BYTES // 8, 2 * PART + 3])
def test_a_vector_that_is_computed_later_is_written_as_if_it_were_there(size: int) -> None:
    there = encode([1, np.arange(size, dtype=np.float64) / 2, {"a": b"b"}])
    later = [1, Halves(size), {"a": b"b"}]
    assert encode(later) == b"".join(parts_of(later)) == b"".join(encode_parts(later)) == there


def test_parts_are_made_one_by_one() -> None:
    with traced() as peak:
        assert sum(len(part) for part in parts_of([Quarters(8 * PART)])) > 64 * PART
        assert peak() < 3 * 8 * PART


class Quarters(Halves):
    """The same without a whole vector of it."""

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.arange(*part.indices(self.size), dtype=np.float64) / 4
