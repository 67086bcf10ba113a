"""Folders that are made whole or not at all, and whether their files are still what a manifest says."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

Made = TypeVar("Made")


def made_whole(folder: Path, make: Callable[[Path], Made]) -> Made:
    """Make a folder that is not there: beside its place, and renamed when it is whole. Nothing else is left.

    Args:
        folder: its place.
        make: gets a folder beside it for scratch, which is not there yet, and makes `out` in it.

    Returns:
        What `make` returns.
    """
    scratch = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        made = make(scratch)
        (scratch / "out").rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return made


def altered(folder: Path, digests: Mapping[str, str]) -> list[str]:
    """Files that are not there or have another SHA-256, in the order of the digests; none if all are as they should be.

    Args:
        folder: where they are.
        digests: SHA-256 in hex by each file's path in the folder.
    """
    return [
        name
        for name, digest in digests.items()
        if not (folder / name).is_file() or hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest
    ]
