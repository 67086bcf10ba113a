"""Threads that masks are spread over: one pool for each number of them in a process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial

from echelon.secagg.prg import ALONE, Spread


def over_threads(threads: int) -> Spread:
    """How masks are spread over so many threads; with one, nothing is started.

    The cipher and the additions leave the interpreter's lock while they work on a piece.

    Args:
        threads: at least 1.
    """
    return ALONE if threads == 1 else Spread(threads, partial(_run, threads))


def _run(threads: int, work: Callable[[slice], None], ranges: Sequence[slice]) -> None:
    for done in wait([_pool(threads).submit(work, one) for one in ranges]).done:
        done.result()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "masks")
