"""Holding a run folder while a process runs in it, and what is left of a run that never began."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from echelon.errors import ConfigError
from echelon.private import append_private
from echelon.run.folder import MANIFEST_FILE


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold the run folder, so that no second process runs the same actors."""
    path = out / "state" / "lock"
    try:
        handle = append_private(path)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be written: {error.strerror}. Choose another folder with --out"
        ) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(
                f"{out} is in use by another process: wait for its end, or stop it first"
            ) from error
        yield
    finally:
        os.close(handle)


def resumable(out: Path) -> bool:
    """Whether anything began that would be lost: before there are brokers, nothing was trained."""
    return (out / "state" / MANIFEST_FILE).exists() and any((out / "brokers").glob("*.sqlite"))


def remove_unstarted(out: Path, *, folder_too: bool) -> None:
    """Take away what a run that never began left in its folder, so that the same command works again."""
    for entry in list(out.iterdir()) if out.is_dir() else []:
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    if folder_too and out.is_dir():
        out.rmdir()
