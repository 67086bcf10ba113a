"""Runs seeds one after another, in this process or several, and says which invariants did not hold."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import resource_tracker

from echelon.errors import EchelonError
from echelon.sim.coverage import Coverage
from echelon.sim.draw import draw
from echelon.sim.invariants import Violation, check
from echelon.sim.schedule import Schedule
from echelon.sim.signature_cache import remembering
from echelon.sim.world import play

BATCH = 8
"""Seeds that a worker is given at once."""
POLL_S = 0.25
"""Seconds of real time after which it is asked again whether to stop."""


class WorkerLost(EchelonError):
    """A process that ran seeds has died; the message says what to do."""


@dataclass(frozen=True)
class SeedVerdict:
    """One run.

    Attributes:
        seed: of its schedule.
        findings: what did not hold.
        digest: of its records; the same schedule gives the same one.
        coverage: the states that it was in.
        cpu: seconds of CPU that it took.
        seconds: virtual ones.
    """

    seed: int
    findings: tuple[Violation, ...]
    digest: str
    coverage: Coverage
    cpu: float
    seconds: float


@dataclass
class Summary:
    """Many runs.

    Attributes:
        ran: the seeds that were run.
        failed: verdicts with findings, by seed.
        coverage: states over all of them.
        cpu: seconds of CPU.
        wall: seconds of real time.
    """

    ran: set[int] = field(default_factory=set)
    failed: dict[int, SeedVerdict] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)
    cpu: float = 0.0
    wall: float = 0.0

    @property
    def seeds(self) -> int:
        """How many were run."""
        return len(self.ran)

    def add(self, verdict: SeedVerdict) -> None:
        """One more run."""
        self.ran.add(verdict.seed)
        self.cpu += verdict.cpu
        self.coverage.add(verdict.coverage)
        if verdict.findings:
            self.failed[verdict.seed] = verdict


def judge(schedule: Schedule) -> SeedVerdict:
    """Run a schedule and check every invariant. An error of the simulation itself is a finding, too."""
    begun = time.process_time()
    try:
        with remembering():
            outcome = play(schedule)
            findings = check(outcome)
        digest, coverage, seconds = outcome.digest(), outcome.coverage, outcome.seconds
    except Exception as error:  # whatever it is, it belongs to this seed, and the next one is to run
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('/')[2]}:{place.lineno}"
        findings = [Violation("no-error", f"{type(error).__name__} at {where}: {error}")]
        digest, coverage, seconds = "", Coverage(), 0.0
    cpu = time.process_time() - begun
    return SeedVerdict(
        seed=schedule.seed,
        findings=tuple(findings),
        digest=digest,
        coverage=coverage,
        cpu=cpu,
        seconds=seconds,
    )


def _judge_all(seeds: tuple[int, ...]) -> list[SeedVerdict]:
    return [judge(draw(seed)) for seed in seeds]


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides when it is over
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    gc.set_threshold(50_000, 20, 50)


@contextmanager
def _out_of_hearing() -> Iterator[None]:
    """Processes that are started inside hear no Ctrl-C until `_start` is through; this one hears it afterwards.

    A new process inherits the mask. Without it, Ctrl-C would end one that is still importing, with a traceback.
    """
    resource_tracker.ensure_running()  # started inside, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def explore(
    seeds: Iterable[int], *, workers: int = 1, stopped: Callable[[], bool] = lambda: False
) -> Iterator[SeedVerdict]:
    """Verdicts of seeds, as they come; with one worker in order and in this process.

    Once `stopped` says so, no other seed is begun: one worker sees the seed through that it is at; several, and those
    of an iteration that is left early, are ended with the batches that they are at.

    Args:
        seeds: each is one federation with its faults.
        workers: processes; 1: none besides this one.
        stopped: asked between seeds.

    Raises:
        WorkerLost: a process died, and it was not stopped.
    """
    if workers == 1:
        for seed in seeds:
            if stopped():
                return
            yield judge(draw(seed))
        return
    todo = iter(seeds)
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start)
    running: set[Future[list[SeedVerdict]]] = set()
    try:
        while not stopped():
            while len(running) < 2 * workers:
                batch = tuple(itertools.islice(todo, BATCH))
                if not batch:
                    break
                with _out_of_hearing():
                    running.add(pool.submit(_judge_all, batch))
            if not running:
                return
            done, running = wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
            for future in done:
                yield from future.result()
    except BrokenProcessPool as error:
        time.sleep(POLL_S)  # a signal to the whole group of processes may reach a worker first
        if not stopped():
            raise WorkerLost(
                "a process that ran seeds died, maybe for want of memory: go on with fewer --workers"
            ) from error
    finally:
        for worker in set(multiprocessing.active_children()) - others if running else ():
            worker.kill()
        pool.shutdown(cancel_futures=True)


def explore_all(
    seeds: Iterable[int],
    *,
    workers: int = 1,
    told: Callable[[SeedVerdict, Summary], bool | None] = lambda *_: None,
    stopped: Callable[[], bool] = lambda: False,
    summary: Summary | None = None,
) -> Summary:
    """Run them all and add up; `told` hears of each run, and ends the exploration by returning False.

    Args:
        seeds: to run, each once.
        workers: processes; with one, everything is run in this process.
        told: called with each verdict and what it adds up to.
        stopped: ends the exploration, too; see `explore`.
        summary: to add to; what it has then is there even if this raises.

    Raises:
        WorkerLost: see `explore`.
    """
    summary = Summary() if summary is None else summary
    begun = time.monotonic()
    for verdict in explore(seeds, workers=workers, stopped=stopped):
        summary.add(verdict)
        summary.wall = time.monotonic() - begun
        if told(verdict, summary) is False:
            break
    return summary
