"""Processes that end with the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """From now on this process ends as soon as the process that started it has ended, however that ended.

    A process that is killed cannot end its workers, and a worker waits for its next job for ever.
    """
    threading.Thread(target=_end, name="echelon-parent", daemon=True).start()


def _end() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
