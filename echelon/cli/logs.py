"""Where warnings go during a run: always to `RUN/echelon.log`, and to stderr when no live display owns it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from echelon.private import append_private

LOG_FILE = "echelon.log"


class Counting(logging.Handler):
    """Counts what it is given and passes each message on."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.count = 0
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Take one record."""
        self.count += 1
        self._tell(record.getMessage())


class LogFile(logging.FileHandler):
    """A log file that, once it cannot be written, says so in one line and not by a traceback for each record."""

    def __init__(self, path: Path, tell: Callable[[str], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._path, self._say, self._told = path, tell, False

    def handleError(self, record: logging.LogRecord) -> None:  # logging's name
        """Say it once."""
        if not self._told:
            self._told = True
            self._say(f"the log {self._path} cannot be written any more: {sys.exc_info()[1]}")

    def close(self) -> None:
        """Close it; what could not be written is lost."""
        with suppress(OSError):
            super().close()


@contextmanager
def logging_to(path: Path, *, to_stderr: bool, tell: Callable[[str], None]) -> Iterator[Counting]:
    """Send warnings and errors of all loggers to a file while the block runs.

    Args:
        path: the log file; appended to.
        to_stderr: also print them.
        tell: also given each message, for the live display.
    """
    os.close(append_private(path))
    written = LogFile(path, tell)
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    counting = Counting(tell)
    handlers: list[logging.Handler] = [written, counting]
    if to_stderr:
        printed = logging.StreamHandler(sys.stderr)
        printed.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
        handlers.append(printed)
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield counting
    finally:
        logging.captureWarnings(False)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(level)


@contextmanager
def stderr_to(path: Path) -> Iterator[int]:
    """Send file descriptor 2 to a file while the block runs; yields a descriptor of the real stderr.

    Training workers and native libraries write to descriptor 2 directly; on a terminal that would tear the
    live display. The display itself is drawn on the descriptor that is yielded.
    """
    sys.stderr.flush()
    real = os.dup(2)
    log = append_private(path)
    try:
        os.dup2(log, 2)
        os.close(log)
        yield real
    finally:
        # A test's stand-in for stderr may be closed already, and the log may lie on a full disk.
        with suppress(ValueError, OSError):
            sys.stderr.flush()
        os.dup2(real, 2)
        os.close(real)


def quiet_libraries() -> None:
    """Keep libraries' progress bars and advice out of a run's output; workers inherit the settings."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
