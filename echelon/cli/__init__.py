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
    try:
        from echelon.cli.app import app

        code = _code(app)
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:  # who reads our output has seen enough
        code = FAILED
    except Exception as error:
        code = FAILED
        _tell(error)
    _end(code)


FAILED = 1


def _code(app: object) -> int:
    """The exit code of a command."""
    try:
        app()  # type: ignore[operator]
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else FAILED if ended.code else 0
    return 0


def _tell(error: Exception) -> None:
    from echelon import __version__
    from echelon.unforeseen import explained

    line = explained(error, __version__)
    try:
        sys.stderr.write(f"error: {line}\n")
        sys.stderr.flush()
    except OSError:
        return  # standard error is on the full disk, too: the exit code says it


def _end(code: int) -> None:
    """Leave with an exit code. What a stream still holds and cannot write would end in a traceback and another code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            code = code or FAILED
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    sys.exit(code)
