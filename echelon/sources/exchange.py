"""Opening a SOURCE of the audit: a run folder, an export, an .sqlite file, a broker's URL or its .yaml file.

A source may come from somebody who wants to harm whoever reads it. Only regular files are read, links are not
followed, sizes and counts have bounds, and what no run would have put there becomes a finding.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from echelon.audit.export import INDEX_FILE, MAX_INDEX_BYTES, read_index, read_topic, topic_file
from echelon.audit.findings import Code, Finding, Severity
from echelon.audit.incremental import OpenFrom
from echelon.audit.note import MAX_NOTE_BYTES
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.verify import Verifier
from echelon.bus import Bus, Reader, RecordDamaged, TopicPartition, open_bus, sqlite_url
from echelon.bus.run_names import parted
from echelon.config.broker import SecuritySettings, load_broker
from echelon.config.reading import open_regular, read_file
from echelon.errors import BusError, ConfigError, EchelonError
from echelon.laws.rules import Allowed
from echelon.messages.adapter import CARD_FILE, CONFIG_FILE, MAX_LAYOUT_BYTES, WEIGHTS_FILE
from echelon.topics import load_catalogue

MAX_FILE_BYTES = 8 << 30
"""Largest adapter file that is read for comparison."""
MAX_NAMED = 20
"""Undeclared topics, partitions or files of one kind that are named one by one; the rest is counted."""
MAX_LISTED = 10_000
"""Most entries of a folder that are looked at."""
MAX_CHECKPOINTS = 256
"""Most signed heads that are taken from a run folder."""

Records = Iterator[LogRecord | Damaged]


@dataclass
class Source:
    """An opened source: its topics, and the exported adapter where there is one."""

    name: str
    topics: dict[str, Records]
    open_from: OpenFrom
    """Reads one of its topics from an offset on."""
    adapter: dict[str, bytes] | None = None
    checkpoints: tuple[Path, ...] = ()
    """Signed heads of its logs that lie beside them."""
    findings: list[Finding] = field(default_factory=list)
    """What is wrong with the source itself, before any record is read."""

    def verifier(self, *, rules: Allowed, genesis: bytes | None = None) -> Verifier:
        """What checks all of it once: topics, signed heads, the adapter beside them, and what opening has found.

        Args:
            rules: users' own classes that may run.
            genesis: the pinned SHA-256 of the genesis record's envelope.

        Raises:
            ConfigError: a signed head cannot be read.
        """
        return Verifier(
            self.topics,
            genesis=genesis,
            checkpoints=[read_file(path, "checkpoint", MAX_NOTE_BYTES) for path in self.checkpoints],
            adapter=self.adapter,
            rules=rules,
            findings=self.findings,
        )

    def found(self, code: Code, topic: str, details: list[str]) -> None:
        """Add errors, one for each detail, and one that counts the rest.

        Args:
            code: of the findings.
            topic: that they are about.
            details: one sentence for each finding; only the first few are named.
        """
        rest = len(details) - MAX_NAMED
        named = details[:MAX_NAMED] + ([f"and {rest} more of the kind"] if rest > 0 else [])
        self.findings += [Finding(code, Severity.ERROR, topic, None, detail) for detail in named]


@contextmanager
def opened(source: str, security: Path | None = None) -> Iterator[Source]:
    """Open a SOURCE for reading.

    Args:
        source: see above.
        security: a broker file whose `security` goes with the URL of a broker.

    Raises:
        ConfigError: it is none of the things that a SOURCE may be.
        BusError: it is a log, and cannot be read as one.
    """
    if "\0" in source:
        raise ConfigError(f"{source!r}: no file has a name with a NUL character")
    with ExitStack() as stack:
        if "://" in source:
            with_it = None if security is None else load_broker(security).security
            yield stack.enter_context(_bus(source, source, with_it))
            return
        if security is not None:
            raise ConfigError(f"--security goes with the URL of a broker, and {source} is none: leave it out")
        path = Path(source)
        if path.suffix in (".yaml", ".yml"):
            broker = load_broker(path)
            yield stack.enter_context(_bus(broker.url, broker.url, broker.security))
            return
        try:
            yield _files(path, source, stack)
        except OSError as error:
            raise ConfigError(f"{error.filename or source}: cannot be read ({error.strerror})") from error


def _files(path: Path, source: str, stack: ExitStack) -> Source:
    log = path / "brokers" / "exchange.sqlite"
    if (path / INDEX_FILE).is_file():
        return _folder(path, stack)
    if log.is_file():
        exchange = stack.enter_context(_bus(sqlite_url(log), source))
        _adapter(exchange, path / "adapter", most=_size_of_log(log) + MAX_LAYOUT_BYTES)
        _checkpoints(exchange, path / "checkpoints")
        return exchange
    if path.is_file():
        return stack.enter_context(_bus(sqlite_url(path), source))
    if not path.exists():
        raise ConfigError(f"{source}: there is no such file or folder")
    raise ConfigError(
        f"{source}: neither a run folder (brokers/{log.name} is missing) nor an export ({INDEX_FILE} is missing)"
    )


def _folder(path: Path, stack: ExitStack) -> Source:
    data = read_file(path / INDEX_FILE, "index", MAX_INDEX_BYTES, follow=False)
    try:
        names = read_index(data)
    except EchelonError as error:
        raise ConfigError(f"{path}: {error}") from error

    def open_from(name: str, start: int) -> Records:
        try:
            stream = stack.enter_context(open_regular(path / topic_file(name), follow=False))
        except FileNotFoundError:
            return iter([Damaged(name, 0, f"its file {topic_file(name)} is missing")])
        return read_topic(name, stream, start)

    source = Source(str(path), {name: open_from(name, 0) for name in names}, open_from)
    expected = {topic_file(name) for name in names}
    strays = [name for name in _listed(path) if name.endswith(".records") and name not in expected]
    source.found(
        Code.UNEXPECTED_TOPIC, "",
        [f"the export has a file {_shown(name)} that {INDEX_FILE} does not name: whoever made it added or hid a topic"
         for name in strays],
    )  # fmt: skip
    return source


def _listed(path: Path) -> list[str]:
    """The names in a folder, sorted; of a huge one the first that the file system gives."""
    names: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MAX_LISTED:
                break
    return sorted(names)


def _shown(name: str) -> str:
    """A file's name as it may be printed."""
    return ascii(name[:80])


def _kind(path: Path) -> str:
    """What stands there, without following a link: "" for a regular file."""
    mode = os.lstat(path).st_mode
    for is_kind, word in (
        (stat.S_ISLNK, "a symbolic link"), (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"),
        (stat.S_ISSOCK, "a socket"),
    ):  # fmt: skip
        if is_kind(mode):
            return word
    return "" if stat.S_ISREG(mode) else "a device"


def _size_of_log(log: Path) -> int:
    """Bytes of a log: no adapter of its run is larger, for genesis and commits hold theirs whole."""
    beside = log.with_name(f"{log.name}-wal")
    return log.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def _adapter(source: Source, path: Path, *, most: int) -> None:
    """Read the exported adapter, and find what else lies in its folder."""
    if not os.path.lexists(path):
        return
    if kind := _kind(path).replace("a folder", ""):
        source.found(Code.UNEXPECTED_FILE, "", [f"adapter is {kind}, not a folder: {_REMOVE}"])
        return
    if not stat.S_ISDIR(os.lstat(path).st_mode):
        source.found(Code.UNEXPECTED_FILE, "", [f"adapter is a file, not a folder: {_REMOVE}"])
        return
    source.adapter = {}
    strange = []
    for name in _listed(path):
        kind = _kind(path / name)
        if name == CARD_FILE and not kind:
            continue  # a text for people, which nothing is derived from
        if name not in (CONFIG_FILE, WEIGHTS_FILE) or kind:
            what = kind or "a file"
            strange.append(f"adapter/{_shown(name)} is {what} that no run writes: {_REMOVE}")
        else:
            limit = min(MAX_FILE_BYTES, most)
            source.adapter[name] = read_file(path / name, "adapter file", limit, follow=False)
    source.found(Code.UNEXPECTED_FILE, "", strange)


_REMOVE = "do not load it (a pickle runs code), find out who put it there, and remove it"


def _checkpoints(source: Source, path: Path) -> None:
    if not os.path.lexists(path):
        return
    if _kind(path) != "a folder":
        source.found(Code.UNEXPECTED_FILE, "", [f"checkpoints is no folder: {_REMOVE}"])
        return
    notes = [path / name for name in _listed(path) if name.endswith(".note")]
    if len(notes) > MAX_CHECKPOINTS:
        raise ConfigError(f"{path}: more than {MAX_CHECKPOINTS} checkpoints; leave those of this run's logs")
    sound = tuple(note for note in notes if not _kind(note))
    source.found(
        Code.UNEXPECTED_FILE, "",
        [f"checkpoints/{_shown(note.name)} is {_kind(note)}: {_REMOVE}" for note in notes if note not in sound],
    )  # fmt: skip
    source.checkpoints = sound


@contextmanager
def _bus(url: str, name: str, security: SecuritySettings | None = None) -> Iterator[Source]:
    with asyncio.Runner() as runner:
        bus = runner.run(open_bus(url, read_only=True, security=security))
        try:
            counts = {
                topic: partitions
                for topic, partitions in runner.run(bus.topics()).items()
                if not (url.startswith("kafka://") and _of_another_run(topic))
            }
            reading: list[Generator[LogRecord | Damaged, None, None]] = []

            def open_from(topic: str, start: int) -> Records:
                reading.append(_read_bus(runner, bus, topic, start))
                return reading[-1]

            source = Source(name, {topic: open_from(topic, 0) for topic in counts}, open_from)
            for topic, partitions in counts.items():
                if partitions > 1:
                    source.found(
                        Code.UNEXPECTED_PARTITION, topic,
                        [f"it has {partitions} partitions, and a topic of the exchange has one: what stands in the "
                         "others was not read; look who made them"],
                    )  # fmt: skip
            for at in runner.run(bus.undeclared())[: MAX_NAMED + 1]:
                code = Code.UNEXPECTED_PARTITION if at.topic in counts else Code.UNEXPECTED_TOPIC
                what = f"partition {at.partition} of {_shown(at.topic)}"
                source.found(
                    code, at.topic if at.topic in counts else "",
                    [f"records stand in {what}, which the log does not declare: somebody wrote past the bus"],
                )  # fmt: skip
            try:
                yield source
            finally:
                for records in reading:
                    records.close()  # closes the bus's reader while the bus is still there
        finally:
            runner.run(bus.aclose())


def _of_another_run(topic: str) -> bool:
    """Whether a topic on a broker that several runs share is another's."""
    run, name = parted(topic)
    return bool(run) and load_catalogue().entry(name) is not None


def _read_bus(
    runner: asyncio.Runner, bus: Bus, topic: str, start: int
) -> Generator[LogRecord | Damaged, None, None]:
    """All records that stand in a topic's first partition now, from offset `start` on."""
    at = TopicPartition(topic)
    first, end = runner.run(bus.first_offset(at)), runner.run(bus.end_offset(at))
    if first:
        what = f"records before offset {first} are not kept: the topic was cut, and what stands behind proves nothing"
        yield Damaged(topic, 0, what, cut=True, first=first)
    if start >= end:
        return
    reader = runner.run(_reader(bus, at, max(first, start)))
    try:
        while reader.position(at) < end:
            try:
                records = runner.run(reader.next(timeout=30.0))
            except RecordDamaged as error:
                yield Damaged(topic, error.offset, str(error))
                reader.seek(at, error.offset + 1)
                continue
            except BusError as error:
                yield Damaged(topic, reader.position(at), f"cannot be read: {error}")
                return
            if not records:
                yield Damaged(topic, reader.position(at), "the broker does not deliver this record")
                return
            for record in records:
                if record.offset < end:
                    yield record
    finally:
        runner.run(reader.aclose())


async def _reader(bus: Bus, at: TopicPartition, first: int) -> Reader:
    """A reader, made where readers live: on the loop."""
    return bus.reader({at: first})
