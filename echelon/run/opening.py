"""What comes before a run in its folder, and what becomes of the folder of a run that never began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from echelon.config.run import RunSettings, dump
from echelon.errors import ConfigError
from echelon.preflight.check import everything_wrong
from echelon.preflight.findings import RunFault, together
from echelon.preflight.metrics import check_own_metrics
from echelon.preflight.rules import check_rules
from echelon.private import write_whole
from echelon.provision.manifest_from_settings import secure_terms
from echelon.run.folder import METRICS_FILE, prepare_folder, seconds_waited
from echelon.run.holding import locked, remove_unstarted, resumable
from echelon.run.recorder import Recorder
from echelon.run.waiting import Waited
from echelon.topics import Boundary, load_catalogue
from echelon.wiring.plugins import copy_metrics, copy_rules

CONFIG_FILE = "config.yaml"
RULES_FOLDER = "rules"
"""Sources of the run's own rules, so that it can be resumed from anywhere."""


def check_settings(settings: RunSettings) -> list[str]:
    """Make the run's own rules once, and see that its terms can be signed; nothing is written. Warnings of rules.

    Raises:
        ConfigError: a rule cannot be made, or the settings give no manifest or no topics.
    """
    faults: list[RunFault] = []
    warnings: list[str] = []
    check_rules(settings, faults, warnings)
    check_own_metrics(settings, faults)
    if faults:
        raise together(faults, "the run's rules and metrics")
    secure_terms(settings)
    names = [Boundary(boundary.name) for boundary in settings.boundaries]
    load_catalogue().exchange_topics(names, settings.witness_names())
    return warnings


@contextmanager
def opened_folder(settings: RunSettings, out: Path, *, resume: bool) -> Iterator[float]:
    """Make a run folder, or open that of a run that goes on, and hold it; seconds that earlier lives took.

    Nothing is left of a run that never began.

    Args:
        settings: the run file; a folder that is resumed keeps these from now on.
        out: the folder.
        resume: whether a run goes on there.

    Raises:
        ConfigError: it cannot be written, is in use, or holds another run, or none that could go on.
    """
    existed = out.exists()
    seconds = prepare_folder(settings, out, resume=resume)
    try:
        with locked(out):
            if resume:
                write_whole(out / CONFIG_FILE, dump(settings).encode())
            else:
                copy_rules(settings, out / RULES_FOLDER)
                copy_metrics(settings, out / RULES_FOLDER)
            yield seconds
    finally:
        if not resumable(out):
            remove_unstarted(out, folder_too=not existed)


@contextmanager
def recording(
    settings: RunSettings, out: Path, offset: float, *, resume: bool, begun: float
) -> Iterator[tuple[Recorder, Waited]]:
    """What takes a run's metrics while the block runs, and how long a person has waited for the run.

    Args:
        settings: the run file.
        out: the run folder.
        offset: seconds that earlier lives took.
        resume: whether a run goes on there: its earlier counts and waits are taken up.
        begun: when the command began, of the machine's monotonic clock.

    Raises:
        ConfigError: metrics of earlier lives cannot be read.
    """
    devices = {boundary.name: len(boundary.device_list()) for boundary in settings.boundaries}
    with closing(Recorder(devices, out / METRICS_FILE, offset)) as recorder:
        earlier = 0.0
        if resume:
            recorder.reload()
            earlier = seconds_waited(out, recorder.offset)
        yield recorder, Waited(begun, earlier)


@contextmanager
def saying_everything(settings: RunSettings) -> Iterator[None]:
    """An error of the configuration becomes one that names all else that is wrong with the run file, too."""
    try:
        yield
    except ConfigError as error:
        raise everything_wrong(settings, error) from error
