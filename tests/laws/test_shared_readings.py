"""What devices of one process read alike is one thing for all of them, and is let go of when nobody holds it."""

from __future__ import annotations

import gc
import hashlib

import numpy as np
import pytest

from echelon.laws.shared_readings import KEPT, SharedReadings


def test_equal_vectors_are_one_array_that_nobody_can_change() -> None:
    shared = SharedReadings()
    payloads = [np.arange(8, dtype=np.float32) for _ in range(2)]
    digest = hashlib.sha256(payloads[0].tobytes()).digest()
    one, other = (shared.copy(payload, digest) for payload in payloads)
    assert one is other
    assert np.array_equal(one, payloads[0])
    assert not np.shares_memory(one, payloads[0])  # the payload is let go of, and what else it holds
    with pytest.raises(ValueError, match="read-only"):
        one[0] = 1.0


def test_a_vector_that_nobody_holds_is_gone() -> None:
    shared = SharedReadings()
    vector = shared.copy(np.zeros(8, np.float32), b"digest")
    assert len(shared._vectors) == 1
    del vector
    gc.collect()
    assert len(shared._vectors) == 0


def test_a_finding_is_found_once_and_an_error_by_everybody() -> None:
    shared, found = SharedReadings(), []

    def find() -> int:
        found.append(1)
        if len(found) == 1:
            raise ValueError("not signed")
        return 7

    with pytest.raises(ValueError, match="not signed"):
        shared.get("key", find)
    assert [shared.get("key", find) for _ in range(3)] == [7, 7, 7]
    assert len(found) == 2


def test_only_the_newest_findings_are_kept() -> None:
    shared = SharedReadings()
    for number in range(KEPT + 5):
        shared.get(number, lambda: 0)
    again = []
    shared.get(5, lambda: again.append(5))
    assert again == []
    shared.get(0, lambda: again.append(0))
    assert again == [0]
