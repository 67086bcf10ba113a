"""A run that Python starts: on a thread with a loop of its own, so that a notebook's loop goes on."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

from rich.console import Console

from echelon.api.feed import Feed
from echelon.api.result import RunResult
from echelon.cli.logs import LOG_FILE, logging_to, quiet_libraries
from echelon.cli.parents import load_parent
from echelon.cli.progress import event_of
from echelon.config.reading import read_map
from echelon.config.run import MAX_FILE_BYTES, RunSettings, load, parse
from echelon.errors import ConfigError, EchelonError
from echelon.report import build_report
from echelon.report.data import CommitLine, EvaluationLine, MetricLine, WindowLine
from echelon.run.federation import Federation, Result
from echelon.run.folder import write_summary
from echelon.run.opening import (
    CONFIG_FILE,
    RULES_FOLDER,
    check_settings,
    opened_folder,
    recording,
    saying_everything,
)
from echelon.run.recorder import Recorder
from echelon.run.tracking.following import tracked
from echelon.virtual_loop import run_virtual
from echelon.wiring.plugins import look_beside, rules_of

Event: TypeAlias = WindowLine | CommitLine | EvaluationLine | MetricLine
"""A window of a boundary, a commit, an evaluation of a commit by a boundary, or an own metric. All of them are
aggregates, or computed from the final adapter."""

Metric: TypeAlias = Callable[[RunResult], float]
_KINDS: dict[str, type[WindowLine] | type[CommitLine] | type[EvaluationLine] | type[MetricLine]] = {
    "window": WindowLine,
    "commit": CommitLine,
    "eval": EvaluationLine,
    "metric": MetricLine,
}


@dataclass(frozen=True)
class _Line:
    event: Event | None
    text: str


@dataclass
class Run:
    """A federation in this process, as `echelon run` runs it.

    `start` begins it and returns at once. Then follow it, with `async for event in run.events()` or
    `for event in run.events()`, and take its result, with `await run` or `run.result()`.

    Args:
        settings: the run file.
        out: the run folder to make; None: `runs/NAME`.
        start_from: a finished run, or an adapter folder, to start from; None: an adapter drawn from the seed.
        metrics: own metrics by name, besides those that devices compute, which the settings list. They are computed in
            this process, once, from the finished run, and stand in its result, its events, its files and its trackers.
        on_window: called with each window of each boundary.
        on_commit: called with each commit.
    """

    settings: RunSettings
    out: Path | None = None
    start_from: str | Path | None = None
    metrics: Mapping[str, Metric] = field(default_factory=dict)
    on_window: Callable[[WindowLine], object] | None = None
    on_commit: Callable[[CommitLine], object] | None = None

    def __post_init__(self) -> None:
        self.folder = Path(self.out) if self.out is not None else Path("runs") / self.settings.name
        self._resumes = False
        self._feed: Feed[_Line] = Feed()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._cancel: Callable[[], None] | None = None
        self._stopped = False
        self._outcome: RunResult | BaseException | None = None

    # ---- making ----------------------------------------

    @classmethod
    def from_yaml(cls, path: str | Path, *, out: str | Path | None = None, **overrides: Any) -> Self:
        """A run of a run file.

        Args:
            path: the YAML file.
            out: as of `Run`.
            overrides: settings of the file by the names of its top level. A map changes what it names, anything else
                replaces what stands there: `budget={"commits": 2}, seed=7`.

        Raises:
            ConfigError: the file, or what was changed of it, is no run file; the message says what and where.
        """
        look_beside(Path(path).absolute().parent)
        fields = read_map(Path(path), "run file", MAX_FILE_BYTES)
        return cls(parse(_merged(fields, overrides), str(path)), None if out is None else Path(out))

    @classmethod
    def from_settings(cls, fields: Mapping[str, Any], *, out: str | Path | None = None) -> Self:
        """A run of settings that stand in a map, as a run file would have them.

        Raises:
            ConfigError: they are no settings of a run; the message says what and where.
        """
        return cls(parse(dict(fields), "settings"), None if out is None else Path(out))

    @classmethod
    def resume(cls, folder: str | Path) -> Self:
        """The rest of a run that was stopped, or died, in its folder.

        Raises:
            ConfigError: no run is there that could go on.
        """
        look_beside(Path(folder) / RULES_FOLDER)
        run = cls(load(Path(folder) / CONFIG_FILE), Path(folder))
        run._resumes = True
        return run

    # ---- running ----------------------------------------

    def start(self) -> Self:
        """Begin, and return at once. Errors come out of `result`.

        Raises:
            ConfigError: it was started before.
        """
        with self._lock:
            if self._thread is not None:
                raise ConfigError("this run was started before: make another one, or go on with Run.resume")
            self._thread = threading.Thread(
                target=self._work, name=f"echelon {self.settings.name}", daemon=True
            )
        self._thread.start()
        return self

    def stop(self) -> None:
        """Stop cleanly; `result` then raises, and `Run.resume` goes on."""
        with self._lock:
            self._stopped = True
            cancel = self._cancel
        if cancel is not None:
            cancel()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._outcome is not None

    def events(self) -> RunEvents:
        """Everything from the run's beginning on, as it happens: for `async for` and for `for` alike."""
        return RunEvents(self._feed)

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for the end. Starts the run, if that was not done.

        Args:
            timeout: seconds to wait at most; None: no bound.

        Raises:
            TimeoutError: it goes on after so many seconds.
            EchelonError: it failed, or was stopped.
        """
        if self._thread is None:
            self.start()
        assert self._thread is not None
        self._thread.join(timeout)
        if self._outcome is None:
            raise TimeoutError(f"the run goes on after {timeout} s")
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return self._outcome

    def __await__(self) -> Generator[Any, None, RunResult]:
        return self._finished().__await__()

    async def _finished(self) -> RunResult:
        if self._thread is None:
            self.start()
        async for _ in self._feed:
            pass
        return self.result()

    def show(self, console: Console | None = None) -> RunResult:
        """Print what happens, in words, until the end; coloured where the console can do so, as in a notebook.

        Args:
            console: where to; None: stdout.

        Returns:
            The result.

        Raises:
            EchelonError: it failed, or was stopped.
        """
        where = console or Console(highlight=False)
        if self._thread is None:
            self.start()
        for line in self._feed:
            if line.text:
                where.print(line.text, markup=False)
        return self.result()

    # ---- on its own thread ----------------------------------------

    def _work(self) -> None:
        try:
            self._outcome = self._run()
        except asyncio.CancelledError:
            self._outcome = EchelonError(f"the run was stopped; go on with Run.resume({str(self.folder)!r})")
        except BaseException as error:  # whoever asks for the result gets it
            self._outcome = error
        finally:
            self._feed.end()

    def _run(self) -> RunResult:
        begun = time.monotonic()
        settings, out = self.settings, self.folder
        if both := sorted({metric.name for metric in settings.metrics} & set(self.metrics)):
            raise ConfigError(
                f"two metrics are called {both[0]!r}, one that devices compute and one of the finished run: give each "
                "a name of its own"
            )
        quiet_libraries()
        for warning in check_settings(settings):
            self._say(f"warning: {warning}")
        parent = None if self.start_from is None else load_parent(str(self.start_from), rules_of(settings))
        with opened_folder(settings, out, resume=self._resumes) as offset, ExitStack() as stack:
            recorder, waited = stack.enter_context(
                recording(settings, out, offset, resume=self._resumes, begun=begun)
            )
            recorder.listeners.append(self._take)
            stack.enter_context(logging_to(out / LOG_FILE, to_stderr=False, tell=lambda _text: None))
            stack.enter_context(tracked(settings, out, recorder))
            federation = Federation(
                settings, out, recorder, resume=self._resumes, status=self._say, parent=parent, waited=waited
            )
            with saying_everything(settings):
                result = self._on_its_clock(federation)
            try:
                return self._measured(result, recorder)
            finally:
                build_report(out)

    def _measured(self, result: Result, recorder: Recorder) -> RunResult:
        """The finished run with its own metrics, which are written where the run's other figures stand.

        Raises:
            EchelonError: one of them failed. The others are computed all the same.
        """
        found, failed = RunResult.of(self.folder, result, self.settings.model), []
        for name, metric in self.metrics.items():
            try:
                value = float(metric(found))
                if not math.isfinite(value):
                    raise ValueError(f"it gave {value}")
            except Exception as error:  # it is somebody's code, and may raise anything
                failed.append((name, error))
                continue
            found.metrics[name] = value
            recorder.write("metric", recorder.now, name=name, value=value, commit=recorder.commits)
        if not self.metrics:
            return found
        summary = {**result.summary, "metrics": found.metrics}
        write_summary(self.folder, summary)
        if failed:
            why = "; ".join(f"{name!r} ({type(error).__name__}: {error})" for name, error in failed)
            raise EchelonError(
                f"the run is finished, but not all of its own metrics: {why}; "
                f"echelon.RunResult.read({str(self.folder)!r}) gives its result"
            ) from failed[0][1]
        return replace(found, summary=found.summary.model_copy(update={"metrics": found.metrics}))

    def _on_its_clock(self, federation: Federation) -> Result:
        if self.settings.clock == "virtual":
            return run_virtual(lambda: self._cancellable(federation))
        return asyncio.run(self._cancellable(federation))

    async def _cancellable(self, federation: Federation) -> Result:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None

        def cancel() -> None:
            loop.call_soon_threadsafe(task.cancel)

        with self._lock:
            self._cancel = cancel
            stopped = self._stopped
        if stopped:
            raise asyncio.CancelledError
        try:
            return await federation.run()
        finally:
            with self._lock:
                self._cancel = None

    def _say(self, text: str) -> None:
        self._feed.add(_Line(None, text))

    def _take(self, line: dict[str, Any]) -> None:
        told = event_of(line)
        kind = _KINDS.get(line["kind"])
        event = None if kind is None else kind.model_validate(line)
        if isinstance(event, WindowLine) and self.on_window is not None:
            self.on_window(event)
        elif isinstance(event, CommitLine) and self.on_commit is not None:
            self.on_commit(event)
        if event is not None or told is not None:
            self._feed.add(_Line(event, "" if told is None else told.text))


class RunEvents:
    """The events of a run; see `Run.events`."""

    def __init__(self, feed: Feed[_Line]) -> None:
        self._feed = feed

    def __iter__(self) -> Iterator[Event]:
        return (line.event for line in self._feed if line.event is not None)

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for line in self._feed:
            if line.event is not None:
                yield line.event


def _merged(fields: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with what the changes say; maps are merged, anything else is replaced."""
    found = dict(fields)
    for name, value in changes.items():
        there = found.get(name)
        both = isinstance(value, Mapping) and isinstance(there, dict)
        found[name] = _merged(there, value) if both and isinstance(there, dict) else value
    return found
