"""Large arrays go back to the system when they are freed.

glibc's allocator raises the size from which it maps memory of its own to that of the largest block that was freed, up
to 32 MiB (mallopt(3)). From then on vectors of an adapter come out of heaps that fill with holes: a service was
measured at twice the memory that its arrays had. With a fixed size they are mapped one by one, and unmapped when freed.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "MALLOC_MMAP_THRESHOLD_"
"""Of the environment: who sets it has chosen a size, and it stands."""
M_MMAP_THRESHOLD = -3
"""The option's number in malloc.h."""
MAPPED_BYTES = 1024 * 1024
"""Blocks of at least so many bytes have a mapping of their own."""


def map_large_blocks() -> bool:
    """Give every block of `MAPPED_BYTES` or more a mapping of its own, from now on, in this process.

    Returns:
        Whether the C library does so now; False where `VARIABLE` is set or it is not glibc, and nothing has changed.
    """
    if VARIABLE in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES))
