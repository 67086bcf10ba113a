"""A federation as real processes on one host: start them, watch them, kill them, start them again, and ask how it was.

Each service is the command that a deployment runs (`echelon device --config …`), with its log in a file of its own.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from echelon.bus import open_bus
from echelon.errors import EchelonError
from echelon.messages.envelope import Signer
from echelon.private import private_folder
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import (
    ADMIN,
    AGGREGATOR,
    CONTROLLER,
    DEVICES,
    EDGES,
    ENROLMENT_FILE,
    GATE,
    OPERATOR,
    WITNESS,
    WITNESSES,
    Deployment,
)
from echelon.provision.identities import read_key
from echelon.provision.kafka import apply, load_scope
from echelon.topics import Boundary, load_catalogue
from echelon.wiring.shards import publish_shards, terms_of
from tools.fleet.killing import WHO
from tools.fleet.orphans import end_with
from tools.kafka.wipe import PATIENCE, wipe

_log = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, where processes find these tools."""
TEND_EVERY = 0.05
"""Seconds between two looks at the processes."""
ENTRY = "echelon.cli"
"""Module whose `main` is the command line."""
PRELOADED = (
    "echelon.cli.services",
    "echelon.services.run",
    "echelon.bus.kafka",
    "echelon.compute.quadratic",
    "echelon.compute.split",  # and torch, which takes seconds; passed over where it is not installed
)


class FleetError(EchelonError):
    """A process did not do what it was started for."""


class Child(Protocol):
    """A started process."""

    @property
    def pid(self) -> int:
        """Its id."""
        ...

    def poll(self) -> int | None:
        """Its exit code, minus the signal's number if one ended it; None while it runs."""
        ...


Spawn = Callable[[str, Sequence[str], Mapping[str, str], Path], Child]
"""Starts `main` of a module: (module, arguments, environment, log file)."""


def by_subprocess(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
    """A fresh interpreter, as in a deployment. In a session of its own: Ctrl-C is for whoever started the fleet."""
    code = (
        f"import sys; from tools.fleet.orphans import end_with; end_with({os.getpid()}); "
        f"from {module} import main; sys.argv[0] = 'echelon'; main()"
    )
    with log.open("ab") as file:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            env=_importable({**os.environ, **environment}),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return process


def _importable(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables with this checkout first on PYTHONPATH: a child finds these tools wherever it is started."""
    path = os.pathsep.join(filter(None, (str(ROOT), environment.get("PYTHONPATH"))))
    return {**environment, "PYTHONPATH": path}


class _Forked:
    """A child of the fork server."""

    def __init__(self, process: BaseProcess) -> None:
        self._process = process
        self.pid = process.pid or 0

    def poll(self) -> int | None:
        return self._process.exitcode


def by_fork(module: str, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> Child:
    """A fork of a server that has imported everything already: dozens of processes start in a second or two."""
    context = multiprocessing.get_context("forkserver")
    main = getattr(sys.modules["__main__"], "__spec__", None)
    here = () if main is None else (main.name.partition(".")[0],)  # a child imports what this process runs
    context.set_forkserver_preload([*PRELOADED, *here])
    process = context.Process(
        target=_enter, args=(module, list(arguments), dict(environment), str(log), os.getpid())
    )
    process.start()
    return _Forked(process)


def _enter(module: str, arguments: list[str], environment: dict[str, str], log: str, starter: int) -> None:
    os.setsid()
    end_with(starter)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = ["echelon", *arguments]
    importlib.import_module(module).main()


@dataclass
class Service:
    """One service, through all its lives.

    Attributes:
        name: `controller`, `a.aggregator`, `a.gate`, `a.device.0`, …
        broker: whose broker it belongs to: `exchange`, or a boundary.
        arguments: of the command line.
        state: its state folder; replicas of a device service share one, and each has its slot's in it.
        log: everything it wrote, in all lives.
        starts: how often it was started.
        codes: exit codes of the lives that ended.
        wanted: whether it is to run until the federation ends.
    """

    name: str
    broker: str
    arguments: tuple[str, ...]
    state: Path
    log: Path
    starts: int = 0
    codes: list[int] = field(default_factory=list)
    wanted: bool = True
    child: Child | None = None

    @property
    def running(self) -> bool:
        """Whether it was started, and has not been seen to end."""
        return self.child is not None

    @property
    def role(self) -> str:
        """The command: `device`, `aggregator`, `gate` or `controller`."""
        return self.arguments[0]

    def tail(self, lines: int = 20) -> str:
        """The end of its log."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def _is_kafka(url: str) -> bool:
    return url.startswith("kafka://")


Restart = Callable[[Service, int], bool]
"""Asked with (service, exit code) whether a service that ended is started again."""


def never(_service: Service, _code: int) -> bool:
    """Nothing is started again."""
    return False


def when_killed(_service: Service, code: int) -> bool:
    """What a signal ended is started again; what ended by itself stays so."""
    return code < 0


def when_failed(_service: Service, code: int) -> bool:
    """As a supervisor would: everything that did not end well or for wrong configuration is started again."""
    return code not in (0, 2)


class Fleet:
    """The processes of a deployment.

    Args:
        deployment: the folder.
        restart: which services are started again when they end.
        spawn: how a process is started: `by_subprocess`, or `by_fork` for tests.
        environment: more variables for every service.
        environments: more variables for single services, by name.
        entry: module whose `main` is started instead of the command line; tests put faults there.
        most_starts: a service that ended so often is not started again.
    """

    def __init__(
        self,
        deployment: Deployment,
        *,
        restart: Restart = never,
        spawn: Spawn = by_subprocess,
        environment: Mapping[str, str] | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,
        entry: str = ENTRY,
        most_starts: int = 50,
    ) -> None:
        self.deployment = deployment
        self.restart, self.spawn, self.entry, self.most_starts = restart, spawn, entry, most_starts
        # Ports are this host's, and it has one of each.
        self.environment = {"ECHELON_HTTP__PORT": "0", **(environment or {})}
        self.environments = dict(environments or {})
        self.logs = deployment.folder / "logs"
        self.services: dict[str, Service] = {}
        self._replicas: dict[str, int] = {}

    # ---- brokers ---------------------------------------------------------------------------------

    def provision(self) -> None:
        """Create every topic of the catalogue, and on Kafka every access rule, with the break-glass principal.

        Raises:
            EchelonError: a broker refused, or cannot be reached.
        """
        with ThreadPoolExecutor(len(self.deployment.brokers.entries)) as pool:
            for _ in pool.map(self._provision, self.deployment.brokers.entries):
                pass  # the first that failed raises here

    def _provision(self, broker: str) -> None:
        url = self.deployment.brokers.entries[broker].url
        if not _is_kafka(url):
            asyncio.run(self._create(broker, url))
            return
        # Repaired, so that what an earlier fleet's names may do on these brokers is taken back.
        left = apply(load_scope(self.deployment.topics(broker)), repair=True, patience=PATIENCE).left
        if left:
            raise FleetError(
                f"{broker}: {len(left)} differences from the catalogue are left, the first: {left[0]}"
            )
        if any(one.name == broker and one.shards is not None for one in self.deployment.settings.boundaries):
            asyncio.run(self._publish_shards(broker))

    async def _publish_shards(self, boundary: str) -> None:
        """Publish a boundary's data shards, as its operator does with `echelon shards publish`."""
        folder = self.deployment.folder / boundary / OPERATOR
        reached = self.deployment.broker(boundary, OPERATOR)
        terms = terms_of(self.deployment.settings, boundary, self.deployment.manifest())
        signer = Signer(read_key(folder / ENROLMENT_FILE))
        async with await open_bus(reached.url, security=reached.security) as bus:
            await publish_shards(bus, terms, signer, _log)

    def clear(self) -> None:
        """Delete every topic, access rule and group on Kafka brokers, for stacks that are used again.

        Raises:
            EchelonError: a broker refused, cannot be reached, or takes too long.
        """
        brokers = [name for name, entry in self.deployment.brokers.entries.items() if _is_kafka(entry.url)]
        with ThreadPoolExecutor(max(1, len(brokers))) as pool:
            for _ in pool.map(lambda name: wipe(self.deployment.broker(name, ADMIN)), brokers):
                pass

    async def _create(self, broker: str, url: str) -> None:
        private_folder(Path(url.removeprefix("sqlite:///").partition("?")[0]).parent)
        catalogue = load_catalogue()
        if broker == EXCHANGE:
            names = [Boundary(name) for name in self.deployment.boundaries]
            wanted = catalogue.exchange_topics(names, self.deployment.settings.witness_names())
        else:
            boundary = next(
                boundary for boundary in self.deployment.settings.boundaries if boundary.name == broker
            )
            wanted = catalogue.boundary_topics(len(boundary.device_list()), boundary.shards)
        async with await open_bus(url) as bus:
            for topic, partitions in wanted.items():
                await bus.create_topic(topic, partitions)

    # ---- start and stop --------------------------------------------------------------------------

    def start(self, devices: int | None = None) -> None:
        """Start every service.

        Args:
            devices: replicas of each boundary's device service. None: one for each enrolled slot.
        """
        self.launch(CONTROLLER)
        for witness in self.deployment.settings.witnesses.names:
            self.launch(f"{witness}.{WITNESS}")
        for boundary in self.deployment.settings.boundaries:
            self.launch(f"{boundary.name}.{AGGREGATOR}")
            self.launch(f"{boundary.name}.{GATE}")
            for edge in boundary.edge_names():
                self.launch(edge)
            for _ in range(len(boundary.device_list()) if devices is None else devices):
                self.add_device(boundary.name)

    def launch(self, name: str) -> Service:
        """Start a service by its name, for the first time or again.

        Raises:
            FleetError: it runs already.
        """
        service = self.services.get(name)
        if service is None:
            service = self.services[name] = self._describe(name)
        if service.running:
            raise FleetError(f"{name} runs already: stop it before it is started again")
        self.logs.mkdir(exist_ok=True)
        service.wanted = True
        service.starts += 1
        environment = {**self.environment, **self.environments.get(name, {}), WHO: name}
        service.child = self.spawn(self.entry, service.arguments, environment, service.log)
        return service

    def _describe(self, name: str) -> Service:
        if name == CONTROLLER:
            broker, folder, role = EXCHANGE, CONTROLLER, CONTROLLER
        elif name.removesuffix(f".{WITNESS}") in self.deployment.settings.witnesses.names:
            broker, folder, role = EXCHANGE, f"{WITNESSES}/{name.removesuffix(f'.{WITNESS}')}", WITNESS
        else:
            broker, _, rest = name.partition(".")
            role = rest.partition(".")[0]
            folder = DEVICES if role == "device" else role
            settings = next((one for one in self.deployment.settings.boundaries if one.name == broker), None)
            if settings is None:
                raise FleetError(f"there is no such service as {name}: no boundary is called {broker!r}")
            if name in settings.edge_names():
                role, folder = "edge", f"{EDGES}/{rest}"
        config = self.deployment.config(broker, folder)
        if not config.exists():
            raise FleetError(f"{name}: {self.deployment.folder} has no such service ({config} is missing)")
        state = self.deployment.state(broker, folder)
        arguments = (role, "--config", str(config))
        return Service(name, broker, arguments, state, self.logs / f"{name}.log")

    def add_device(self, boundary: str) -> Service:
        """One more replica of a boundary's device service; it takes a free slot."""
        number = self._replicas.get(boundary, 0)
        self._replicas[boundary] = number + 1
        return self.launch(f"{boundary}.device.{number}")

    def remove_device(self, boundary: str) -> Service:
        """Ask the newest running replica of a boundary to leave (SIGTERM); it ends in its own time.

        Raises:
            FleetError: none runs.
        """
        running = [service for service in self.devices(boundary) if service.running and service.wanted]
        if not running:
            raise FleetError(f"boundary {boundary} has no running device")
        service = running[-1]
        self.terminate(service.name)
        return service

    def devices(self, boundary: str) -> list[Service]:
        """Replicas of a boundary's device service, oldest first, those that ended too."""
        return [
            service
            for service in self.services.values()
            if service.broker == boundary and service.role == "device"
        ]

    def terminate(self, name: str) -> None:
        """Ask a service to end (SIGTERM); it is not started again."""
        self.services[name].wanted = False
        self.signal(name, signal.SIGTERM)

    def signal(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a service, if it runs; what then happens is the restart policy's."""
        child = self.services[name].child
        if child is not None and child.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def stop(self, within: float = 300.0) -> None:
        """Ask all that run to end, wait for them, and kill those that are too slow.

        Raises:
            FleetError: some had to be killed.
        """
        for name, service in self.services.items():
            if service.running:
                self.terminate(name)
        end = time.monotonic() + within
        while time.monotonic() < end and self.running():
            self.tend()
            time.sleep(TEND_EVERY)
        late = self.running()
        self.kill()
        if late:
            raise FleetError(f"{', '.join(late)} did not end within {within:g} s of SIGTERM and were killed")

    def kill(self) -> None:
        """Kill whatever runs."""
        for name, service in self.services.items():
            service.wanted = False
            self.signal(name, signal.SIGKILL)
        end = time.monotonic() + 10.0
        while time.monotonic() < end and self.running():
            self.tend()
            time.sleep(TEND_EVERY)

    # ---- watching --------------------------------------------------------------------------------

    def tend(self) -> list[tuple[Service, int]]:
        """Look at every process once; services that ended, with their exit codes. Restarts what is to be restarted."""
        ended = []
        for service in list(self.services.values()):
            code = None if service.child is None else service.child.poll()
            if code is None:
                continue
            service.child = None
            service.codes.append(code)
            ended.append((service, code))
            if service.wanted and service.starts < self.most_starts and self.restart(service, code):
                self.launch(service.name)
        return ended

    def running(self) -> list[str]:
        """Names of the services that run."""
        return [name for name, service in self.services.items() if service.running]

    def wait(self, seconds: float, each: Callable[[], None] = lambda: None) -> dict[str, int]:
        """Tend the fleet until every service ended; the last exit code of each.

        Args:
            seconds: how long that may take.
            each: called after every look; may start, stop and kill services.

        Raises:
            FleetError: some still run; their logs' ends are in the message.
        """
        end = time.monotonic() + seconds
        while True:
            self.tend()
            each()
            running = self.running()
            if not running:
                return {name: service.codes[-1] for name, service in self.services.items() if service.codes}
            if time.monotonic() > end:
                raise FleetError(f"after {seconds:g} s these still run:\n{self.tails(running)}")
            time.sleep(TEND_EVERY)

    def tails(self, names: Iterable[str] | None = None, lines: int = 12) -> str:
        """The ends of logs, for error messages."""
        chosen = self.services if names is None else names
        return "\n".join(f"--- {name}\n{self.services[name].tail(lines)}" for name in chosen)

    def addresses(self) -> Iterator[tuple[str, str]]:
        """(state folder's place, base URL) of every health endpoint that a service has written down."""
        seen = set()
        for service in self.services.values():
            for path in sorted(service.state.glob("**/http.json")):
                if path in seen:
                    continue
                seen.add(path)
                with suppress(OSError, ValueError, KeyError):
                    address = json.loads(path.read_text())
                    place = path.parent.relative_to(self.deployment.folder)
                    yield str(place), f"http://{address['host']}:{address['port']}"

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
