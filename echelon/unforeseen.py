"""What a program does with an error that it did not foresee: one line, a report file, and exit code 1.

A full disk is foreseen everywhere: it has a sentence and no report.
"""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from echelon.private import create_private, is_full


def disk_full(error: BaseException) -> str | None:
    """A sentence for an error that comes of a full disk, wherever in its chain of causes; None for any other."""
    for one in _chain(error):
        if not is_full(one):
            continue
        if isinstance(one, OSError):
            where = "" if one.filename is None else f": {_text(one.filename)} cannot be written"
            return f"the disk is full{where}. Make room, and start again"
        return "the disk is full: a log or a state file cannot be written. Make room, and start again"
    return None


def explained(error: BaseException, version: str) -> str:
    """One line about an error: of a full disk, or where the report of an unforeseen one lies.

    Args:
        error: what was raised.
        version: of this program, for the report.
    """
    sentence = disk_full(error)
    if sentence is not None:
        return sentence
    reason = " ".join(str(error).split())
    what = f"{type(error).__name__}: {reason[:200]}" if reason else type(error).__name__
    return f"something unforeseen happened ({what}); {_reported(error, version)}"


def _reported(error: BaseException, version: str) -> str:
    text = "".join(traceback.format_exception(error))
    about = f"echelon {version}, Python {platform.python_version()}, {platform.platform()}\n\n{text}"
    name = f"echelon-report-{os.getpid()}-{os.urandom(4).hex()}.txt"
    for folder in (tempfile.gettempdir, os.getcwd):
        try:
            path = Path(folder(), name)
            create_private(path, about.encode("utf-8", "backslashreplace"))
        except OSError:
            continue  # the next place, or none
        return f"the report is in {path}: please send it to who maintains this program"
    sys.stderr.write(about)
    return "no report could be written, it stands above"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came of."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [cause for cause in (one.__cause__, one.__context__) if cause is not None]
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions


def _text(name: object) -> str:
    return (
        os.fsdecode(name).encode("utf-8", "backslashreplace").decode()
        if isinstance(name, bytes | str)
        else str(name)
    )
