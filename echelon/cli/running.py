"""`echelon run`, behind its arguments: prepare the folder, run on the right clock, and say what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from echelon import __version__
from echelon.allocator import VECTOR_BYTES, map_large_blocks
from echelon.audit.findings import Code, Severity
from echelon.cli import closing
from echelon.cli.lines import LineProgress
from echelon.cli.live import LiveProgress
from echelon.cli.logs import LOG_FILE, logging_to, quiet_libraries, stderr_to
from echelon.cli.output import FAILED, print_json, show_error
from echelon.cli.parents import load_parent
from echelon.cli.progress import ProgressDisplay, Story
from echelon.cli.stopping import Stopped, Stopper
from echelon.compute.warm_start import Parent
from echelon.config.run import RunSettings, load
from echelon.errors import ConfigError, EchelonError
from echelon.messages.stored import ANEW, stored
from echelon.report import build_report
from echelon.run.federation import Federation, Result
from echelon.run.folder import METRICS_FILE, SUMMARY_FILE
from echelon.run.holding import resumable
from echelon.run.opening import (
    CONFIG_FILE,
    RULES_FOLDER,
    check_settings,
    opened_folder,
    recording,
    saying_everything,
)
from echelon.run.tracking.following import tracked
from echelon.unforeseen import disk_full, explained
from echelon.virtual_loop import run_virtual
from echelon.wiring.plugins import look_beside, rules_of

ADJUSTABLE = ("compute", "window", "cost", "simulation", "logging")
"""Sections that a resumed run may change; the rest is fixed by the signed manifest."""


@dataclass(frozen=True)
class RunArguments:
    """The arguments of `echelon run`, and when it began, by the machine's monotonic clock."""

    config: Path | None
    out: Path | None
    overrides: tuple[str, ...]
    resume: Path | None
    as_json: bool
    quiet: bool
    start: str | None = None
    begun: float = field(default_factory=time.monotonic)


def execute(order: RunArguments) -> int:
    """Carry out an order; the exit code.

    Raises:
        ConfigError: it cannot be carried out as it stands; nothing is left behind.
    """
    settings, out = _settings(order)
    for warning in check_settings(settings):
        _say(f"warning: {warning}")
    parent = None if order.start is None else load_parent(order.start, rules_of(settings))
    try:
        with opened_folder(settings, out, resume=order.resume is not None) as offset:
            with saying_everything(settings):
                result = _run(order, settings, out, offset, parent)
            return _close(order, out, result)
    except Stopped as stopped:
        typed = "stopped cleanly" if resumable(out) else "stopped before training began"
        _say(f"{typed}; {_way_on(out)}")
        return stopped.code
    except ConfigError:
        raise
    except EchelonError as error:
        show_error(disk_full(error) or str(error))
        _say(_way_on(out))
        return FAILED
    except Exception as error:
        # Training that has begun can go on, whatever it was.
        show_error(explained(error, __version__))
        _say(_way_on(out))
        return FAILED


def _settings(order: RunArguments) -> tuple[RunSettings, Path]:
    """The settings to run with, and the run folder."""
    if order.resume is None:
        if order.config is None:
            raise ConfigError(
                "name a run file (examples/quickstart.yaml is one), or a folder to go on with: --resume DIR"
            )
        look_beside(order.config.absolute().parent)
        settings = load(order.config, order.overrides)
        return settings, order.out or Path("runs") / settings.name
    if order.start is not None:
        raise ConfigError(
            "--from starts a new run, and --resume goes on with an old one: leave one of them out"
        )
    if order.out is not None and order.out.resolve() != order.resume.resolve():
        raise ConfigError(
            "--out and --resume name different folders: a resumed run goes on in its own; leave out --out"
        )
    stored_file = order.resume / CONFIG_FILE
    if not stored_file.is_file():
        raise ConfigError(
            f"{order.resume} holds no run that could be resumed: {CONFIG_FILE} is missing there"
        )
    look_beside(order.resume / RULES_FOLDER)
    stored = load(stored_file)
    settings = load(order.config or stored_file, order.overrides)
    before, after = stored.model_dump(), settings.model_dump()
    fixed = [name for name in before if before[name] != after[name] and name not in ADJUSTABLE]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)}: not as in {order.resume}, whose signed manifest fixes it. Resume it as it is, "
            f"or start a new one with --out; a resumed run may change {', '.join(ADJUSTABLE)}"
        )
    return settings, order.resume


def _run(
    order: RunArguments, settings: RunSettings, out: Path, offset: float, parent: Parent | None
) -> Result:
    """Run the federation while it is shown."""
    quiet_libraries()
    virtual = settings.clock == "virtual"
    resume = order.resume is not None
    on_terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not order.quiet
    with ExitStack() as stack:
        # First of all, so that a signal is taken from here on, before anything can be seen of the run.
        progress: ProgressDisplay = Silent()
        stopper = stack.enter_context(Stopper(lambda: progress.stopping(), lambda: progress.abandon()))
        recorder, waited = stack.enter_context(
            recording(settings, out, offset, resume=resume, begun=order.begun)
        )
        story = Story(settings.name, settings.budget, recorder, virtual=virtual, waited=waited)
        if resume:
            for line in _lines(out / METRICS_FILE):
                story.recall(line)
        if order.quiet:
            pass
        elif on_terminal:
            progress = LiveProgress(story, stack.enter_context(stderr_to(out / LOG_FILE)))
        else:
            progress = LineProgress(story, sys.stderr)
        stack.enter_context(progress)
        stack.enter_context(logging_to(out / LOG_FILE, to_stderr=not on_terminal, tell=progress.warn))
        stack.enter_context(tracked(settings, out, recorder))
        federation = Federation(
            settings,
            out,
            recorder,
            resume=resume,
            status=progress.status,
            parent=parent,
            waited=waited,
        )
        if virtual:
            return run_virtual(lambda: stopper.run(federation.run))
        # Holes in the heap would take half as much as all devices' vectors together.
        map_large_blocks(VECTOR_BYTES)
        return asyncio.run(stopper.run(federation.run))


class Silent(ProgressDisplay):
    """Shows nothing."""

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""

    def status(self, text: str) -> None:
        """Nothing."""

    def warn(self, text: str) -> None:
        """Nothing: the log has it, and stderr."""

    def stopping(self) -> None:
        """Nothing."""

    def abandon(self) -> None:
        """Nothing."""


def _lines(path: Path) -> Iterator[dict[str, object]]:
    """The whole lines of a metrics file."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as file:
            for text in file:
                if text.endswith("\n"):
                    with stored(f"{path}: the line {text[:60]!r}", ConfigError, advice=ANEW):
                        line = json.loads(text)
                    yield line


def _close(order: RunArguments, out: Path, result: Result) -> int:
    """The report, the closing table, and the exit code."""
    try:
        page = build_report(out)
    except OSError as error:
        raise EchelonError(
            f"the run ended, but its report could not be written to {out}: {error.strerror}"
        ) from error
    files = {"adapter": f"{out / 'adapter'}", "report": f"{page}", "summary": f"{out / SUMMARY_FILE}"}
    if order.as_json:
        print_json({**result.summary, "files": files})
    elif not order.quiet:
        alarms = [
            str(finding)
            for finding in result.audit.findings
            if finding.severity is not Severity.INFO and finding.code is not Code.UNPINNED
        ]
        shown = files | {
            "verify with": f"echelon audit verify {out}",
            "genesis": result.audit.genesis_sha256.hex(),
        }
        outcome = closing.ClosingSummary.model_validate(result.summary)
        closing.show(Console(highlight=False), outcome, shown, alarms)
    return 0 if result.audit.ok else FAILED


def _way_on(out: Path) -> str:
    if (out / SUMMARY_FILE).exists():
        return f"the run itself is finished: its results are in {out}"
    if not resumable(out):
        return f"nothing is left in {out}"
    return f"go on with: echelon run --resume {out}"


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
