"""The controller as a service: it reads the boundaries' deltas and writes `global`, and nothing else."""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from echelon.actors.announcing import Announcer
from echelon.actors.commit_notes import CommitNotes
from echelon.actors.controller_state import put_together, taken_apart
from echelon.actors.exchange import Writer, reportable_faults
from echelon.actors.global_writer import GlobalWriter
from echelon.actors.key_changes import ChangesGiven, KeyChanges
from echelon.actors.runtime import (
    BATCHES,
    STEP_COST,
    Publisher,
    Room,
    Services,
    Timers,
    end_of,
    feed,
    read_to_end,
)
from echelon.actors.state import StateStore, Waiting
from echelon.audit.log import Entry, FaultCode, TopicLog
from echelon.bus.base import Bus, Outgoing, Reader, Record, TopicPartition
from echelon.errors import EchelonError, StateError
from echelon.laws.keys import Keys
from echelon.laws.lengths import delta_length
from echelon.laws.rules import Allowed
from echelon.messages.adapter import Vector
from echelon.messages.envelope import Signer
from echelon.messages.exchange import (
    Close,
    CloseReason,
    Commit,
    Delta,
    Genesis,
    Refusal,
    RefusalReason,
)
from echelon.messages.keys import StatementFile
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import stored
from echelon.rounds.controller.catching_up import CatchingUp
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.effects import Note, TimerFired, note

GLOBAL = TopicPartition("global")
DEADLINE = "commit"
CLOSE = "close"
MICROSECONDS = 1_000_000
REMEMBERED_TIMES = 17
"""Of the commits that stand at its start: what the run's pace is told from."""


@dataclass(frozen=True, slots=True)
class EndsOfLogs:
    """The ends of all delta logs were asked for.

    Attributes:
        standing: commits that stood on the exchange before that.
        ends: offset after the last record, by topic; empty if `error` is there.
        error: what went wrong, other than a lost connection.
    """

    standing: int
    ends: Mapping[str, int]
    error: EchelonError | None = None


Event = list[Record] | TimerFired | EndsOfLogs | ChangesGiven


class Controller:
    """The shell around `ControllerCore`.

    Args:
        bus: the exchange's broker.
        store: the controller's state file.
        signer: the key that signs `global`.
        sealed_manifest: the signed run manifest, whose digest everybody pins.
        initial: the adapter of genesis, float32[d].
        deadline: seconds after which a commit is made of fewer deltas than `deltas_per_commit`.
        rules: users' own classes that may run here, by name.
        changes: changes of signing keys that are to stand on `global`, as far as they do not yet.
    """

    name = "controller"

    def __init__(
        self,
        *,
        bus: Bus,
        store: StateStore,
        services: Services,
        signer: Signer,
        sealed_manifest: bytes,
        initial: Vector,
        deadline: float,
        rules: Allowed | None = None,
        changes: Iterable[StatementFile] = (),
    ) -> None:
        self.bus, self.store, self.services = bus, store, services
        self.sealed, self.manifest = sealed_manifest, RunManifest.open(sealed_manifest)
        self.deadline = deadline
        run = self.manifest.run_id
        self._rules = rules
        self.core = ControllerCore(self.manifest, initial, rules=rules)
        self._initial: Vector | None = initial
        self._writer = Writer(TopicLog("global", payloads=False), signer, run)
        self._logs = {
            f"delta.{terms.name}": TopicLog(
                f"delta.{terms.name}",
                public=bytes.fromhex(terms.gate_public),
                run=run,
                boundary=index,
                largest=delta_length(self.manifest, self.core.dim),
            )
            for index, terms in enumerate(self.manifest.boundaries)
        }
        self._global = GlobalWriter(
            self._writer, self.manifest, logs=self._logs, transcript=self.core.transcript
        )
        self._changes = KeyChanges(signer.public, changes, services.log)
        self._positions = {TopicPartition(topic): 0 for topic in self._logs}
        self._announcer = Announcer(self._writer)
        self.publisher = Publisher(self.name, bus, store, services, took=self._took)
        self._catching_up = CatchingUp(self._logs, within=self.manifest.exchange.deadline_commits)
        self._looking: asyncio.Task[None] | None = None
        self._reader: Reader | None = None
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._room = Room(BATCHES, self.publisher)
        self.timers = Timers(self._events.put_nowait)
        self._notes = CommitNotes(self.manifest)
        self._refused: set[tuple[int, int, int]] = set()
        """(boundary, seq, offset) of deltas that `global` says were refused."""
        self._overdue = False
        self._elapsed_before = 0.0
        self._started = 0.0
        self._last_commit = 0.0
        self._facts: list[tuple[float, Note]] = []
        """Facts of the step under way, for metrics: told once it is stored, as a step that is not is taken again."""
        self.closed: CloseReason | None = None
        self.running = False
        """Whether it has recovered and takes events."""
        self.halted = False
        self.commit_times: deque[float] = deque(maxlen=REMEMBERED_TIMES)
        """When the commits were written that stood at the start, in seconds since the epoch: the brokers' word."""
        self.genesis_sha256 = b""
        """Of the genesis record that this controller wrote: what everybody pins."""

    # ---- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until the budget is spent and `close` stands on the topic."""
        self._started = self._last_commit = self._now()
        await self.publisher.reconcile()
        pump = asyncio.create_task(self.publisher.run(), name="controller publisher")
        reading: asyncio.Task[None] | None = None
        try:
            await self._recover()
            self._initial = None  # it stands on `global`, and the core has its own
            self._writer.log.take_initial()
            self._look_when_wanted()
            reader = self._reader = self.bus.reader(self._positions)
            reading = asyncio.create_task(
                feed(reader, self._events.put_nowait, self._room, self.name),
                name="controller reader",
            )
            self.timers.start(DEADLINE, self.deadline)
            if self.manifest.budget.seconds and self.closed is None:
                left = self.manifest.budget.seconds - self._elapsed()
                self.timers.start(CLOSE, max(0.0, left))
            self.running = True
            while self.closed is None:
                event = await self._next_event(pump, reading)
                if self.halted:
                    await self._store([])
                    break
                await self._step(event)
            # `close` is for everybody to hear, whenever the exchange is there again.
            await self.publisher.flush(pump, lambda: self.halted)
        finally:
            self.running = False
            self.timers.stop_all()
            tasks = [task for task in (pump, reading, self._looking) if task is not None]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self._reader is not None:
                await self._reader.aclose()

    async def stop(self) -> None:
        """Close the run now, whatever the budget says."""
        self._events.put_nowait(TimerFired("stop"))

    def change_keys(self, given: ChangesGiven) -> None:
        """Write these changes of signing keys on `global`, as far as they hold and do not stand there yet."""
        self._events.put_nowait(given)

    def halt(self) -> None:
        """Leave the loop after the step under way: the run stays open, and a restart goes on with it."""
        self.halted = True
        self._events.put_nowait(TimerFired("halt"))

    async def _next_event(self, *guards: asyncio.Task[None]) -> Event:
        waiting = asyncio.create_task(self._events.get())
        await asyncio.wait({waiting, *guards}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            waiting.cancel()
            for guard in guards:
                if guard.done():
                    guard.result()
        return await waiting

    async def _step(self, event: Event) -> None:
        publish: list[Outgoing] = []
        if isinstance(event, TimerFired):
            if event.name == "stop":
                publish += self._close(CloseReason.STOPPED)
            elif event.name == CLOSE:
                publish += self._close_when_finished()
            else:
                self._overdue = True
                self.timers.start(DEADLINE, self.deadline)
        elif isinstance(event, EndsOfLogs):
            if event.error is not None:
                raise event.error
            self._catching_up.looked(event.standing, event.ends, self._read_to())
        elif isinstance(event, ChangesGiven):
            self._changes.add(event)
        else:
            for record in event:
                publish += await self._read(record)
            self._room.release()
        if self.closed is None:
            publish += self._changes.write(self._global)
            self._catching_up.reached(self._read_to())
            publish += await self._commit_when_due()
            self._look_when_wanted()
        if publish:
            await self._store(publish)
        else:
            self._tell()

    async def _store(self, publish: Sequence[Outgoing]) -> None:
        snapshot, offsets = self._snapshot(), dict(self._positions)
        stored = False

        def persist() -> list[Waiting]:
            nonlocal stored
            rows = self.store.commit(snapshot=snapshot, offsets=offsets, publish=publish)
            stored = True
            return rows

        try:
            self.publisher.put(await self.services.offload(persist, cost=STEP_COST))
        finally:
            if stored:  # also if a stop came in between
                self._tell()

    # ---- deltas ----------------------------------------------------------------------------------

    async def _read(self, record: Record) -> list[Outgoing]:
        log = self._logs[record.topic]
        step = log.read(record)
        self._positions[record.at] = record.next_offset
        for fault in reportable_faults(step):
            self.services.log.warning(
                "controller: %s@%d: %s (%s)", record.topic, record.offset, fault.detail, fault.code
            )
            self._note("refused", topic=record.topic, reason=fault.code.value)
        entry = step.entry
        if entry is None or not isinstance(entry.message, Delta):
            return []
        delta = entry.message
        reason = await self.services.offload(self._offer, delta, entry, cost=STEP_COST)
        boundary = self.manifest.boundaries[delta.boundary].name
        if reason is None:
            self._notes.arrived(delta, self.core.form.integers(entry.payload or b"", delta.exponent))
            self._note(
                "delta", boundary=boundary, seq=delta.seq, bytes=delta.payload.length, base=delta.base_commit
            )
            return []
        return self._refuse(delta.boundary, delta.seq, entry.offset, reason)

    def _offer(self, delta: Delta, entry: Entry) -> RefusalReason | None:
        # A payload that the log put together has the digest that its manifest names.
        known = delta.payload.sha256 if entry.payload is not None else None
        return self.core.offer(
            delta, entry.payload or b"", entry.offset, payload_sha256=known, fault=entry.refusal
        )

    def _refuse(self, boundary: int, seq: int, offset: int, reason: RefusalReason) -> list[Outgoing]:
        if (boundary, seq, offset) in self._refused:
            return []
        self._notes.gone(boundary, seq)
        self._refused.add((boundary, seq, offset))
        self._note("refusal", boundary=self.manifest.boundaries[boundary].name, seq=seq, reason=reason.value)
        return [self._global.refusal(boundary, seq, offset=offset, reason=reason)]

    # ---- nothing is left unread -------------------------------------------------------------------

    def _took(self, records: Sequence[Outgoing]) -> None:
        """The broker has these records."""
        self._announcer.took(records)
        self._look_when_wanted()

    def _look_when_wanted(self) -> None:
        """Ask for the ends of all delta logs, if the next commits depend on it."""
        self._catching_up.stood(self.core.transcript.commits(self._announcer.standing))
        under_way = self._looking is not None and not self._looking.done()
        if not under_way and self.closed is None and self._catching_up.wants_look(self.core.newest + 1):
            self._looking = asyncio.create_task(
                self._look(), name="controller looking at the ends of delta logs"
            )

    async def _look(self) -> None:
        standing = self._catching_up.standing
        ends = {}
        try:
            for topic in self._logs:
                ends[topic] = await end_of(self.bus, TopicPartition(topic), self.name)
        except EchelonError as error:
            self._events.put_nowait(EndsOfLogs(standing, {}, error))
        else:
            self._events.put_nowait(EndsOfLogs(standing, ends))

    def _read_to(self) -> dict[str, int]:
        """How far each delta log was read; where nothing waits, past what is no record and past gaps, too."""
        read = {at.topic: offset for at, offset in self._positions.items()}
        if self._reader is not None and self._events.empty():
            for topic in read:
                read[topic] = max(read[topic], self._reader.position(TopicPartition(topic)))
        return read

    # ---- commits ---------------------------------------------------------------------------------

    async def _commit_when_due(self) -> list[Outgoing]:
        if not self.core.due(self._overdue):
            return self._close_when_finished()
        if not self._catching_up.allows(self.core.newest + 1):
            return self._close_when_finished()  # deltas stand unread that the terms promise to read first
        self._overdue = False
        now = self._now()
        measured = (round((now - self._last_commit) * MICROSECONDS),)
        draft = await self.services.offload(self.core.commit, measured, cost=STEP_COST)
        commit, records = self._global.commit(draft)
        stale_deltas = self.core.apply(commit)
        self._note("commit", **self._notes.describe(commit, self.core.decision, self._elapsed()))
        for stale in stale_deltas:
            records += self._refuse(stale.boundary, stale.seq, stale.offset, stale.reason)
        self._last_commit = now
        self.timers.start(DEADLINE, self.deadline)
        return [*records, *self._close_when_finished()]

    def _begin_with_key(self, closed: CloseReason | None) -> None:
        """Say first that its key follows the former one, if so; raises `StateError` if it is not the controller's."""
        records = [] if closed is not None else self._changes.write(self._global, every=False)
        self._changes.check_own(self._writer.log.keys or Keys.of(self.manifest))
        self._global.follow()
        if records:
            self.publisher.put(self.store.commit(publish=records))

    def _close_when_finished(self) -> list[Outgoing]:
        reason = self.core.finished(int(self._elapsed()))
        return [] if reason is None or self.closed is not None else self._close(reason)

    def _close(self, reason: CloseReason) -> list[Outgoing]:
        if self.closed is not None:
            return []
        self.closed = reason
        self._note("close", reason=reason.value, commits=self.core.newest)
        return [self._global.close(self.core.newest, reason, self.core.adapter)]

    # ---- start and restart -----------------------------------------------------------------------

    async def _recover(self) -> None:
        # The outbox first: the publisher is at work, and what it sends meanwhile leaves the outbox behind the end that
        # is read.
        unsent = [row.record for row in self.store.outbox()]
        records, announced = await asyncio.gather(self._written(), self._announcer.look(self.bus))
        closed: CloseReason | None = None
        decided: list[Commit | Refusal] = []
        written: list[Record | Outgoing] = [*records, *unsent]
        standing = 0
        for place, record in enumerate(written, 1):
            step = self._writer.wrote(record)
            if place <= len(records):
                standing = len(self._writer.tree)
            if faults := [one for one in reportable_faults(step) if one.code is not FaultCode.ENDED_KEY]:
                raise StateError(f"controller: its own topic does not verify: {faults[0].detail}")
            message = None if step.entry is None else step.entry.message
            if step.entry is not None:
                self.core.transcript.append(
                    step.entry.message, step.entry.sha256, self._writer.log.tree.root()
                )
            if step.entry is not None and isinstance(message, Genesis):
                self.genesis_sha256 = step.entry.sha256
            if isinstance(message, Close):
                closed = message.reason
            elif isinstance(message, Commit | Refusal):
                decided.append(message)
                if isinstance(message, Commit) and isinstance(record, Record):
                    self.commit_times.append(record.timestamp_ms / 1000)
                if isinstance(message, Refusal):
                    self._refused.add((message.boundary, message.seq, message.offset))
        self._announcer.start(announced, self.publisher, standing)
        self._begin_with_key(closed)
        snapshot = self.store.snapshot()
        if snapshot is None:
            if self._writer.next_number == 0 and self._initial is not None:
                genesis = self._global.genesis(self.sealed, self._initial)
                self.genesis_sha256 = hashlib.sha256(genesis[-1].value).digest()
                await self._store(genesis)
                return
            await self._rebuild(decided)
            self.closed = closed
            return
        with stored("controller: its stored state"):
            self._elapsed_before, logs, core = taken_apart(snapshot)
            for topic, state in logs:
                self._logs[topic].restore(state)
            self._global.follow()
            self.core = ControllerCore.restore(
                self.manifest, core, rules=self._rules, transcript=self.core.transcript
            )
        self._positions |= self.store.offsets()
        self.closed = closed

    async def _written(self) -> list[Record]:
        """Everything that stands on `global`."""
        return [record async for record in read_to_end(self.bus, GLOBAL, 0, self.name)]

    async def _rebuild(self, decided: Sequence[Commit | Refusal]) -> None:
        """The state file is gone: derive its content from the topics, as an auditor would.

        A commit says how far each delta log had been read, and a refusal that a log had been read as far as the delta
        that it refuses: what is said next must not have read less. What `global` says was refused is not refused again.
        """
        count = sum(isinstance(message, Commit) for message in decided)
        self.services.log.warning("controller: no state file; rebuilding it from %d commits", count)
        if self._writer.log.manifest != self.manifest or self._writer.log.initial is None:
            raise StateError("controller: genesis on `global` is of another run than the manifest given")
        owed: list[Outgoing] = []
        topics = list(self._logs)
        sources = {topic: read_to_end(self.bus, TopicPartition(topic), 0, self.name) for topic in topics}
        try:
            for message in decided:
                if isinstance(message, Refusal):
                    topic = topics[message.boundary]
                    while self._positions[TopicPartition(topic)] <= message.offset:
                        owed += await self._read(await anext(sources[topic]))
                    continue
                for head, (topic, log) in zip(message.heads, self._logs.items(), strict=True):
                    while log.tree.size < head.size:
                        owed += await self._read(await anext(sources[topic]))
                    if log.tree.root() != head.root:
                        raise StateError(
                            f"controller: {topic} is not the log that commit {message.commit} was made of"
                        )
                for stale in self.core.apply(message):
                    owed += self._refuse(stale.boundary, stale.seq, stale.offset, stale.reason)
        except StopAsyncIteration:
            raise StateError("controller: a delta log is shorter than `global` says") from None
        finally:
            for source in sources.values():
                await source.aclose()
        await self._store(owed)

    def _snapshot(self) -> list[bytes | memoryview]:
        """What a restart needs, in parts."""
        return put_together(self._elapsed(), self._logs, self.core.snapshot_parts())

    # ---- small things ----------------------------------------------------------------------------

    def _elapsed(self) -> float:
        return self._elapsed_before + self._now() - self._started

    def checkpoint(self) -> tuple[str, bytes]:
        """The topic, and the signed head of its log as it stands (a C2SP checkpoint)."""
        return self._writer.log.topic, self._writer.checkpoint()

    def _note(self, kind: str, **facts: object) -> None:
        self._facts.append((self._now(), note(kind, **facts)))

    def _tell(self) -> None:
        for time, fact in self._facts:
            self.services.sink(self.name, time, fact)
        self._facts.clear()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
