"""Reports: one self-contained HTML page about a run, or about several side by side, made from run folders' files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from echelon.private import write_whole
from echelon.report.best import best_evaluated
from echelon.report.compare import render_comparison
from echelon.report.data import ReportData, load
from echelon.report.page import render

__all__ = [
    "ReportData",
    "best_evaluated",
    "build_comparison",
    "build_report",
    "load",
    "render",
    "render_comparison",
]


def build_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page about a run, from its folder's files; an older page is replaced in one step.

    Args:
        run_dir: the run folder.
        out: where the page goes; None: `report.html` in the run folder.

    Returns:
        The path of the page.

    Raises:
        ConfigError: `run_dir` is not a run folder.
        LimitExceeded: one of its files is larger than is read.
        OSError: the page cannot be written there.
    """
    return _write(out or run_dir / "report.html", render(load(run_dir)))


def build_comparison(run_dirs: Sequence[Path], out: Path) -> Path:
    """Write the page about several runs.

    Raises:
        ConfigError: one of them is not a run folder, or there are too few or too many.
        LimitExceeded: a file is larger than is read.
        OSError: the page cannot be written there.
    """
    return _write(out, render_comparison([load(run_dir) for run_dir in run_dirs]))


def _write(target: Path, page: str) -> Path:
    write_whole(target, page.encode())
    return target
