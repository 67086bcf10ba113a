"""The file of `audit verify --incremental`: read, held against the source, and written anew in one step."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from echelon import __version__
from echelon.audit.findings import Report
from echelon.audit.incremental import OpenFrom, verify_new
from echelon.audit.progress import MAX_STATE_BYTES, AuditProgress
from echelon.config.reading import read_file
from echelon.errors import ConfigError, StateError


@dataclass
class StateFile:
    """The state between two verifications.

    Attributes:
        path: the file; it may not be there yet.
        compare_all: hold all of the verified part against the source.
        said: what a person should know of this verification, once it was made.
    """

    path: Path
    compare_all: bool = False
    said: str = field(default="", init=False)

    def verify(self, names: Iterable[str], open_from: OpenFrom, **options: Any) -> Report:
        """Verify what is new, and keep how far it went.

        Args:
            names: topics of the exchange.
            open_from: reads a topic from an offset on.
            **options: arguments of `Verifier`.

        Raises:
            ConfigError: the file cannot be read or written, is damaged, or is of another run or version.
        """
        try:
            outcome = verify_new(
                names, open_from, self._read(), reader=__version__, compare_all=self.compare_all, **options
            )
        except StateError as error:
            raise ConfigError(f"--incremental {self.path}: {error}") from error
        if outcome.progress is not None:
            write_file(self.path, outcome.progress.encode(), "--incremental")
            self.said = f"{outcome.began} records were verified before; {self.path} has the new state"
        else:
            self.said = f"{self.path} was not written: {outcome.why_not}"
        return outcome.report

    def _read(self) -> AuditProgress | None:
        if not os.path.lexists(self.path):
            return None
        data = read_file(self.path, "--incremental", MAX_STATE_BYTES)
        return AuditProgress.decode(data, reader=__version__)


def write_file(path: Path, data: bytes, option: str) -> None:
    """Put a file in place whole or not at all, readable by its owner alone.

    Args:
        path: the file; it is replaced if it is there.
        data: its bytes.
        option: name of the command's option that named the file.

    Raises:
        ConfigError: it cannot be written; `option` says whose file it is.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written ({error.strerror})") from error
