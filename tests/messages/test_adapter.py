import hashlib
import json
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.errors import CodecError, EchelonError, LimitExceeded
from echelon.messages.adapter import (
    CONFIG_FILE,
    MAX_DIM,
    MAX_ENTRIES,
    WEIGHTS_FILE,
    AdapterLayout,
    adapter_digest,
    adapter_files,
    vector_from_files,
)

KEYS = st.text("abcdef_.0123456789", min_size=1, max_size=20)
SHAPES = st.dictionaries(KEYS, st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=6)
TWO = AdapterLayout.of({"b.lora_B.weight": (3, 2), "a.lora_A.weight": (2, 4)})
CONFIG = b'{"peft_type":"LORA"}'


def vector_of(layout: AdapterLayout, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(layout.dim, dtype=np.float32)


@given(SHAPES)
def test_entries_tile_the_vector_in_key_order(shapes):
    layout = AdapterLayout.of(shapes)
    assert [entry.key for entry in layout.entries] == sorted(shapes)
    end = 0
    for entry in layout.entries:
        assert entry.offset == end
        assert entry.shape == tuple(shapes[entry.key])
        end += entry.size
    assert layout.dim == end


@given(SHAPES)
def test_json_round_trip_keeps_layout_and_digest(shapes):
    layout = AdapterLayout.of(shapes)
    again = AdapterLayout.from_json(layout.json)
    assert again == layout
    assert again.digest == hashlib.sha256(layout.json).digest()


def test_json_is_this_and_stays_this():
    assert TWO.json == (
        b'{"dim":14,"dtype":"<f4","format":"echelon.adapter-layout.v1",'
        b'"tensors":[["a.lora_A.weight",[2,4]],["b.lora_B.weight",[3,2]]]}'
    )


@given(SHAPES, st.integers(0, 2**32 - 1))
@settings(max_examples=50)
def test_files_round_trip_bit_for_bit(shapes, seed):
    layout = AdapterLayout.of(shapes)
    vector = vector_of(layout, seed)
    files = adapter_files(layout, CONFIG, vector)
    assert files == adapter_files(layout, CONFIG, vector.copy())
    layout_again, config, vector_again = vector_from_files(files)
    assert (layout_again, config) == (layout, CONFIG)
    assert vector_again.tobytes() == vector.tobytes()


def test_split_gives_views_and_join_inverts_it():
    vector = vector_of(TWO)
    parts = TWO.split(vector)
    np.testing.assert_array_equal(parts["b.lora_B.weight"], vector[8:].reshape(3, 2))
    assert all(np.shares_memory(part, vector) for part in parts.values())
    np.testing.assert_array_equal(TWO.join(parts), vector)


def test_digest_is_over_little_endian_floats():
    vector = np.array([1.0, -2.5], dtype=np.float32)
    assert adapter_digest(vector) == hashlib.sha256(struct.pack("<2f", 1.0, -2.5)).digest()
    assert adapter_digest(np.array([-0.0], np.float32)) != adapter_digest(np.array([0.0], np.float32))


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"[]",
        b"{}",
        b'{"tensors":3}',
        b'{"tensors":[[1,[1]]]}',
        b'{"tensors":[["a",[0]]]}',
        b'{"tensors":[["a",[-1]]]}',
        b'{"tensors":[["a",[true]]]}',
        b'{"tensors":[["a",[1.0]]]}',
        b'{"tensors":[["a",[]]]}',
        b'{"tensors":[["a",[1,1,1,1,1]]]}',
        b'{"tensors":[["a b",[1]]]}',
        b'{"tensors":[]}',
        TWO.json + b" ",
        TWO.json.replace(b'"dim":14', b'"dim":15'),
        TWO.json.replace(b"<f4", b">f4"),
        TWO.json.replace(b'"dim"', b'"also":1,"dim"'),
        TWO.json.replace(b'{"dim":14', b'{"dim":14,"dim":14'),
        TWO.json.replace(b'["a.lora_A.weight",[2,4]],', b"") + b"",
        b"[" * 100_000,
    ],
)
def test_from_json_refuses_everything_but_the_canonical_form(bad):
    with pytest.raises(EchelonError):
        AdapterLayout.from_json(bad)


def test_from_json_refuses_another_order():
    document = json.loads(TWO.json)
    document["tensors"].reverse()
    with pytest.raises(CodecError, match="not canonical"):
        AdapterLayout.from_json(json.dumps(document, separators=(",", ":"), sort_keys=True).encode())


def test_limits_are_enforced():
    with pytest.raises(LimitExceeded):
        AdapterLayout.of({"a": (MAX_DIM, 2)})
    with pytest.raises(LimitExceeded):
        AdapterLayout.of({str(i): (1,) for i in range(MAX_ENTRIES + 1)})
    with pytest.raises(LimitExceeded):
        AdapterLayout.from_json(b" " * ((16 << 20) + 1))
    with pytest.raises(LimitExceeded):
        vector_from_files({CONFIG_FILE: b" " * ((1 << 20) + 1), WEIGHTS_FILE: b""})


@pytest.mark.parametrize(
    "vector",
    [np.zeros(14), np.zeros(13, np.float32), np.zeros((7, 2), np.float32), np.zeros(28, np.float32)[::2]],
)
def test_a_vector_of_another_kind_is_refused(vector):
    with pytest.raises(CodecError):
        TWO.split(vector)
    with pytest.raises(CodecError):
        adapter_files(TWO, CONFIG, vector)


def test_join_refuses_other_tensors():
    parts = TWO.split(vector_of(TWO))
    with pytest.raises(CodecError, match="missing or unknown"):
        TWO.join({"a.lora_A.weight": parts["a.lora_A.weight"]})
    with pytest.raises(CodecError, match="layout says"):
        TWO.join({**parts, "b.lora_B.weight": parts["b.lora_B.weight"].T})
    with pytest.raises(CodecError, match="layout says"):
        TWO.join({**parts, "b.lora_B.weight": parts["b.lora_B.weight"].astype(np.float64)})


def test_files_that_are_no_adapter_are_refused():
    files = adapter_files(TWO, CONFIG, vector_of(TWO))
    with pytest.raises(CodecError, match=WEIGHTS_FILE):
        vector_from_files({CONFIG_FILE: CONFIG})
    with pytest.raises(CodecError, match="safetensors"):
        vector_from_files({**files, WEIGHTS_FILE: files[WEIGHTS_FILE][:-1]})
    with pytest.raises(CodecError, match="safetensors"):
        vector_from_files({**files, WEIGHTS_FILE: b""})
