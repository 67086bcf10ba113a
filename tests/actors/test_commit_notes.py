"""What metrics are told of how far the deltas of a commit agree."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.actors import commit_notes as module
from echelon.messages.exchange import Commit, Merged
from tests.memory import traced

SIZE = (1 << 17) + 5


def geometry(values: dict[tuple[int, int], module._Value]) -> dict[str, object]:
    merged = tuple(Merged(boundary=boundary, seq=seq, staleness=0, weight=1) for boundary, seq in values)
    return module._geometry(("a", "b"), Commit.model_construct(merged=merged), values)


@pytest.mark.parametrize("size", [7, SIZE])
def test_norms_and_cosines_are_those_of_the_summed_deltas(size: int) -> None:
    dice = np.random.default_rng(1)
    values = {
        (boundary, seq): module._Value(dice.integers(-30000, 30000, size).astype(np.int16), -20 + seq)
        for boundary, seq in ((0, 1), (0, 2), (1, 5))
    }
    a = values[0, 1].part(slice(None)) + values[0, 2].part(slice(None))
    b = values[1, 5].part(slice(None))
    norms = {"a": float(np.linalg.norm(a)), "b": float(np.linalg.norm(b))}
    found = geometry(values)
    assert found["delta_norm"] == pytest.approx(norms, rel=1e-12)
    assert found["cosine"] == pytest.approx({"a|b": float(a @ b) / norms["a"] / norms["b"]}, abs=1e-12)


def test_a_delta_of_zeros_has_no_cosine() -> None:
    zeros, ones = np.zeros(3, np.int16), np.ones(3, np.int16)
    found = geometry({(0, 0): module._Value(zeros, 0), (1, 0): module._Value(ones, 0)})
    assert found == {"delta_norm": {"a": 0.0, "b": pytest.approx(3**0.5)}, "cosine": {}}


def test_no_vector_of_float64_is_made() -> None:
    numbers = np.ones(1 << 20, np.int16)
    with traced() as peak:
        geometry({(0, 0): module._Value(numbers, 0), (1, 0): module._Value(numbers, 0)})
        assert peak() < 4 * numbers.size
