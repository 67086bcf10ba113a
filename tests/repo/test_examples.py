"""The straight-line example runs, and says what it is for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_one_window_runs_from_top_to_bottom() -> None:
    done = subprocess.run(
        [sys.executable, "examples/one_window.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert "gate derives the aggregator's sum: True" in done.stdout
    assert "auditor derives the controller's commit: True" in done.stdout
    distance = float(done.stdout.rsplit(maxsplit=1)[-1])
    assert distance < 1e-5, "the delta's codec rounds to int16, and nothing else may differ"
