"""Auditable, aggregate-only adaptation of language models across privacy boundaries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from echelon.api import (
        CommitMade,
        DeltaCrossed,
        Event,
        Run,
        RunClosed,
        RunResult,
        RunStarted,
        attach,
        base_folder,
    )

__all__ = [
    "CommitMade",
    "DeltaCrossed",
    "Event",
    "Run",
    "RunClosed",
    "RunResult",
    "RunStarted",
    "__version__",
    "attach",
    "base_folder",
]


def __getattr__(name: str) -> Any:
    """What Python programs use is imported when it is asked for, so that the command line starts at once."""
    if name not in __all__:
        raise AttributeError(f"module 'echelon' has no attribute {name!r}")
    from echelon import api

    return getattr(api, name)
