"""Following a deployed run: its exchange is read, with an auditor's access, and nothing is written."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from operator import add
from pathlib import Path
from typing import ParamSpec, TypeAlias, TypeVar

from echelon.api.feed import Feed
from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.log import Entry, FaultCode, TopicLog
from echelon.audit.records import is_chunk, read_manifest
from echelon.backoff import Backoff
from echelon.bus import Bus, Reader, Record, RecordDamaged, TopicPartition, open_bus
from echelon.config.broker import SecuritySettings, load_broker
from echelon.errors import AuditError, ConnectionLost
from echelon.laws.keys import gate_of_place
from echelon.laws.lengths import delta_length
from echelon.laws.metrics import means
from echelon.messages.envelope import key_id
from echelon.messages.exchange import Close, Commit, Delta, Genesis, LogHead
from echelon.messages.keys import KeyEnd, KeyNext
from echelon.messages.manifest import MetricTerms, RunManifest
from echelon.messages.wire import Refused

P = ParamSpec("P")
T = TypeVar("T")

POLL = 1.0
"""Seconds that one read waits for new records."""


@dataclass(frozen=True)
class RunStarted:
    """The genesis of the run.

    Attributes:
        genesis_sha256: what is pinned, in hex.
        manifest: the signed terms.
    """

    genesis_sha256: str
    manifest: RunManifest


@dataclass(frozen=True)
class DeltaCrossed:
    """A boundary's delta, which crossed to the exchange: sums over the devices of its windows.

    Attributes:
        boundary: its name.
        seq: its number within the boundary.
        windows: how many windows it is of.
        tokens: that were trained on.
        loss: mean training loss in nats; None unless the boundary reports it.
        metrics: of the user's own that devices compute, the mean by the commit that was evaluated, and by name.
    """

    boundary: str
    seq: int
    windows: int
    tokens: int
    loss: float | None
    metrics: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class CommitMade:
    """A commit of the controller.

    Attributes:
        commit: its number.
        tokens: trained by all merged windows so far.
        adapter_sha256: of the new adapter, in hex.
        merged: the boundaries' deltas that it merged, as (boundary, number, staleness in commits).
    """

    commit: int
    tokens: int
    adapter_sha256: str
    merged: tuple[tuple[str, int, int], ...]


@dataclass(frozen=True)
class RunClosed:
    """The end of the run.

    Attributes:
        reason: commits, tokens, seconds, patience or another bound.
        commits: how many it has.
        adapter_sha256: of the final adapter, in hex.
    """

    reason: str
    commits: int
    adapter_sha256: str


Happening: TypeAlias = RunStarted | DeltaCrossed | CommitMade | RunClosed


class Attached:
    """A deployed run that is followed, from its genesis to its close: for `async for` and for `for` alike.

    Signatures, chains and chunks are checked as they are read, and what does not hold raises `AuditError`. That commits
    follow from their deltas is not checked here: `echelon audit verify` does it.

    A broker that cannot be reached at first raises `ConnectionLost`. One that goes away later is waited for.
    """

    def __init__(self, url: str, security: SecuritySettings | None) -> None:
        self.url = url
        self._security = security

    async def __aiter__(self) -> AsyncIterator[Happening]:
        async with await open_bus(self.url, read_only=True, security=self._security) as bus:
            async for happening in _follow(bus):
                yield happening

    def __iter__(self) -> Generator[Happening, None, None]:
        """The same without a loop: one runs on a thread, for as long as somebody iterates."""
        feed: Feed[Happening | BaseException] = Feed()
        loop = asyncio.new_event_loop()
        reading = loop.create_task(self._read(feed))

        def work() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner, suppress(asyncio.CancelledError):
                runner.get_loop().run_until_complete(reading)

        thread = threading.Thread(target=work, name="echelon attached", daemon=True)
        thread.start()
        try:
            for item in feed:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            if thread.is_alive():  # whoever iterates has enough
                loop.call_soon_threadsafe(reading.cancel)

    async def _read(self, feed: Feed[Happening | BaseException]) -> None:
        try:
            async for happening in self:
                feed.add(happening)
        except Exception as error:  # whoever iterates gets it
            feed.add(error)
        finally:
            feed.end()


def attach(broker: str | Path, security: str | Path | None = None) -> Attached:
    """Follow the exchange of a run that goes on elsewhere, or has ended.

    Args:
        broker: its URL, or a broker's .yaml file, as `echelon audit` reads it.
        security: a broker's file whose `security` goes with a URL.

    Raises:
        ConfigError: a file cannot be read.
    """
    text = str(broker)
    if "://" not in text:
        found = load_broker(Path(text))
        return Attached(found.url, found.security)
    return Attached(text, None if security is None else load_broker(Path(security)).security)


async def _follow(bus: Bus) -> AsyncIterator[Happening]:
    """What stands on the exchange. What the controller wrote comes after the deltas that it had read by then."""
    logs = {GLOBAL: TopicLog(GLOBAL, hash_commits=False)}
    at = TopicPartition(GLOBAL)
    positions = {at: await bus.first_offset(at)}
    names: tuple[str, ...] = ()
    metrics: tuple[MetricTerms, ...] = ()
    async with bus.reader(positions) as reader:
        while not names:
            for record in await _next(reader):
                positions[at] = record.next_offset
                entry = _read(logs[GLOBAL], record)
                manifest = logs[GLOBAL].manifest
                if entry is not None and isinstance(entry.message, Genesis) and manifest is not None:
                    names, metrics = tuple(terms.name for terms in manifest.boundaries), manifest.metrics
                    logs |= _delta_logs(manifest)
                    yield RunStarted(entry.sha256.hex(), manifest)
                    break  # and read on together with the boundaries' logs
    for topic in logs.keys() - {GLOBAL}:
        positions[TopicPartition(topic)] = await _patiently(bus.first_offset, TopicPartition(topic))
    held: deque[Commit | Close] = deque()
    waiting: dict[str, deque[Record]] = {topic: deque() for topic in logs}
    async with bus.reader(positions) as reader:
        while True:
            for record in await _next(reader):
                waiting[record.topic].append(record)
            for entry in _readable(waiting, logs, names):
                if isinstance(entry.message, Commit | Close):
                    held.append(entry.message)
                elif isinstance(entry.message, Delta):
                    yield _crossed(entry.message, names, metrics)
            while held and _has_read(held[0].heads, names, logs):
                message = held.popleft()
                yield _written(message, names)
                if isinstance(message, Close):
                    return


async def _next(reader: Reader) -> list[Record]:
    """New records, as soon as there are some; empty if none came in time.

    Raises:
        AuditError: a record is none that a bus writes.
    """
    try:
        return await _patiently(partial(reader.next, timeout=POLL))
    except RecordDamaged as error:
        raise AuditError(str(error)) from error


async def _patiently(ask: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> T:
    """Ask a broker that has answered before; while it is away, again and again."""
    backoff = Backoff()
    while True:
        try:
            return await ask(*arguments, **named)
        except ConnectionLost:
            await backoff.wait()


def _readable(
    waiting: dict[str, deque[Record]], logs: dict[str, TopicLog], names: tuple[str, ...]
) -> Iterator[Entry]:
    """What can be read of the records that wait: `global` first, as it says who signs the others."""
    for topic in sorted(waiting, key=lambda name: name != GLOBAL):
        while waiting[topic] and _may_read(waiting[topic][0], logs[topic], logs[GLOBAL]):
            entry = _read(logs[topic], waiting[topic].popleft())
            if entry is None:
                continue
            if isinstance(entry.message, KeyNext | KeyEnd):
                _follow_keys(logs, names)
            yield entry


def _may_read(record: Record, log: TopicLog, main: TopicLog) -> bool:
    """Whether it is known who signs a record: a delta may be signed with a key that `global` was not read as far as."""
    if log is main or is_chunk(record):
        return True
    try:
        envelope, message = read_manifest(record)
    except Refused:
        return True
    known = any(envelope.keyid == key_id(span.public) for span in log.signers.line)
    return known or not isinstance(message, Delta) or message.seen_size <= main.tree.size


def _follow_keys(logs: dict[str, TopicLog], names: tuple[str, ...]) -> None:
    """Judge the delta logs by the keys that `global` names."""
    keys = logs[GLOBAL].keys
    for place, name in enumerate(names):
        if keys is not None:
            logs[DELTA_PREFIX + name].follow(keys.line(gate_of_place(place)))


def _read(log: TopicLog, record: Record) -> Entry | None:
    step = log.read(record)
    for fault in step.faults:
        if fault.code not in (FaultCode.REPEAT, FaultCode.VOID, FaultCode.ENDED_KEY):
            raise AuditError(f"{record.topic}@{fault.offset}: {fault.detail}")
    return step.entry


def _delta_logs(manifest: RunManifest) -> dict[str, TopicLog]:
    dim = manifest.adapter_layout().dim
    return {
        DELTA_PREFIX + terms.name: TopicLog(
            DELTA_PREFIX + terms.name,
            public=bytes.fromhex(terms.gate_public),
            run=manifest.run_id,
            boundary=index,
            largest=delta_length(manifest, dim),
        )
        for index, terms in enumerate(manifest.boundaries)
    }


def _has_read(heads: tuple[LogHead, ...], names: tuple[str, ...], logs: dict[str, TopicLog]) -> bool:
    return all(logs[DELTA_PREFIX + names[head.boundary]].tree.size >= head.size for head in heads)


def _crossed(delta: Delta, names: tuple[str, ...], metrics: tuple[MetricTerms, ...]) -> DeltaCrossed:
    tokens = sum(window.tokens for window in delta.windows)
    counted = sum(window.loss_tokens for window in delta.windows)
    loss = sum(window.loss for window in delta.windows) / (1 << 16) / counted if counted else None
    return DeltaCrossed(
        boundary=names[delta.boundary],
        seq=delta.seq,
        windows=len(delta.windows),
        tokens=tokens,
        loss=loss,
        metrics=_means(delta, metrics),
    )


def _means(delta: Delta, metrics: tuple[MetricTerms, ...]) -> dict[int, dict[str, float]]:
    sums: dict[int, tuple[int, ...]] = {}
    for window in delta.windows:
        if any(window.metrics) and len(window.metrics) == 2 * len(metrics):
            before = sums.get(window.eval_commit, (0,) * len(window.metrics))
            sums[window.eval_commit] = tuple(map(add, before, window.metrics))
    return {
        commit: {name: mean for name, (mean, _) in means(metrics, one).items()}
        for commit, one in sums.items()
    }


def _written(message: Commit | Close, names: tuple[str, ...]) -> CommitMade | RunClosed:
    digest = message.adapter_sha256.hex()
    if isinstance(message, Close):
        return RunClosed(message.reason.value, message.commits, digest)
    merged = tuple((names[one.boundary], one.seq, one.staleness) for one in message.merged)
    return CommitMade(message.commit, message.tokens, digest, merged)
