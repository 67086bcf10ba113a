"""What a run begins to load before its command has been imported: on a second core, that costs no time."""

from __future__ import annotations

from pathlib import Path

from echelon.compute.forking import start_loading
from echelon.config.run import load
from echelon.errors import EchelonError


def begin_loading(config: Path | None, overrides: tuple[str, ...], resume: Path | None) -> None:
    """Let the process that workers are forked from load its libraries, if the run will have workers.

    What is wrong with the run file is not said here: the run reads it again, and says it.

    Args:
        config: the run file; None: that of the folder.
        overrides: settings that the command changes.
        resume: the folder of a run that goes on.
    """
    path = config if config is not None or resume is None else resume / "config.yaml"
    if path is None:
        return
    try:
        settings = load(path, overrides)
    except EchelonError:
        return
    if settings.clock == "real" and settings.learner.kind == "lora":
        start_loading()
