"""Aggregated metrics as TensorBoard events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from echelon.errors import ConfigError
from echelon.run.tracking.scalars import scalars

FOLDER = "tensorboard"


class _Events(Protocol):
    def add_event(self, event: object) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """A listener of the recorder that writes scalars.

    Steps are commits for what concerns the global adapter, and windows for what concerns one boundary's.

    Args:
        folder: where event files go; made if it is missing.
        offset: seconds that earlier lives of the run took.

    Raises:
        ConfigError: the package is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path, offset: float = 0.0) -> None:
        try:
            from tensorboard.compat.proto.event_pb2 import Event
            from tensorboard.compat.proto.summary_pb2 import Summary
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise ConfigError(
                "logging.tensorboard needs the package tensorboard: install the extra `echelon[tensorboard]`, "
                "or set logging.tensorboard to false"
            ) from error
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._events: _Events = EventFileWriter(str(folder))
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written ({error.strerror}): choose another --out"
            ) from error
        self._event, self._summary = Event, Summary
        self._begun = time.time() - offset
        self._commit = 0

    def take(self, line: Mapping[str, Any]) -> None:
        """Write what a line says."""
        if line["kind"] == "commit":
            self._commit = line["commit"]
        for name, value, step in scalars(line, self._commit):
            summary = self._summary(value=[self._summary.Value(tag=name, simple_value=value)])
            self._events.add_event(self._event(wall_time=self._begun + line["t"], step=step, summary=summary))

    def close(self) -> None:
        """Write what is buffered."""
        self._events.close()
