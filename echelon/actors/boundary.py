"""The shell that actors inside a boundary share: signed records in, signed records out, one step at a time."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from echelon.actors.repeats import Repeats
from echelon.actors.runtime import (
    BATCHES,
    DRAIN_SECONDS,
    STEP_COST,
    Publisher,
    Room,
    Services,
    Supply,
    Timers,
    feed,
    jump,
)
from echelon.actors.sealing import seal
from echelon.actors.state import State, StateStore, Waiting
from echelon.actors.taken_records import TakenRecords
from echelon.actors.verified_records import Membership, RecordOpener
from echelon.bus.assembler import Assembler
from echelon.bus.base import Bus, Outgoing, Reader, Record, TopicPartition
from echelon.bus.chunks import NO_SCOPE, ChunkError, Dropped, is_chunk
from echelon.errors import ConnectionLost, ProtocolError
from echelon.messages.boundary import DeadLetter
from echelon.messages.envelope import Signer
from echelon.messages.wire import Message, Reason, Refused
from echelon.rounds.effects import (
    Effect,
    Incoming,
    Note,
    Publish,
    Save,
    StartTimer,
    Stop,
    StopTimer,
    TimerFired,
)
from echelon.topics import Catalogue

TRIM_EVERY = 32
"""Records of a transient topic that are read before the log is told to drop them."""


_ARRIVED = object()
"""The event that records have come which were asked for."""


@dataclass(frozen=True, slots=True)
class _HelperFailed:
    """The event that a task which reads or publishes for the actor has failed."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Cross:
    """An effect of the gate alone: finished records for the exchange."""

    records: tuple[Outgoing, ...]


class BoundaryActor(ABC):
    """A device, an aggregator, or the boundary side of a gate."""

    shares_opened = False
    """Whether it takes what another actor of its process has opened; an aggregator and a gate check for themselves."""

    def __init__(
        self,
        name: str,
        *,
        bus: Bus,
        store: StateStore,
        services: Services,
        signer: Signer,
        membership: Membership,
        catalogue: Catalogue,
        assembler: Assembler,
    ) -> None:
        self.name = name
        self.bus, self.store, self.services = bus, store, services
        self.signer, self.membership, self.catalogue = signer, membership, catalogue
        self.assembler = assembler
        if store.folder is not None:
            assembler.keep_in(store.folder)
        self._taken_records = TakenRecords()
        self._opener = RecordOpener(
            membership,
            catalogue,
            assembler,
            repeated=self._taken_records.again,
            shared=services.opened if self.shares_opened else None,
            dropped=self._gave_up,
            expects=self.expects,
        )
        self.publisher = Publisher(name, bus, store, services, owns=self.owns)
        self._events: asyncio.Queue[object] = asyncio.Queue()
        self._room = Room(BATCHES, self.publisher)
        self.timers = Timers(self._events.put_nowait)
        self._positions: dict[TopicPartition, int] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._repeats = Repeats()
        self._stopped = False
        self.running = False
        """Whether it has recovered and takes events."""
        self.halted = False
        self._trimmed: dict[TopicPartition, int] = {}
        self._supplies: list[Supply] = []

    # ---- what the subclass says ------------------------------------------------------------------

    @abstractmethod
    def inputs(self) -> Iterable[TopicPartition]:
        """The partitions that are read."""

    def on_demand(self) -> Iterable[TopicPartition]:
        """Those of `inputs` that are read only while `wants` says so, in order of precedence."""
        return ()

    def wants(self, at: TopicPartition) -> bool:
        """Whether the next record of a partition that is read on demand can be taken now."""
        return True

    def works_on(self, message: Message) -> bool:
        """Whether a message that is costly for those whom it is about is about this actor."""
        return True

    def consumed(self) -> Iterable[TopicPartition]:
        """Partitions of transient topics whose records nobody else needs."""
        return ()

    def owns(self, topic: str) -> bool:
        """Whether rows of the outbox for that topic are the boundary publisher's."""
        return True

    def crossing(self, rows: Sequence[Waiting]) -> None:
        """Take rows of the outbox that are for the exchange."""
        raise ProtocolError(f"{self.name} has no way to the exchange")

    @abstractmethod
    async def recover(self) -> list[Effect]:
        """Restore the core after the outbox was reconciled; return its first effects."""

    @abstractmethod
    def take(self, event: object) -> list[Effect]:
        """Hand one event to the core."""

    @abstractmethod
    def snapshot(self) -> State:
        """The core's state, to be stored with this step."""

    def vectors(self) -> State | None:
        """The large part of the state, if it is kept apart from the snapshot and has changed since it was asked for."""
        return None

    def parts(self) -> Mapping[str, bytes | None]:
        """Large parts of the state that have changed since this was asked for, by name; None: that one is gone."""
        return {}

    async def perform(self, effect: Effect) -> None:
        """Carry out an effect that only this kind of actor has."""
        raise ProtocolError(f"{self.name} cannot carry out {effect!r}")

    # ---- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Work until the core says `Stop`, or until cancelled."""
        self._positions = {at: 0 for at in self.inputs()} | {
            at: offset for at, offset in self.store.offsets().items() if at in set(self.inputs())
        }
        taken = self.store.taken()
        self._taken_records.begin_with({at: taken[at] for at in taken if at in self._positions})
        await self.publisher.reconcile()
        pump = self._help(self.publisher.run(), "publisher")
        readings: list[asyncio.Task[None]] = []
        readers: list[Reader] = []
        try:
            await self.carry_out(await self.recover())
            for at in self.on_demand():
                readers.append(self.bus.reader({at: self._positions[at]}))
                supply = Supply(at, readers[-1], self.name, self.publisher, self._arrived)
                self._supplies.append(supply)
                readings.append(self._help(supply.run(), f"reader of {at.topic}"))
            pushed = {at: self._positions[at] for at in self._positions if at not in set(self.on_demand())}
            if pushed:
                reader = self.bus.reader(pushed)
                readers.append(reader)
                fed = feed(reader, self._events.put_nowait, self._room, self.name, self._jump(reader))
                readings.append(self._help(fed, "reader"))
            self.running = True
            while not self._stopped:
                record = self._supplied() if self._events.empty() else None
                if record is not None:
                    await self._read([record])
                    continue
                event = await self._events.get()
                if self.halted:
                    break
                if isinstance(event, _HelperFailed):
                    raise event.error
                if event is not _ARRIVED:
                    await self._step(event)
            await self.drain(pump)
        finally:
            self.running = False
            self.timers.stop_all()
            tasks = [pump, *readings, *self._jobs]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for reader in readers:
                await reader.aclose()

    async def drain(self, pump: asyncio.Task[None]) -> None:
        """The work is done: give what was said the time to be sent."""
        await self.publisher.drained(DRAIN_SECONDS)

    def halt(self) -> None:
        """Leave the loop after the step under way, and send what is stored; a restart goes on from there."""
        self.halted = True
        self._events.put_nowait(None)

    def _help(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Start a task that works for the actor as long as it runs; if it fails, its error is an event."""
        task = asyncio.create_task(work, name=f"{self.name} {name}")
        task.add_done_callback(self._helper_ended)
        return task

    def _helper_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._events.put_nowait(_HelperFailed(error))

    def _arrived(self) -> None:
        self._events.put_nowait(_ARRIVED)

    def _supplied(self) -> Record | None:
        """The next record of those that are read on demand and can be taken now; what is missing is asked for."""
        for supply in self._supplies:
            if self.wants(supply.at) and (record := supply.next()) is not None:
                return record
        return None

    async def _step(self, event: object) -> None:
        if isinstance(event, list):
            await self._read(event)
            self._room.release()
        else:
            await self.carry_out(self.take(event))

    async def _read(self, records: list[Record]) -> None:
        effects: list[Effect] = []
        for record in records:
            found = await self._record(record)
            self._positions[record.at] = record.next_offset
            if found:
                effects += found
                if any(isinstance(effect, Save | Stop) for effect in effects):
                    await self.carry_out(effects)
                    effects = []
        if effects:
            await self.carry_out(effects)
        await self._trim()

    def _jump(self, reader: Reader) -> Callable[[], Awaitable[bool]]:
        """Goes on with what is kept of transient topics."""

        async def go_on() -> bool:
            return await jump(self.bus, reader, tuple(self._positions))

        return go_on

    async def _trim(self) -> None:
        """Let the log drop what this actor alone needed and has read."""
        for at in self.consumed():
            if self._positions[at] >= self._trimmed.get(at, 0) + TRIM_EVERY:
                self._trimmed[at] = self._positions[at]
                # To trim saves room and nothing else: what stays for now goes with the next trim.
                with contextlib.suppress(ConnectionLost):
                    await self.bus.trim(at, self._positions[at])

    async def _record(self, record: Record) -> list[Effect]:
        try:
            if record.topic in self.catalogue.boundary.large and not is_chunk(record):
                return await self.services.offload(self._open_and_take, record, cost=STEP_COST)
            incoming = self.open(record)
            if incoming is None:
                return []
            if incoming.message.costly and self.works_on(incoming.message):
                return await self.services.offload(self.take, incoming, cost=STEP_COST)
            return self.take(incoming)
        except Refused as refused:
            return [self.refuse(record, refused.reason, refused.detail)]
        except ChunkError as error:
            return [self.refuse(record, Reason.BAD_TRANSFER, str(error))]
        except ProtocolError as error:
            reason = getattr(error, "reason", None)
            return [
                self.refuse(record, reason if isinstance(reason, Reason) else Reason.PROTOCOL, str(error))
            ]

    def _open_and_take(self, record: Record) -> list[Effect]:
        incoming = self.open(record)
        return [] if incoming is None else self.take(incoming)

    def open(self, record: Record) -> Incoming | None:
        """Decode and verify a record; None for a chunk, which is kept until its manifest comes.

        Raises:
            Refused: with the reason that goes to `deadletter`.
        """
        return self._opener.open(record)

    def expects(self, topic: str, sender: str, scope: bytes) -> bool:
        """Whether transfers of that scope are taken from a sender; what is not expected is passed over unread.

        Args:
            topic: where the transfer stands.
            sender: name of who sends it.
            scope: what it belongs to: the id of a session, or `NO_SCOPE`.
        """
        return scope == NO_SCOPE

    def _gave_up(self, dropped: Dropped) -> None:
        self.services.log.warning("%s gave up an unfinished transfer: %s", self.name, dropped)

    def forget_repeats(self) -> None:
        """Topics are about to be read from their start once more."""
        self._taken_records.forget()

    def _taken(self) -> dict[TopicPartition, list[bytes]]:
        """Signatures of the inputs that the state has taken since it was last stored; asked for once a step."""
        transient = self.catalogue.boundary.transient
        taken = self._taken_records.unstored()
        return {
            at: found for at, found in taken.items() if at in self._positions and at.topic not in transient
        }

    def refuse(self, record: Record, reason: Reason, detail: str) -> Publish:
        """The dead letter of a record.

        Args:
            record: the record as it was read.
            reason: why, as one of the reasons that the format has.
            detail: a sentence for people; only its first 250 characters are kept.
        """
        if (more := self._repeats.again((record.topic, reason))) is not None:
            self.services.log.warning(
                "%s refused %s@%d: %s%s", self.name, record.topic, record.offset, detail, more
            )
        self.services.sink(
            self.name, self._now(), Note("refused", (("topic", record.topic), ("reason", reason.value)))
        )
        letter = DeadLetter(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            reason=reason,
            record_sha256=hashlib.sha256(record.value).digest(),
            detail=detail[:250],
        )
        return Publish("deadletter", letter, 0)

    # ---- effects ---------------------------------------------------------------------------------

    async def carry_out(self, effects: Sequence[Effect | Cross]) -> None:
        """Store the step, then let go of what it publishes, starts and stops."""
        durable = any(
            isinstance(effect, Save | Cross)
            or (isinstance(effect, Publish) and effect.topic not in self.catalogue.boundary.not_stored)
            for effect in effects
        )
        if durable:
            # Signing, hashing and packing of large vectors belong off the loop as much as the write to disk does.
            inward, outward = await self.services.offload(self._store, effects, cost=STEP_COST)
            self.publisher.put(inward)
            if outward:
                self.crossing(outward)
        else:
            self.publisher.put(
                [record for effect in effects if isinstance(effect, Publish) for record in self.seal(effect)]
            )
        for effect in effects:
            match effect:
                case Publish() | Save() | Cross():
                    pass
                case StartTimer():
                    self.timers.start(effect.name, effect.seconds)
                case StopTimer():
                    self.timers.stop(effect.name)
                case Note():
                    self.services.sink(self.name, self._now(), effect)
                case Stop():
                    self._stopped = True
                case _:
                    await self.perform(effect)

    def stored_offsets(self) -> dict[TopicPartition, int]:
        """The input offsets that belong to the state now; never past the first chunk of an open transfer."""
        found = {}
        for at, position in self._positions.items():
            first = self.assembler.first_open_offset(at)
            found[at] = position if first is None else min(position, first)
        return found

    def _store(self, effects: Sequence[Effect | Cross]) -> tuple[list[Waiting | Outgoing], list[Waiting]]:
        """Seal what is published and store the step; what the boundary's publisher and the exchange's get to send."""
        order: list[Outgoing | None] = []  # None: a row of the outbox
        crossing = [record for effect in effects if isinstance(effect, Cross) for record in effect.records]

        def kept() -> Iterator[Outgoing]:
            for effect in effects:
                if not isinstance(effect, Publish):
                    continue
                for record in self.seal(effect):
                    if effect.topic in self.catalogue.boundary.not_stored:
                        order.append(record)
                    else:
                        order.append(None)
                        yield record

        save = any(isinstance(effect, Save) for effect in effects)
        rows = self.store.commit(
            snapshot=self.snapshot() if save else None,
            vectors=self.vectors() if save else None,
            parts=self.parts() if save else None,
            offsets=self.stored_offsets() if save else None,
            taken=self._taken() if save else None,
            publish=chain(kept(), crossing),
        )
        inward = iter(rows[: len(rows) - len(crossing)])
        return [next(inward) if record is None else record for record in order], rows[
            len(rows) - len(crossing) :
        ]

    def seal(self, effect: Publish) -> Iterator[Outgoing]:
        """The signed records of a message, its chunks first; each is made when it is asked for."""
        return seal(effect, self.signer, run=self.membership.run, sender=self.name)

    def start_job(self, job: Callable[[], Awaitable[object]], name: str) -> None:
        """Call `job` and wait for it beside the loop; what it returns is an event."""

        async def run() -> None:
            self._events.put_nowait(await job())

        task = asyncio.create_task(run(), name=f"{self.name} {name}")
        self._jobs.add(task)
        task.add_done_callback(self._job_done)

    def _job_done(self, task: asyncio.Task[None]) -> None:
        self._jobs.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._events.put_nowait(task.exception())

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def raise_if_failed(event: object) -> None:
    """A job that failed ends the actor with the job's error."""
    if isinstance(event, BaseException):
        raise event


__all__ = ["BoundaryActor", "Membership", "TimerFired", "raise_if_failed"]
