"""Folders that one process has for itself: the kernel lets go of them when the process ends, however it ends."""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from echelon.errors import ConfigError, StorageError
from echelon.private import close_tree, may_pass, private_folder

RETRY_SECONDS = 0.25


class FolderLock:
    """An exclusive lock on a folder, for processes of one host. It needs no right to write there.

    Network file systems that do not lock between machines give no protection from another machine.
    """

    def __init__(self, folder: Path, handle: int) -> None:
        self.folder = folder
        self._handle = handle

    @classmethod
    def take(cls, folder: Path) -> Self | None:
        """The lock, or None if another process has it.

        Raises:
            ConfigError: there is no such folder, or its file system has no locks.
        """
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise ConfigError(
                f"folder {folder} cannot be opened: {error.strerror}. Check the path"
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            os.close(handle)
            raise ConfigError(
                f"folder {folder} cannot be locked ({error.strerror}): put it on a file system with locks"
            ) from error
        return cls(folder, handle)

    def release(self) -> None:
        """Let go. Idempotent."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


async def lock_state(folder: Path, within: float) -> FolderLock:
    """Make a state folder, close it to everybody but its owner, and lock it, waiting for a process that is just ending.

    Raises:
        ConfigError: it cannot be made, or is still in use after `within` seconds.
        StorageError: there is no room on its disk.
    """
    make_state(folder)
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    while True:
        lock = FolderLock.take(folder)
        if lock is not None:
            return lock
        if loop.time() >= end:
            raise ConfigError(
                f"state folder {folder} has been in use by another process for {within:.0f} s: stop that one, or "
                "give this one a folder of its own with `state`"
            )
        await asyncio.sleep(RETRY_SECONDS)


def make_state(folder: Path) -> None:
    """Make a folder for state, and close it and what is in it to everybody but its owner.

    Raises:
        ConfigError: it cannot be made, or everybody may write to it.
        StorageError: there is no room on its disk.
    """
    try:
        private_folder(folder)
        close_tree(folder)
    except OSError as error:
        if may_pass(error):
            raise StorageError(
                f"state folder {folder} cannot be made now ({error.strerror}): make room on its disk"
            ) from error
        raise ConfigError(
            f"state folder {folder} cannot be made ({error.strerror}): name one that can with `state`"
        ) from error
