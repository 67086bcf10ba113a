"""Packed weights are small, near the given ones, and the same bytes every time."""

from __future__ import annotations

import numpy as np
import pytest

from bench.domains.weights import pack, unpack
from echelon.errors import ConfigError


def weights() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(1)
    matrix = draw.normal(size=(40, 30)).astype(np.float32)
    matrix[3] = 0.0
    return {"b.weight": matrix, "a.norm": draw.normal(size=30).astype(np.float32)}


def test_a_matrix_is_within_half_a_step_of_its_row_and_a_vector_is_exact() -> None:
    given, found = weights(), unpack(pack(weights()))
    assert set(found) == set(given)
    assert np.array_equal(found["a.norm"], given["a.norm"])
    step = np.abs(given["b.weight"]).max(axis=1, keepdims=True) / 127
    assert np.all(np.abs(found["b.weight"] - given["b.weight"]) <= step * 0.501)
    assert np.all(found["b.weight"][3] == 0)
    assert found["b.weight"].dtype == np.float32


def test_the_same_weights_give_the_same_bytes_and_packing_again_changes_nothing() -> None:
    raw = pack(weights())
    assert raw == pack(dict(reversed(weights().items())))
    assert len(raw) < 40 * 30 + 4 * (40 + 30) + 400
    twice = unpack(pack(unpack(raw)))
    for name, value in unpack(raw).items():
        assert np.allclose(twice[name], value, rtol=1e-6)


def test_what_is_no_number_and_what_is_no_file_is_refused() -> None:
    broken = weights()
    broken["b.weight"][0, 0] = np.nan
    with pytest.raises(ConfigError, match=r"b\.weight has weights that are no numbers"):
        pack(broken)
    for raw in (b"", b"\xff" * 40, pack(weights())[:-1]):
        with pytest.raises(ConfigError, match="the packed weights cannot be read"):
            unpack(raw)
