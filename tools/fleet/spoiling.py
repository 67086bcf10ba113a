"""A device that sends one activation that is none: its last four bytes are missing.

For tests alone; `tools.fleet.killing` installs it where the environment says so. The first process to ask does it,
once, and leaves a file that says so.
"""

from __future__ import annotations

import os
from pathlib import Path

SPOIL = "FAULT_SPOIL"
"""Environment: the file that is made when an activation was spoilt; while it is missing, the next one is."""
MISSING = 4


def install() -> None:
    """Spoil an activation of this process if the environment says so."""
    if SPOIL in os.environ:
        _spoil(Path(os.environ[SPOIL]))


def _spoil(mark: Path) -> None:
    from echelon.training.split.device_worker import DeviceWorker  # torch, which no other fault needs

    front = DeviceWorker.front

    def spoiling(self: DeviceWorker, micro: int) -> bytes:
        data = front(self, micro)
        return data[:-MISSING] if _first(mark) else data

    DeviceWorker.front = spoiling  # type: ignore[method-assign]


def _first(mark: Path) -> bool:
    """Whether nobody made the file before."""
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
