"""Kafka brokers on loopback without docker: one for the exchange, one for each boundary.

    python -m tools.kafka up --folder .kafka exchange a b     start what does not run, wait until it answers
    python -m tools.kafka status --folder .kafka              what runs, and where
    python -m tools.kafka down --folder .kafka                stop them; topics and certificates stay

Each broker has a certificate authority, a log folder and a process of its own, and the properties that the containers
have too. They need Java 17, and Maven at the first start. They are for tests, for development, and for trying a
federation on one machine: one node each, with the logs on one disk.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from echelon.errors import ConfigError, EchelonError
from echelon.provision.pki import BREAK_GLASS
from tools.kafka.artifacts import jars, java
from tools.kafka.broker import JVM, START_TIMEOUT, STOP_TIMEOUT, Broker, Ports, is_free
from tools.kafka.wipe import wipe

__all__ = ["Broker", "Ports", "Stack", "main"]

EXCHANGE = "exchange"
FIRST_PORT = 19092
"""Where the command line begins to look for free ports; below what systems give to outgoing connections."""
LAST_PORT = 32_000
FIRST_RANDOM_PORT = 20_000
"""Where a random place begins."""
MAX_BROKERS = 64

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_FILE = "stack.json"


class _Port(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    client: Annotated[int, Field(ge=1, le=65_535)]
    controller: Annotated[int, Field(ge=1, le=65_535)]
    scram: Annotated[int, Field(ge=1, le=65_535)] | None = None
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_-]{21}$")]


class _Kept(BaseModel):
    """What a stack's folder remembers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    brokers: dict[str, _Port] = Field(max_length=MAX_BROKERS)


class Stack:
    """Several brokers in one folder. As a context manager it is up inside and down afterwards.

    Attributes:
        folder: where everything is.
        brokers: by name, in the order of the folder.
    """

    def __init__(
        self,
        folder: Path,
        names: Sequence[str] = (),
        *,
        scram: bool = False,
        first_port: int | None = None,
        jvm: Sequence[str] = JVM,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        """Find the brokers of a folder, and add those that are not there yet; nothing is started.

        Args:
            folder: made when missing.
            names: `exchange` and the boundaries' names; empty for what the folder has.
            scram: whether new brokers also listen for users with passwords.
            first_port: where to look for free ports; a random place by default, so that stacks do not meet.
            jvm: options of the virtual machines.
            extra: by broker, properties that stand after those of the templates; they are not kept in the folder.

        Raises:
            ConfigError: a name is not one of a boundary, the folder is not that of a stack, or no port is free.
        """
        self.folder = folder.absolute()
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"broker {name!r}: use lower-case letters, digits and hyphens")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.folder}: cannot be made ({error.strerror}); name another folder"
            ) from error
        with self._locked():
            self._kept = self._load()
            missing = [name for name in dict.fromkeys(names) if name not in self._kept.brokers]
            if len(self._kept.brokers) + len(missing) > MAX_BROKERS:
                raise ConfigError(f"{self.folder}: at most {MAX_BROKERS} brokers")
            if missing:
                ports = _free_ports(len(missing) * (3 if scram else 2), self._taken(), first_port)
                added = {
                    name: _Port(
                        client=next(ports),
                        controller=next(ports),
                        scram=next(ports) if scram else None,
                        cluster=_cluster_id(),
                    )
                    for name in missing
                }
                self._kept = _Kept(brokers={**self._kept.brokers, **added})
                self._write(_FILE, self._kept.model_dump_json(indent=2))
            self.brokers: dict[str, Broker] = {
                name: Broker(
                    name,
                    self.folder / name,
                    Ports(port.client, port.controller, port.scram),
                    jvm=jvm,
                    extra=(extra or {}).get(name, ""),
                )
                for name, port in self._kept.brokers.items()
            }
            self._write("brokers.yaml", yaml.safe_dump(self.broker_map(), sort_keys=False))
        self._names = tuple(dict.fromkeys(names)) or tuple(self.brokers)

    @property
    def brokers_yaml(self) -> Path:
        """The file that says where each broker is and what its authority is."""
        return self.folder / "brokers.yaml"

    def broker_map(self) -> dict[str, dict[str, object]]:
        """The content of `brokers.yaml`; its paths are relative to it."""
        entries: dict[str, dict[str, str]] = {}
        for name, broker in self.brokers.items():
            entries[name] = {"url": broker.url, "ca": f"{name}/ca.pem", "ca_key": f"{name}/ca-key.pem"}
            if broker.scram_url is not None:
                entries[name]["scram_url"] = broker.scram_url
        entries_in_order: dict[str, dict[str, object]] = {}
        if EXCHANGE in entries:
            entries_in_order[EXCHANGE] = dict(entries.pop(EXCHANGE))
        return {**entries_in_order, "boundaries": dict(entries)}

    def __getitem__(self, name: str) -> Broker:
        return self.brokers[name]

    def __enter__(self) -> Self:
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    def up(self, timeout: float = START_TIMEOUT) -> None:
        """Start the stack's brokers side by side, those that do not run, and return when all of them answer.

        Args:
            timeout: seconds that each may take.

        Raises:
            ConfigError: Java, Maven or confluent-kafka is missing, a jar is not the listed one, or a port is taken.
            BusError: a broker ended.
            LimitExceeded: a broker did not answer in time.
        """
        self._each(self._names, lambda broker: self.start(broker.name, timeout))

    def start(self, name: str, timeout: float = START_TIMEOUT) -> None:
        """Start one broker unless it runs, and return when it answers. Raises what `up` raises."""
        broker = self.brokers[name]
        if not broker.running:
            with self._locked(name):
                broker.launch(self._java, self._jars, self._kept.brokers[name].cluster)
        broker.wait_ready(timeout)

    def restart(self, name: str, timeout: float = START_TIMEOUT) -> None:
        """Stop one broker, if it runs, and start it again. Raises what `up` raises."""
        self.brokers[name].stop()
        self.start(name, timeout)

    def down(self, timeout: float = STOP_TIMEOUT) -> None:
        """Stop all brokers of the folder side by side. Topics and certificates stay.

        Raises:
            LimitExceeded: a process is still there after SIGKILL.
        """
        self._each(tuple(self.brokers), lambda broker: broker.stop(timeout))

    def wipe(self) -> None:
        """Delete every topic, access rule and consumer group of the brokers that run, side by side.

        Raises:
            BusError: a broker does not answer.
            LimitExceeded: something is still there after some seconds.
        """
        running = [name for name, broker in self.brokers.items() if broker.running]
        self._each(running, lambda broker: wipe(broker.settings(BREAK_GLASS)))

    # -------------------------------------------------------------------------------------------------- inside

    def _each(self, names: Sequence[str], work: Callable[[Broker], None]) -> None:
        with ThreadPoolExecutor(max(1, len(names))) as pool:
            jobs = [pool.submit(work, self.brokers[name]) for name in names]
        for job in jobs:
            job.result()

    @cached_property
    def _java(self) -> Path:
        return java()

    @cached_property
    def _jars(self) -> Path:
        return jars()

    def _taken(self) -> set[int]:
        return {
            port
            for kept in self._kept.brokers.values()
            for port in (kept.client, kept.controller, kept.scram)
            if port is not None
        }

    def _load(self) -> _Kept:
        path = self.folder / _FILE
        try:
            return _Kept.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return _Kept(brokers={})
        except (OSError, ValidationError) as error:
            raise ConfigError(
                f"{path}: is not a stack's: {error}. Name another folder, or delete it"
            ) from error

    def _write(self, name: str, text: str) -> None:
        scratch = self.folder / f".{name}.new"
        scratch.write_text(text, "utf-8")
        scratch.replace(self.folder / name)

    @contextmanager
    def _locked(self, name: str = "stack") -> Iterator[None]:
        """Alone among processes and threads: two that start the same stack must not both choose ports."""
        with (self.folder / f".{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _cluster_id() -> str:
    """A cluster id as Kafka writes it; one that begins with a hyphen would look like an option to its tools."""
    while (made := base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("=")).startswith("-"):
        pass
    return made


def _own_ports() -> tuple[int, int]:
    """The ports among which this process has its random place: first, and first beyond.

    Each process of pytest-xdist has a part of its own: a port that was chosen is free to others until its broker runs.
    """
    worker = re.fullmatch(r"gw(\d+)", os.environ.get("PYTEST_XDIST_WORKER", ""))
    if worker is None:
        return FIRST_RANDOM_PORT, LAST_PORT
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    part = (LAST_PORT - FIRST_RANDOM_PORT) // workers
    first = (
        FIRST_RANDOM_PORT + int(worker[1]) % workers * part
    )  # who replaces one that died has a higher number
    return first, first + part


def _free_ports(count: int, taken: set[int], first: int | None) -> Iterator[int]:
    low, beyond = _own_ports()
    port = low + secrets.randbelow(max(1, beyond - low - 10 * count)) if first is None else first
    ports: list[int] = []
    while len(ports) < count:
        if port > LAST_PORT:
            raise ConfigError(f"there are no {count} free ports between {first} and {LAST_PORT}")
        if port not in taken and is_free(port):
            ports.append(port)
        port += 1
    return iter(ports)


# ------------------------------------------------------------------------------------------------------ command line


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0 good, 1 a broker failed, 2 wrong usage or configuration."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.kafka", description="Kafka brokers on loopback, without docker."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, words in (
        ("up", "start brokers and wait until they answer"),
        ("down", "stop them; topics and certificates stay"),
        ("status", "say what runs, and where"),
        ("fetch", "only fetch Kafka into the cache, and compare it with the committed list"),
    ):
        command = commands.add_parser(name, help=words, description=words)
        if name != "fetch":
            command.add_argument("--folder", type=Path, default=Path(".kafka"), help="default: %(default)s")
        if name == "up":
            command.add_argument("--scram", action="store_true", help="new brokers take passwords, too")
            command.add_argument(
                "--first-port", type=int, default=FIRST_PORT, help="where to look for free ports"
            )
            command.add_argument("names", nargs="+", help="exchange, and the names of boundaries")
    try:
        return _run(parser.parse_args(arguments))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except EchelonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "fetch":
        print(f"{java()}, {jars()}")
        return 0
    if chosen.command != "up" and not (chosen.folder / _FILE).exists():
        print(f"there is no stack in {chosen.folder}")
        return 0
    started = time.monotonic()
    if chosen.command == "up":
        stack = Stack(chosen.folder, chosen.names, scram=chosen.scram, first_port=chosen.first_port)
        stack.up()
    else:
        stack = Stack(chosen.folder)
        if chosen.command == "down":
            stack.down()
    _show(stack)
    if chosen.command == "up":
        took = time.monotonic() - started
        print(f"ready after {took:.1f} s; what is where: {stack.brokers_yaml}")
        print(f"stop: python -m tools.kafka down --folder {chosen.folder}")
    return 0


def _show(stack: Stack) -> None:
    width = max(len(name) for name in stack.brokers)
    for name, broker in stack.brokers.items():
        state = "stopped" if broker.pid is None else f"pid {broker.pid}"
        passwords = "" if broker.scram_url is None else f", passwords {broker.scram_url}"
        print(f"{name:{width}}  {state:11}  {broker.url}{passwords}  log {broker.log}")
