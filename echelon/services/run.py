"""A service from its start to its end: it becomes somebody, runs its actor, starts it again, and stops in time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from echelon import __version__
from echelon.actors.controller import Controller
from echelon.actors.device import Device
from echelon.actors.gate import Gate
from echelon.actors.runtime import DRAIN_SECONDS, Services, watch_loop
from echelon.actors.state import StateStore
from echelon.actors.supervision import DiskPatience, ServicePatience, supervise
from echelon.allocator import map_large_blocks
from echelon.bus import Bus, open_bus
from echelon.clock import Offload
from echelon.config.broker import BrokerSettings
from echelon.errors import (
    BusError,
    ConfigError,
    EchelonError,
    StorageError,
    TrainingError,
)
from echelon.private import write_private
from echelon.rounds.effects import Note
from echelon.services.config import ControllerConfig, ServiceConfig
from echelon.services.health import Health, State
from echelon.services.http import HttpServer
from echelon.services.journal import tell
from echelon.services.key_changes import watch_changes
from echelon.services.locks import lock_state
from echelon.services.logs import logging_as
from echelon.services.metrics import Metrics
from echelon.services.role import Actor, ServiceRole, check_identity
from echelon.services.roles import role_of
from echelon.services.standing import commit_times, standing
from echelon.services.waiting import Waiting
from echelon.unforeseen import disk_full, explained

T = TypeVar("T")
GOOD, FAILED, WRONG = 0, 1, 2
"""Exit codes: the run was closed, or the service was asked to stop; it failed; its configuration is wrong."""
LOCK_SECONDS = 5.0
"""How long the state folder may still be in use by a process that is just ending."""
LAST_SECONDS = 0.5
"""Of the time for stopping: for ending the process itself."""
AT_ONCE_SECONDS = 1.0
"""For closing what is open after a second signal."""
LOOK_SECONDS = 0.5
"""Between two looks at the broker connections."""
STALL_TICK = 0.05
THREADS = 4
HTTP_FILE, STATE_FILE = "http.json", "state.db"


def run_service(config: ServiceConfig, *, close: bool = False) -> int:
    """Run a service until the run is closed or a signal ends it; returns the exit code.

    The first SIGTERM or SIGINT stops it in order within `config.shutdown` seconds, the second at once.

    Args:
        config: which service, and its files.
        close: a controller closes the run at once, whatever its budget says.

    Raises:
        ConfigError: a file does not fit the others; nothing was started.
    """
    map_large_blocks()
    role = role_of(config)
    with logging_as(config.log, role.facts):
        return asyncio.run(_serve(config, role, close))


async def _serve(config: ServiceConfig, role: ServiceRole, close: bool) -> int:
    service = Service(config, role, close=close)
    code = await service.run()
    if service.left_over:
        # A training job that is still running would hold the process up, and nobody waits for what it finds.
        service.log.info("ended with a training job under way")
        logging.shutdown()
        os._exit(code)
    return code


class Service:
    """One process's actor, and what is around it."""

    def __init__(self, config: ServiceConfig, role: ServiceRole, *, close: bool = False) -> None:
        self.config, self.role, self._close = config, role, close
        self.log = logging.getLogger(f"echelon.{config.role}")
        self.health = Health(role.facts)
        self.metrics = Metrics(self.health, expected=role.expected)
        self._actor: Actor | None = None
        self._stopping = False
        self._signals = 0
        self._end: float | None = None
        """When it has to have stopped, on the loop's clock; None until it is asked to."""
        self._port = 0
        self._brokers: tuple[str, ...] = ()
        self.left_over = False
        """Whether something of this service still runs after `run` has returned."""
        self._stop = asyncio.Event()
        self._now = asyncio.Event()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="echelon")

    # ---- start and end ---------------------------------------------------------------------------

    async def run(self) -> int:
        """See `run_service`."""
        with ExitStack() as stack:
            stack.enter_context(self._signals_taken())
            try:
                if self.config.http.port is not None:
                    self._serve(stack)
                watches = [
                    asyncio.create_task(watch_loop(self.metrics.stalled, STALL_TICK), name="loop watch"),
                    asyncio.create_task(self._look(), name="look"),
                ]
                try:
                    return await self._until_stopped(stack)
                finally:
                    for watch in watches:
                        watch.cancel()
                    await asyncio.gather(*watches, return_exceptions=True)
            except ConfigError as error:
                self.log.error("wrong configuration: %s", error)
                return WRONG
            except EchelonError as error:
                self.log.error("failed: %s", disk_full(error) or error)
                return FAILED
            except Exception as error:
                self.log.error("failed: %s", explained(error, __version__))
                return FAILED
            finally:
                await self._let_go()

    async def _until_stopped(self, stack: ExitStack) -> int:
        """Work, and stop in order when a signal says so."""
        work = asyncio.create_task(self._work(stack), name="work")
        stop = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait({work, stop}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await self._in_order(work)
            if not work.done():
                self.log.error("could not close what is open; a restart goes on from what is stored")
                self.left_over = True
                return FAILED
            if work.cancelled():
                self.log.warning(
                    "stopped before everything was in order; a restart goes on from what is stored"
                )
                return GOOD
            work.result()
            self.health.become(State.ENDED)
            return GOOD
        except Exception as error:
            self.health.become(State.FAILED, str(error))
            raise
        finally:
            ending = {task for task in (work, stop) if not task.done()}
            for task in ending:
                task.cancel()
            if ending:
                await asyncio.wait(ending, timeout=AT_ONCE_SECONDS)

    async def _in_order(self, work: asyncio.Task[None]) -> None:
        """Let the actor come to an end; when its time is over, or at a second signal, cut it short."""
        self._stopping = True
        self.health.become(State.STOPPING, "asked to stop")
        # A part of the time is kept for closing what is open.
        within = self.config.shutdown - min(DRAIN_SECONDS, self.config.shutdown / 4)
        actor = self._actor
        self.log.info("stopping within %.0f s", self.config.shutdown)
        if actor is None or not actor.running:
            work.cancel()
        elif isinstance(actor, Device):
            leaving = asyncio.create_task(actor.leave(max(within - DRAIN_SECONDS, within / 2)), name="leave")
            await self._wait({work}, within)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        else:
            actor.halt()
            await self._wait({work}, within)
        if not work.done():
            work.cancel()
        await asyncio.wait(
            {work}, timeout=AT_ONCE_SECONDS if self._now.is_set() else self._left(DRAIN_SECONDS)
        )

    def _left(self, seconds: float) -> float:
        """So many seconds, or what is left of the time for stopping; a last moment of it is never given away."""
        if self._end is None:
            return seconds
        return max(0.0, min(seconds, self._end - asyncio.get_running_loop().time() - LAST_SECONDS))

    async def _wait(self, tasks: Collection[asyncio.Task[Any]], seconds: float) -> None:
        """Wait for tasks, for so long, or until a second signal."""
        now = asyncio.create_task(self._now.wait())
        try:
            await asyncio.wait({*tasks, now}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            now.cancel()

    @contextmanager
    def _signals_taken(self) -> Iterator[None]:
        """Signals stop the service while the block runs; the process never outlives its time."""
        loop = asyncio.get_running_loop()
        timers: list[threading.Timer] = []

        def taken() -> None:
            self._signals += 1
            if self._signals == 1:
                self._end = loop.time() + self.config.shutdown
                last = threading.Timer(self.config.shutdown, self._overdue)
                last.daemon = True
                last.start()
                timers.append(last)
                self._stop.set()
            else:
                self.log.warning("asked to stop again: stopping at once")
                self._now.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, taken)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)
            for timer in timers:
                timer.cancel()

    def _overdue(self) -> None:
        self.log.error("did not stop within %.0f s: ended where it stood", self.config.shutdown)
        os._exit(FAILED)

    def _serve(self, stack: ExitStack) -> None:
        server = HttpServer(self.config.http, self.health, self.metrics.served)
        self._port = server.start()
        stack.callback(server.close)
        self.log.info("health and metrics on http://%s:%d", self.config.http.host, self._port)

    async def _let_go(self) -> None:
        """End threads and training, for a short time in order; what still runs then ends with the process."""
        loop = asyncio.get_running_loop()
        closed = asyncio.Event()

        def close() -> None:
            self.role.close()
            with suppress(RuntimeError):  # the loop has ended meanwhile, and nobody waits any more
                loop.call_soon_threadsafe(closed.set)

        threading.Thread(target=close, name="echelon-close", daemon=True).start()
        waiting = asyncio.create_task(closed.wait())
        await self._wait({waiting}, self._left(DRAIN_SECONDS))
        waiting.cancel()
        self.left_over = self.left_over or not closed.is_set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    # ---- work ------------------------------------------------------------------------------------

    async def _work(self, stack: ExitStack) -> None:
        """Become somebody, get ready, and run the actor until the run is closed or it is halted."""
        self.health.become(State.STARTING, "waiting for a free slot")
        slot = await self._with_room(lambda: self.role.claim(self.log))
        if slot is not None:
            stack.enter_context(slot)
        self.metrics.introduce(self.role.facts)
        self._brokers = tuple(self.role.brokers())
        try:
            stack.enter_context(await self._with_room(lambda: lock_state(self.role.state, LOCK_SECONDS)))
            await self._while_held()
        finally:
            await self.role.release()

    async def _while_held(self) -> None:
        """Get ready and run the actor, as long as this process may be whom it became.

        Raises:
            EchelonError: it may not be any more, or the actor has failed.
        """
        living = asyncio.create_task(self._live(), name="live")
        lost = asyncio.create_task(self.role.lost(), name="lost")
        try:
            await asyncio.wait({living, lost}, return_when=asyncio.FIRST_COMPLETED)
            (living if living.done() else lost).result()
        finally:
            for task in (living, lost):
                task.cancel()
            await asyncio.gather(living, lost, return_exceptions=True)

    async def _live(self) -> None:
        self.health.become(State.STARTING, "loading")
        await self.role.prepare(self.log)
        await self._supervise()

    async def _with_room(self, step: Callable[[], Awaitable[T]]) -> T:
        """What a step gives; while there is no room on the disk for it, it is taken again and again."""
        # A device has no name yet: it is its slot's.
        return await supervise(step, DiskPatience(), name=None, failed=self._again)

    async def _supervise(self) -> None:
        """Run the actor, and start it again whenever its broker fails it.

        Raises:
            StateError: its state and its topics contradict each other.
            BusDenied: the broker has refused it for too long, and never let it in (see `BrokerPatience`).
            TrainingError: a device cannot train.
        """

        async def live() -> None:
            if self.health.state is State.STARTING:
                self.health.become(State.STARTING, "connecting and restoring its state from the topics")
            try:
                await self._life()
            except (BusError, StorageError, TrainingError) as error:
                if not self._stopping:
                    raise
                # Who manages processes may have sent its signal to the training process too.
                self.log.warning("cut short while stopping: %s", error)

        await supervise(live, ServicePatience(), name=self.role.name, failed=self._again)

    def _again(self, error: EchelonError) -> None:
        """Say why the actor has ended, before it starts again."""
        self.log.warning("starting again: %s", error)
        self.health.become(State.DEGRADED, str(error))
        self.metrics.restarts.inc()
        if isinstance(error, StorageError):
            self.metrics.storage_failures.inc()

    async def _life(self) -> None:
        """One life of the actor, from connecting to its end."""
        buses: dict[str, Bus] = {}
        store: StateStore | None = None
        watching: asyncio.Task[None] | None = None
        try:
            self._write_address()
            for name, broker in self.role.brokers().items():
                buses[name] = await _connect(broker, self.role.principal)
            owner = bytes.fromhex(self.role.facts["run"]) + self.role.name.encode()
            store = StateStore(self.role.state / STATE_FILE, owner)
            services = Services(Offload(self._threads), self._happened, self.log)
            actor = self.role.make(buses, store, services)
            if self._close and isinstance(actor, Controller):
                await actor.stop()
            self._actor = actor
            self.metrics.sampler.attach(buses, lambda: self.role.pending(actor))
            if isinstance(actor, Controller) and isinstance(self.config, ControllerConfig):
                watching = asyncio.create_task(
                    watch_changes(self.config.key_changes, actor.change_keys, self.log),
                    name="changes of keys",
                )
            await actor.run()
            if actor.halted or self._stopping:
                self.log.info("stopped; the run goes on without it, and it goes on where it was")
            else:
                self.log.info("the run is closed")
            self._write_checkpoint(actor)
        finally:
            self._actor = None
            if watching is not None:
                watching.cancel()
            self.metrics.sampler.detach()
            await _close(buses, store)

    def _write_address(self) -> None:
        """Say in the state folder where health and metrics are served."""
        if self.config.http.port is not None:
            where = {"host": self.config.http.host, "port": self._port, "pid": os.getpid()}
            _replace(self.role.state / HTTP_FILE, json.dumps(where).encode())

    def _happened(self, actor: str, moment: float, note: Note) -> None:
        """Count a fact of the actor's, and log it if a person wants to see it."""
        self.metrics(actor, moment, note)
        tell(self.log, note)

    def _write_checkpoint(self, actor: Actor) -> None:
        """Keep the signed head of the log that this actor writes, for auditors."""
        if isinstance(actor, Gate | Controller):
            topic, note = actor.checkpoint()
            _replace(self.role.state / f"{topic}.note", note)

    async def _look(self) -> None:
        """Sample the connections and the actor, for health and metrics."""
        waiting = Waiting(self.log)
        while True:
            self.health.turned()
            waited_for = self.health.state in (State.STARTING, State.DEGRADED)
            if waited_for and self._actor is not None and self._actor.running:
                self.health.become(State.RUNNING)
            if self._actor is not None:
                self.metrics.stands(standing(self._actor))
                self.metrics.commits_stood(commit_times(self._actor))
            self.health.waiting = waiting.look(self._actor, time.monotonic())
            self.metrics.sampler.look(self.role.leases, self.role.state)
            self.health.certificates = self.metrics.sampler.last.certificates
            self.health.brokers = dict.fromkeys(self._brokers, False) | self.metrics.sampler.connected()
            await asyncio.sleep(LOOK_SECONDS)


async def _connect(broker: BrokerSettings, name: str) -> Bus:
    if broker.security is None:
        return await open_bus(broker.url)
    check_identity(broker, name)
    return await open_bus(broker.url, security=broker.security)


async def _close(buses: Mapping[str, Bus], store: StateStore | None) -> None:
    """Close everything, whatever goes wrong on the way."""
    try:
        for bus in buses.values():
            with suppress(BusError):
                await bus.aclose()
    finally:
        if store is not None:
            store.close()


def _replace(path: Path, data: bytes) -> None:
    try:
        write_private(path, data)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error.strerror}. Make room, or allow it") from error
