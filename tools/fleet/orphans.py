"""A process that ends once the one it was started for is gone, however that ended."""

from __future__ import annotations

import os
import signal
import threading
import time

LOOK_EVERY = 2.0
"""Seconds between two looks."""
GRACE = 15.0
"""Seconds that this process has to end in order, before it is killed."""


def end_with(pid: int) -> None:
    """From now on end this process by SIGTERM, and later by SIGKILL, once there is no process `pid` any more.

    Processes in sessions of their own outlive whoever started them if that is killed, or interrupted while it stops
    them.
    """
    threading.Thread(target=_watch, args=(pid,), name=f"ends with {pid}", daemon=True).start()


def _watch(pid: int) -> None:
    while _lives(pid):
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
