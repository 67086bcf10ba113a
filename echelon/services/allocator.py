"""Large arrays and chunks of payloads go back to the system when they are freed.

glibc's allocator raises the size from which it maps memory of its own to that of the largest block that was freed, up
to 32 MiB (mallopt(3)). From then on vectors of an adapter come out of heaps that fill with holes: a service was
measured at twice the memory that its arrays had. With a fixed size they are mapped one by one, and unmapped when freed.
Chunks are 512 KiB, so they are, too. Each thread has a heap of its own besides, and what is freed in one serves no
other: one heap for all does, as Python's threads seldom allocate at the same time.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE, HEAPS_VARIABLE = "MALLOC_MMAP_THRESHOLD_", "MALLOC_ARENA_MAX"
"""Of the environment: who sets one has chosen a size, or a number of heaps, and it stands."""
M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8
"""The options' numbers in malloc.h."""
MAPPED_BYTES = 256 * 1024
"""Blocks of at least so many bytes have a mapping of their own."""


def map_large_blocks() -> bool:
    """Give every block of `MAPPED_BYTES` or more a mapping of its own, and all threads one heap for the others, from
    now on, in this process.

    Returns:
        Whether the C library maps large blocks now; False where `VARIABLE` is set or it is not glibc, and that has not
        changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    if HEAPS_VARIABLE not in os.environ:
        mallopt(M_ARENA_MAX, 1)
    return VARIABLE not in os.environ and bool(mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))
