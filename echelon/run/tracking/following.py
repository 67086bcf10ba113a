"""The trackers that a run file asks for, fed by the recorder. One that fails is left out; the run goes on."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from echelon.config.run import RunSettings
from echelon.run.recorder import Recorder
from echelon.run.tracking.mlflow import MLflow
from echelon.run.tracking.tensorboard import FOLDER, TensorBoard
from echelon.run.tracking.wandb import WandB

log = logging.getLogger(__name__)

PATIENCE = 30.0
"""Seconds that the end of a run waits for what a tracker has not yet taken."""
MOST = 1 << 17
"""Lines that may wait for a tracker: days of a run. A tracker that is further behind is given up."""


class Tracker(Protocol):
    """Takes lines of metrics, in their order. Any method may raise; it is then not called again."""

    def take(self, line: Mapping[str, Any]) -> None:
        """Take one line."""

    def close(self) -> None:
        """Write what is left."""


class TrackerFollower:
    """A tracker on a thread of its own: a slow server holds up nothing, and a failure is one line in the log.

    Args:
        name: of the tracker, for people.
        tracker: what takes the lines.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._waiting: queue.Queue[Mapping[str, Any] | None] = queue.Queue(MOST)
        self._failed = False
        self._thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)
        self._thread.start()

    def take(self, line: Mapping[str, Any]) -> None:
        """Hand a line over; returns at once."""
        if not self._failed:
            try:
                self._waiting.put_nowait(line)
            except queue.Full:
                self._fail("it does not keep up")

    def close(self, patience: float = PATIENCE) -> None:
        """Wait until all is taken.

        Args:
            patience: seconds to wait at most; the run's own files have everything in any case.
        """
        if not self._failed:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                self._fail("it does not keep up")
            self._thread.join(patience)
            if self._thread.is_alive():
                self._fail(f"it did not take everything within {patience:g} s after the end")

    def _work(self) -> None:
        try:
            while (line := self._waiting.get()) is not None:
                if self._failed:
                    return
                self._tracker.take(line)
            self._tracker.close()
        except Exception as error:  # whatever a library raises: the run has its own files
            reason = " ".join(str(error).split())[:200]
            self._fail(f"{type(error).__name__}: {reason}" if reason else type(error).__name__)

    def _fail(self, why: str) -> None:
        if not self._failed:
            self._failed = True
            log.warning("%s is left out from here on, and the run goes on: %s", self._name, why)


@contextmanager
def tracked(settings: RunSettings, out: Path, recorder: Recorder) -> Iterator[None]:
    """Feed the trackers of a run file while the block runs.

    Args:
        settings: the run file.
        out: the run folder.
        recorder: whose lines are taken; those of earlier lives are not sent again.

    Raises:
        ConfigError: a package of a tracker is not installed.
    """
    wanted, offset = settings.logging, recorder.offset
    trackers: dict[str, Tracker] = {}
    if wanted.tensorboard:
        trackers["TensorBoard"] = TensorBoard(out / FOLDER, offset)
    if wanted.mlflow is not None:
        trackers["MLflow"] = MLflow(wanted.mlflow, settings.name, out, offset)
    if wanted.wandb is not None:
        trackers["W&B"] = WandB(wanted.wandb, settings.name, out)
    followers = [TrackerFollower(name, tracker) for name, tracker in trackers.items()]
    recorder.listeners += [follower.take for follower in followers]
    try:
        yield
    finally:
        for follower in followers:
            follower.close()
