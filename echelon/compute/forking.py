"""The process that training workers are forked from: it loads torch and transformers once, while others do their part.

Nothing here imports more than the standard library, so that it can be asked for before anything else is loaded.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing import forkserver
from multiprocessing.context import BaseContext

LOADED = "echelon.training.preloaded"
"""What is imported there before the first worker is forked: all that every worker needs."""


def worker_context() -> BaseContext:
    """How workers are started: forked from a process that has loaded torch and has no threads, where there is fork.

    To load torch and transformers takes seconds and some hundred MB, which the workers share then. Nothing is computed
    in that process and no GPU is touched, so what is forked is as new.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([LOADED])
    return context


def start_loading() -> None:
    """Start that process now, and do not wait: workers that are asked for later find it loaded, or nearly so."""
    if worker_context().get_start_method() == "forkserver":
        forkserver.ensure_running()
