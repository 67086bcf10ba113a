"""What glibc's allocator does with large blocks that are freed: give them back to the system, or keep them.

**Services give them back.** The allocator raises the size from which it maps memory of its own to that of the largest
block that was freed, up to 32 MiB (mallopt(3)). From then on vectors of an adapter come out of heaps that fill with
holes: a service was measured at twice the memory that its arrays had. With a fixed size they are mapped one by one, and
unmapped when freed. Chunks are 512 KiB, so they are, too. Each thread has a heap of its own besides, and what is freed
in one serves no other: one heap for all does, as Python's threads seldom allocate at the same time.

**Training processes keep them.** Each step needs activations and gradients of the same sizes as the step before. What
was given back comes again page by page, each with a fault and filled with zeros by the system.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

VARIABLE, TRIM_VARIABLE = "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"
HEAPS_VARIABLE = "MALLOC_ARENA_MAX"
"""Of the environment: who sets one has chosen a size, or a number of heaps, and it stands."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""The options' numbers in malloc.h."""
MAPPED_BYTES = 256 * 1024
"""Blocks of at least so many bytes have a mapping of their own, in a process that gives them back."""
VECTOR_BYTES = 1 << 20
"""The same in a process that has all actors: it maps large vectors, and not chunks, of which it has many more."""
KEPT_BYTES = 1 << 30
"""Smaller blocks come out of the heap, in a process that keeps what is freed, and so many bytes stay at its end."""


def _mallopt() -> Callable[[int, int], int] | None:
    """The C library's function that sets an option of its allocator; None where there is none."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return None
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    set_option: Callable[[int, int], int] = mallopt
    return set_option


def map_large_blocks(smallest: int = MAPPED_BYTES) -> bool:
    """Give every large block a mapping of its own, and all threads one heap for the others, from now on.

    Args:
        smallest: bytes from which on a block is large.

    Returns:
        Whether the C library maps large blocks now; False where `VARIABLE` is set or it is not glibc, and that has not
        changed.
    """
    mallopt = _mallopt()
    if mallopt is None:
        return False
    if HEAPS_VARIABLE not in os.environ:
        mallopt(M_ARENA_MAX, 1)
    return VARIABLE not in os.environ and bool(mallopt(M_MMAP_THRESHOLD, smallest))


def keep_freed_blocks() -> bool:
    """Keep what is freed for the next blocks of the process, from now on, instead of giving it back to the system.

    Returns:
        Whether the C library keeps them now; False where `VARIABLE` or `TRIM_VARIABLE` is set or it is not glibc, and
        then nothing has changed.
    """
    mallopt = _mallopt()
    if mallopt is None or {VARIABLE, TRIM_VARIABLE} & os.environ.keys():
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT_BYTES))
