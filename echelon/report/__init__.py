"""The report of a run: one self-contained HTML page, made from a run folder's files."""

from __future__ import annotations

import os
from pathlib import Path

from echelon.report.data import ReportData, load
from echelon.report.page import render

__all__ = ["ReportData", "build_report", "load", "render"]


def build_report(run_dir: Path) -> Path:
    """Write `report.html` into a run folder, from its other files; an older one is replaced in one step.

    Returns:
        The path of the page.

    Raises:
        ConfigError: `run_dir` is not a run folder.
        LimitExceeded: one of its files is larger than is read.
        OSError: the page cannot be written there.
    """
    page = render(load(run_dir))
    target = run_dir / "report.html"
    partial = run_dir / f".report.html.{os.getpid()}"
    try:
        partial.write_text(page, encoding="utf-8")
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target
