"""Runs of the command line as processes, and small run files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
COMMAND = (sys.executable, "-m", "echelon")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}


def process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Call the command line as a process."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=200,
        check=False,
    )


def settings(**changes: Any) -> dict[str, Any]:
    """A run of two boundaries in virtual time, with quadratics in place of a model."""
    data = {"source": "text:unused"}
    return {
        "name": "small",
        "clock": "virtual",
        "boundaries": [{"name": "a", "devices": 4, "data": data}, {"name": "b", "devices": 4, "data": data}],
        "budget": {"commits": 3},
        "learner": {"kind": "quadratic", "dim": 16},
    } | changes


def write(folder: Path, **changes: Any) -> Path:
    """A run file with these settings."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings(**changes)))
    return path
