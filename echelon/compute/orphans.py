"""Processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def follow_parent() -> None:
    """From now on this process ends when the one that started it has ended, however that ended, and by no interrupt.

    A process that is killed cannot end its workers, and a worker waits for its next job for ever. An interrupt of the
    terminal goes to all of them, and the parent decides what it means.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end, name="echelon-parent", daemon=True).start()


def _end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
