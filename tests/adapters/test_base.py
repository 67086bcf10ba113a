"""What every kind of adapter rests on: numbers that anybody draws again, and products of the same bits everywhere."""

from __future__ import annotations

import hashlib

import numpy as np

from echelon.adapters.base import times_cores, uniform


def test_frozen_numbers_are_golden_and_of_their_key_and_seed() -> None:
    first = uniform("x.lora_A.weight", (2, 16), 5)
    assert hashlib.sha256(first.tobytes()).hexdigest()[:16] == "8216c45d5750c649"
    assert first.dtype == np.float32
    assert np.abs(first).max() <= 0.25
    assert first.tobytes() == uniform("x.lora_A.weight", (2, 16), 5).tobytes()
    assert first.tobytes() != uniform("x.lora_A.weight", (2, 16), 6).tobytes()
    assert first.tobytes() != uniform("y.lora_A.weight", (2, 16), 5).tobytes()


def test_a_product_with_cores_is_that_of_matrices() -> None:
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((5, 6)).astype(np.float32)
    cores = rng.standard_normal((2, 3, 3)).astype(np.float32)
    diagonal = np.zeros((6, 6))
    diagonal[:3, :3], diagonal[3:, 3:] = cores
    found = times_cores(basis, cores)
    np.testing.assert_allclose(found, basis.astype(np.float64) @ diagonal, rtol=1e-6, atol=1e-6)


def test_a_product_with_cores_is_golden() -> None:
    basis = uniform("b", (3, 4), 1)
    found = times_cores(basis, uniform("c", (2, 2, 2), 2))
    assert hashlib.sha256(found.tobytes()).hexdigest()[:16] == "28d62960eb8e76b4"
