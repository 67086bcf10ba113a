"""Echelon from Python: start runs, follow them, and use what they leave. `import echelon` has all of it."""

from __future__ import annotations

from echelon.api.exchange import CommitMade, DeltaCrossed, RunClosed, RunStarted, attach
from echelon.api.result import RunResult, base_folder
from echelon.api.run import Event, Run

__all__ = [
    "CommitMade",
    "DeltaCrossed",
    "Event",
    "Run",
    "RunClosed",
    "RunResult",
    "RunStarted",
    "attach",
    "base_folder",
]
