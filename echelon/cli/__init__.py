"""The command line, one file per group of commands."""

from __future__ import annotations

import io
import os
import sys


def main() -> None:
    """The console script `echelon`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal, or a file, that takes fewer characters than we write
            stream.reconfigure(errors="backslashreplace")
    # numpy's linear algebra would start a thread per core in every process and have them wait for each other: with
    # cores busy training, a sum of squares then takes a thousand times as long. Read when numpy is imported.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from echelon.cli.app import app

    app()
