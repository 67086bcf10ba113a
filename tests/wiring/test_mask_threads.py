"""Masks over threads: the same sums, faults that come out, and nothing started where one thread is enough."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from echelon.errors import ProtocolError
from echelon.secagg.prg import ALONE, CHUNK_BYTES, Masker
from echelon.wiring.mask_threads import over_threads
from tests.run.runs import federation, run

MASKS = [(bytes([number]) * 16, 1 - 2 * (number % 2)) for number in range(4)]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_make_the_same_vector(threads: int) -> None:
    alone = np.arange(CHUNK_BYTES + 9, dtype=np.uint32)
    spread = alone.copy()
    Masker().add(alone, MASKS)
    Masker(over_threads(threads)).add(spread, MASKS)
    assert np.array_equal(alone, spread)


def test_parts_are_worked_on_by_threads_of_their_own() -> None:
    both = threading.Barrier(2, timeout=60)
    names: set[str] = set()

    def meet(_: slice) -> None:
        both.wait()  # neither goes on before the other is there
        names.add(threading.current_thread().name)

    over_threads(2).run(meet, [slice(0, 1), slice(1, 2)])
    assert len(names) == 2
    assert threading.current_thread().name not in names


def test_a_fault_of_a_thread_comes_out() -> None:
    with pytest.raises(ProtocolError, match="16 bytes"):
        Masker(over_threads(2)).add(np.zeros(CHUNK_BYTES, np.uint32), [(b"short", 1)])


def test_one_thread_is_the_callers() -> None:
    assert over_threads(1) is ALONE


@pytest.mark.slow
def test_a_run_over_threads_is_the_run_without_them() -> None:
    window = {"deadline": 5, "round_timeout": 2, "patience": 2.0}
    alone, spread = (run(federation(window=window | {"mask_threads": threads})) for threads in (1, 2))
    assert spread.adapter == alone.adapter
    assert spread.summary["audit"]["ok"]
