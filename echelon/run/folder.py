"""The run folder: what its files are called, who may read them, and whether a run may start or go on in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from echelon.config.reading import read_text
from echelon.config.run import RunSettings, dump
from echelon.errors import ConfigError
from echelon.private import close_file, close_tree, private_folder, write_whole
from echelon.run.recorder import last_time

MAX_STATE_FILE = 1 << 20
"""Largest file of progress or losses: one line for each boundary."""

MANIFEST_FILE, INITIAL_FILE, PROGRESS_FILE = "manifest.dsse", "initial.f32", "progress.json"
SAMPLES_FILE, SUMMARY_FILE, METRICS_FILE = "samples.json", "summary.json", "metrics.jsonl"
PRIVATE_FOLDERS = ("brokers", "state")
"""Of a run folder: brokers' logs, and actors' state and keys. Nobody but the owner may read them."""


def prepare_folder(settings: RunSettings, out: Path, *, resume: bool) -> float:
    """Create the run folder, or look into the one that is to be resumed; seconds that earlier lives took.

    What only the owner may read is closed to everybody else, also where an earlier version left it open.

    Args:
        settings: the run file, which a new folder keeps as it was used.
        out: the folder.
        resume: go on from what the folder holds.

    Raises:
        ConfigError: it cannot be written, is in use for another run, or was finished already.
    """
    if resume:
        if not (out / "state" / MANIFEST_FILE).exists():
            raise ConfigError(f"{out} holds no run that could be resumed: leave --resume out to start one")
        if (out / SUMMARY_FILE).exists():
            raise ConfigError(
                f"the run in {out} is finished: see its summary.json, or start a new one with --out"
            )
        _close(out)
        return _seconds_taken(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise ConfigError(
                f"{out} is not empty: name another folder with --out, or go on with it by --resume {out}"
            )
        for name in PRIVATE_FOLDERS:
            private_folder(out / name)
        write_whole(out / "config.yaml", dump(settings).encode())
    except OSError as error:
        raise ConfigError(
            f"the run folder {out} cannot be written ({error.strerror}): choose another with --out"
        ) from error
    return 0.0


def write_summary(out: Path, summary: Mapping[str, Any]) -> None:
    """Write what a run ended with.

    Args:
        out: the run folder.
        summary: what `RunSummary` reads, and figures of the run's own.
    """
    write_whole(out / SUMMARY_FILE, json.dumps(summary, indent=2).encode() + b"\n")


def seconds_waited(out: Path, taken: float) -> float:
    """How long earlier commands of a run took, from their starts to their ends.

    Args:
        out: the run folder.
        taken: seconds for which actors ran in them. A command that was killed wrote no more than that.
    """
    return max(taken, _progress(out, "waited", 0.0))


def _seconds_taken(out: Path) -> float:
    """How long earlier lives of a run took.

    The file is written anew all the time and says nothing that the metrics do not say, a little later: where it cannot
    be read, as after a full disk, they are asked.
    """
    found = _progress(out, "seconds", -1.0)
    return found if found >= 0 else last_time(out / METRICS_FILE)


def _progress(out: Path, name: str, default: float) -> float:
    """A number of the progress file; the default where it has none, or cannot be read."""
    path = out / "state" / PROGRESS_FILE
    try:
        return float(json.loads(read_text(path, "state file", MAX_STATE_FILE))[name])
    except (ConfigError, ValueError, KeyError, TypeError):
        return default


def _close(out: Path) -> None:
    """Close what a run folder holds for its owner alone.

    Raises:
        ConfigError: that cannot be done.
    """
    try:
        for name in PRIVATE_FOLDERS:
            if (out / name).exists():
                close_tree(out / name)
        close_file(out / SAMPLES_FILE)
    except OSError as error:
        raise ConfigError(
            f"{error.filename} cannot be closed to other users ({error.strerror}): resume as the run's owner"
        ) from error
