"""Freed vectors leave the process, whatever was freed before them."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from echelon.services.allocator import VARIABLE, map_large_blocks

SCRIPT = """
import ctypes, sys
from echelon.services.allocator import map_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1024

def filled(size):
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    return block

if sys.argv[1] == "mapped":
    assert map_large_blocks()
libc.free(filled(30 << 20))  # from here on, glibc by itself takes blocks of up to 30 MiB out of its heap
before = resident()
vectors, small = [], []
for _ in range(16):
    vectors.append(filled(8 << 20))
    small.append(filled(4096))  # stays, and holds the heap up behind each vector
for block in vectors:
    libc.free(block)
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("as it is", 100, 200), ("mapped", -100, 20)])
def test_freed_blocks_leave_the_process_though_small_ones_lie_between(
    how: str, least: int, most: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, timeout=100
    )
    assert least <= int(done.stdout) <= most


def test_a_size_that_the_environment_sets_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "65536")
    assert not map_large_blocks()
