"""Freed vectors leave a service, whatever was freed before them, and stay in a training process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from echelon.allocator import HEAPS_VARIABLE, TRIM_VARIABLE, VARIABLE, keep_freed_blocks, map_large_blocks
from echelon.bus.chunks import CHUNK

SCRIPT = """
import ctypes, sys
from echelon.allocator import map_large_blocks

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
for _ in range((128 << 20) // int(sys.argv[2])):
    vectors.append(filled(int(sys.argv[2])))
    small.append(filled(4096))  # stays, and holds the heap up behind each vector
for block in vectors:
    libc.free(block)
print(resident() - before)
"""

HEAPS = """
import ctypes, sys, threading
from echelon.allocator import map_large_blocks

map_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fdopen.restype, libc.malloc_info.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p]
libc.fflush.argtypes = [ctypes.c_void_p]
held = []
thread = threading.Thread(target=lambda: held.append(libc.malloc(5000)))
thread.start()
thread.join()
stream = libc.fdopen(1, b"w")
libc.malloc_info(0, stream)
libc.fflush(stream)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is glibc's")
@pytest.mark.parametrize("size", [8 << 20, CHUNK], ids=["vectors", "chunks"])
@pytest.mark.parametrize(("how", "least", "most"), [("as it is", 100, 200), ("mapped", -100, 20)])
def test_freed_blocks_leave_the_process_though_small_ones_lie_between(
    how: str, least: int, most: int, size: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, how, str(size)],
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert least <= int(done.stdout) <= most


def test_a_size_that_the_environment_sets_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "65536")
    assert not map_large_blocks()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is glibc's")
@pytest.mark.parametrize(("own", "heaps"), [({}, 1), ({HEAPS_VARIABLE: "4"}, 2)])
def test_threads_share_one_heap_unless_the_environment_says_otherwise(
    own: dict[str, str], heaps: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HEAPS], capture_output=True, text=True, check=True, timeout=100,
        env={name: value for name, value in os.environ.items() if name != HEAPS_VARIABLE} | own,
    )  # fmt: skip
    assert done.stdout.count("<heap nr=") == heaps


FAULTS = """
import ctypes, resource, sys
from echelon.allocator import keep_freed_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1] == "kept":
    assert keep_freed_blocks()

def step():
    blocks = [libc.malloc(size << 20) for size in (48, 24, 48)]  # as activations come and go
    for block, size in zip(blocks, (48, 24, 48)):
        ctypes.memset(block, 1, size << 20)
    for block in reversed(blocks):
        libc.free(block)

step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the option is glibc's")
@pytest.mark.parametrize(("how", "least", "most"), [("as it is", 10_000, 10**9), ("kept", 0, 1000)])
def test_blocks_that_are_kept_come_again_without_faults(how: str, least: int, most: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True, timeout=100
    )
    assert least <= int(done.stdout) <= most


@pytest.mark.parametrize("name", [VARIABLE, TRIM_VARIABLE])
def test_what_the_environment_chose_is_not_overruled_by_keeping(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "65536")
    assert not keep_freed_blocks()
