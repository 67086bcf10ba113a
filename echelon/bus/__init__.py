"""The bus: an append-only, partitioned log. `base` has the contract, `open_bus` opens one by its URL."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

from echelon.bus.base import (
    Bus,
    Committed,
    Direction,
    GroupMember,
    Headers,
    Outgoing,
    Reader,
    Record,
    RecordDamaged,
    TopicPartition,
    Traffic,
)
from echelon.bus.embedded import MAX_READ_BYTES, EmbeddedBus, Watcher
from echelon.bus.sqlite import SYNCHRONOUS, SqliteStore, SqliteWatch
from echelon.bus.store import Hub, MemoryStore, Store
from echelon.clock import is_virtual
from echelon.config.broker import SecuritySettings
from echelon.errors import ConfigError

__all__ = [
    "Bus",
    "Committed",
    "Direction",
    "GroupMember",
    "Headers",
    "Outgoing",
    "Reader",
    "Record",
    "RecordDamaged",
    "TopicPartition",
    "Traffic",
    "open_bus",
    "sqlite_url",
]


@dataclass
class _SharedLog:
    """What the buses of this process on one log have in common, for as long as one of them is open."""

    hub: Hub
    memory: MemoryStore | None = None
    watcher: Watcher | None = None
    write_lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


_logs: dict[str, _SharedLog] = {}
_logs_lock = threading.Lock()
_unnamed = itertools.count()


def sqlite_url(path: Path) -> str:
    """The URL of the log in the file `path`, whatever characters its name has."""
    return f"sqlite:///{quote(str(path.absolute()))}"


async def open_bus(
    url: str,
    *,
    security: SecuritySettings | None = None,
    read_only: bool = False,
    max_read_bytes: int = MAX_READ_BYTES,
) -> Bus:
    """Open a connection to the broker behind a URL.

    - `sqlite:///relative/path` or `sqlite:////absolute/path`: a log in one file, which the processes of one
      host may share. `?synchronous=normal` or `off` gives up safety from power cuts (not from killed
      processes) for speed. `sqlite_url` makes such URLs.
    - `kafka://host:port,host:port`: Apache Kafka. It is reached when it is first needed, so opening a bus to a
      broker that is away works. `?timeout=SECONDS` says for how long a call tries (30), `?plaintext=allow` lets
      it speak without TLS to a broker that is not on loopback; `?run=NAME` means that run's topics, on a broker
      that several runs share.
    - `memory://name`: a log in this process, which all who open that name share, until the last has
      closed it. `sqlite://` is one without a name, which nobody else can open.

    On the virtual clock everything runs on the event loop, and what other processes append is seen only when
    something in this process makes a reader look.

    Args:
        url: the broker.
        security: TLS, and who this process is; for Kafka only.
        read_only: for auditors. Nothing is created or changed; `create_topic` and `publish` raise BusError.
            A process that so reads a file which another process is writing cannot open it for writing itself
            meanwhile: SQLite maps the shared index once per process.
        max_read_bytes: most bytes that one `Reader.next` returns, unless a single record has more.

    Raises:
        ConfigError: the URL is of no known kind, or what it names cannot be opened as asked.
    """
    scheme, separator, rest = url.partition("://")
    if not separator or scheme not in ("sqlite", "memory", "kafka"):
        raise ConfigError(
            f"bus {url!r}: unknown kind; use kafka://host:port, sqlite:///path or memory://name"
        )
    if max_read_bytes < 1:
        raise ConfigError(f"bus {url!r}: max_read_bytes is {max_read_bytes}; give at least 1")
    if scheme == "kafka":
        # Not before it is asked for: who has no broker need not load a client.
        from echelon.bus.kafka_url import open_kafka

        return open_kafka(url, rest, security, read_only=read_only, max_read_bytes=max_read_bytes)
    if security is not None:
        raise ConfigError(f"bus {url!r}: `security` is for kafka:// only; leave it out for a log in a file")
    place, _, query = rest.partition("?")
    if scheme == "memory" or place in ("", "/"):
        return _open_memory(
            url=url,
            scheme=scheme,
            place=place,
            query=query,
            read_only=read_only,
            max_read_bytes=max_read_bytes,
        )
    return await _open_sqlite(url, place, query, read_only, max_read_bytes)


def _open_memory(
    url: str, *, scheme: str, place: str, query: str, read_only: bool, max_read_bytes: int
) -> Bus:
    if query:
        raise ConfigError(f"bus {url!r}: a log in memory has no options; leave out {query!r}")
    if scheme == "memory" and not place:
        raise ConfigError(f"bus {url!r}: give the log a name, as in memory://boundary-a")
    name = f"memory://{place}" if scheme == "memory" else f"memory: {next(_unnamed)}"

    def make() -> _SharedLog:
        store = MemoryStore()
        return _SharedLog(store.hub, memory=store)

    log = _acquire(name, make)
    assert log.memory is not None
    store: Store = log.memory.view(writable=not read_only)
    return EmbeddedBus(
        store, worker=None, watcher=None, max_read_bytes=max_read_bytes, release=lambda: _release(name)
    )


async def _open_sqlite(url: str, place: str, query: str, read_only: bool, max_read_bytes: int) -> Bus:
    if not place.startswith("/"):
        raise ConfigError(f"bus {url!r}: use sqlite:///relative/path or sqlite:////absolute/path")
    options = dict(parse_qsl(query, keep_blank_values=True))
    synchronous = options.pop("synchronous", "full")
    if options or synchronous not in SYNCHRONOUS:
        raise ConfigError(f"bus {url!r}: the one option is synchronous={'|'.join(SYNCHRONOUS)}")
    path = _file(place)
    name = f"sqlite:{path}"

    def make() -> _SharedLog:
        hub = Hub()
        return _SharedLog(hub, watcher=Watcher(hub, lambda: SqliteWatch(path, hub, read_only=read_only)))

    virtual = is_virtual()
    worker = None if virtual else ThreadPoolExecutor(1, thread_name_prefix=f"echelon-bus-{path.name}")
    log = _acquire(name, make)

    def make_store() -> SqliteStore:
        return SqliteStore(
            path, hub=log.hub, write_lock=log.write_lock, read_only=read_only, synchronous=synchronous
        )

    try:
        if worker is None:
            store = make_store()
        else:
            store = await asyncio.get_running_loop().run_in_executor(worker, make_store)
    except BaseException:
        if worker is not None:
            worker.shutdown(wait=False)
        _release(name)
        raise
    return EmbeddedBus(
        store,
        worker=worker,
        watcher=None if virtual else log.watcher,
        max_read_bytes=max_read_bytes,
        release=lambda: _release(name),
    )


def _file(place: str) -> Path:
    """The file that the part of a URL after `sqlite://` names; the same path for the same file."""
    return Path(unquote(place[1:])).resolve()


def _acquire(name: str, make: Callable[[], _SharedLog]) -> _SharedLog:
    with _logs_lock:
        log = _logs.get(name)
        if log is None:
            log = _logs[name] = make()
        log.users += 1
        return log


def _release(name: str) -> None:
    with _logs_lock:
        log = _logs[name]
        log.users -= 1
        if log.users:
            return
        del _logs[name]
    if log.watcher is not None:
        log.watcher.stop()
