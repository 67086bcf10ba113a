"""After a replica has taken its slot, its process reads no other slot's keys or state: Linux's Landlock sees to that.

A thread that confines itself cannot undo it, and threads and processes that it starts afterwards are confined as well:
the training process, which runs the most code of others, among them. Threads that run already are not. Reading is
allowed beneath named folders only (landlock(7)), so everything beside the ways to slots and states is named.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls; their numbers are the same on every architecture."""
READ_FILE = 1 << 2
"""LANDLOCK_ACCESS_FS_READ_FILE."""
PATH_BENEATH = 1
"""LANDLOCK_RULE_PATH_BENEATH."""
SET_NO_NEW_PRIVS = 38
"""A thread without privileges may only confine itself when it can gain none either (prctl(2))."""


def confine(slots: Path, states: Path, own: tuple[Path, Path]) -> bool:
    """Let this thread, and what it starts from now on, read files of one slot only.

    Args:
        slots: the folder of all slots.
        states: the folder of the states of all replicas here.
        own: the slot and the state that may be read; both are there.

    Returns:
        Whether it holds; False where the kernel has no Landlock, or does not allow it here.

    Raises:
        OSError: the kernel has Landlock and refuses these rules.
    """
    if platform.system() != "Linux":
        return False
    attributes = struct.pack("=Q", READ_FILE)
    try:
        rules = _call(CREATE_RULESET, attributes, len(attributes), 0)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM):
            return False
        raise
    try:
        for path in (*beside(slots.resolve(), states.resolve()), *(one.resolve() for one in own)):
            _allow(rules, path)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "no_new_privs cannot be set")
        _call(RESTRICT_SELF, rules, 0)
    finally:
        os.close(rules)
    return True


def beside(*folders: Path) -> Iterator[Path]:
    """Everything beside the ways from the root to some folders, and nothing in the folders themselves."""
    ways = {way for folder in folders for way in (folder, *folder.parents)}
    for outer in {parent for folder in folders for parent in folder.parents}:
        if any(outer.is_relative_to(folder) for folder in folders):
            continue  # it is in one of them itself
        for entry in os.scandir(outer):
            if not entry.is_symlink() and Path(entry.path) not in ways:
                yield Path(entry.path)


def _allow(rules: int, path: Path) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return  # it was there a moment ago
    try:
        # Packed: 64 bits of rights, then a descriptor.
        _call(ADD_RULE, rules, PATH_BENEATH, struct.pack("=Qi", READ_FILE, opened), 0)
    finally:
        os.close(opened)


def _call(number: int, *arguments: bytes | int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    given = [ctypes.c_char_p(one) if isinstance(one, bytes) else ctypes.c_long(one) for one in arguments]
    found: int = libc.syscall(ctypes.c_long(number), *given)
    if found < 0:
        raise OSError(ctypes.get_errno(), f"Landlock: {os.strerror(ctypes.get_errno())}")
    return found
