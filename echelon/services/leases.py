"""Slots that the broker leases: replicas on any number of hosts agree on `leases` who has which.

Who holds what is derived in `laws/leases.py`; here is what reads, claims, renews and gives back. A replica speaks to
the broker as `BOUNDARY.replica` for this, and signs what it says of a slot with that slot's key.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import NoReturn

from echelon.actors.supervision import BrokerPatience, supervise
from echelon.backoff import Backoff
from echelon.bus.base import Bus, Outgoing, Reader, Record, RecordDamaged, TopicPartition
from echelon.errors import (
    BusError,
    ConfigError,
    ConnectionLost,
    EchelonError,
    OffsetOutOfRange,
    StorageError,
)
from echelon.laws.leases import NONE, SlotLease, SlotLeases, SlotSearch
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.leases import SlotClaim, SlotFree, SlotHold
from echelon.messages.wire import Message, Reason, Refused
from echelon.private import private_folder, write_private
from echelon.secagg.roster import Roster
from echelon.services.locks import FolderLock
from echelon.services.slots import none_free

TOPIC = "leases"
AT = TopicPartition(TOPIC)
MESSAGES = {message.kind: message for message in (SlotClaim, SlotHold, SlotFree)}
HOLDER_FILE = "holder"
"""In the state folder of a slot: 16 bytes by which this host knows its own leases of that slot."""
HOLDER_BYTES = 16
RENEWALS = 5
"""Signs of life in the time of a lease."""
LOOK_SECONDS = 0.5
"""Longest wait for a record before it is looked whether a lease has run out."""
WATCH_SECONDS = 10.0
"""Longest wait for a record of somebody who has a slot."""
RELEASE_SECONDS = 2.0
"""That giving a slot back may take."""
Opening = Callable[[], Awaitable[Bus]]


class SlotLost(EchelonError):
    """Another replica has the slot now; this process may not go on as its device."""


@dataclass(slots=True)
class LeaseTally:
    """What one replica counts of leases, for metrics.

    Attributes:
        epoch: of its own lease; 0 while it has none.
        claims: of its own that were granted.
        refused: claims of its own that were not.
        unrenewed: signs of life of its own that could not be written.
        takeovers: leases of the boundary that another replica took over, of those that this one saw happen.
        held: slots of the boundary, as far as this replica reads, whose holders gave a sign of life in time.
    """

    epoch: int = 0
    claims: int = 0
    refused: int = 0
    unrenewed: int = 0
    takeovers: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseTerms:
    """What a replica needs to lease a slot.

    Attributes:
        run: id of the run, 16 bytes.
        roster: whose keys sign what is said of slots.
        state: the folder with one state folder for each slot.
        seconds: for how long a lease holds without a sign of life.
        open: opens a connection to the broker.
        key: gives the signing key of a slot's folder, 32 bytes.
        log: for what a person should know.
        tally: what is counted, for metrics.
    """

    run: bytes
    roster: Roster
    state: Path
    seconds: int
    open: Opening
    key: Callable[[Path], bytes]
    log: logging.Logger
    tally: LeaseTally = field(default_factory=LeaseTally)


@dataclass(slots=True)
class _LeaseLog:
    """`leases` as it was read so far.

    Args:
        bus: the boundary's broker.
        terms: what records must be of.
    """

    bus: Bus
    terms: LeaseTerms
    leases: SlotLeases = field(default_factory=SlotLeases)
    search: SlotSearch | None = None
    current: bool = False
    """Whether it was read to its end once, so that what comes now happens now."""
    _alive: dict[str, float] = field(default_factory=dict)
    """By slot: until when its holder need give no sign of life, on the loop's clock."""
    _reader: Reader | None = None

    async def read(self, timeout: float) -> None:
        """Take the records that come within so many seconds, or those that are there.

        Raises:
            BusError: the broker is away, or refuses.
        """
        if self._reader is None:
            self._reader = self.bus.reader({AT: await self.bus.first_offset(AT)})
        try:
            records = await self._reader.next(timeout=timeout)
        except RecordDamaged as damaged:
            self._reader.seek(AT, damaged.next_offset)
            return
        except OffsetOutOfRange:
            self.leases.forget()
            self._reader.seek(AT, await self.bus.first_offset(AT))
            return
        for record in records:
            self._take(record)
        self.terms.tally.held = self._held(asyncio.get_running_loop().time())

    async def catch_up(self) -> None:
        """Read what stands there now.

        Raises:
            BusError: the broker is away, or refuses.
        """
        end = await self.bus.end_offset(AT)
        while self._reader is None or self._reader.position(AT) < end:
            await self.read(WATCH_SECONDS)
        self.current = True

    def _take(self, record: Record) -> None:
        try:
            slot, message = opened_lease(record, self.terms.run, self.terms.roster)
        except Refused as refused:
            self.terms.log.debug("passed over %s@%d: %s", TOPIC, record.offset, refused)
            return
        before = self.leases.of(slot)
        if not self.leases.take(slot, record.offset, message):
            return
        now = asyncio.get_running_loop().time()
        if self.search is not None:
            self.search.alive(slot, now)
        self._count(slot, before, now)

    def _count(self, slot: str, before: SlotLease | None, now: float) -> None:
        after = self.leases.of(slot)
        assert after is not None
        if after.free:
            self._alive.pop(slot, None)
        else:
            self._alive[slot] = now + after.seconds
        taken_over = before is not None and not before.free and before.holder != after.holder
        self.terms.tally.takeovers += self.current and taken_over

    def _held(self, now: float) -> int:
        return sum(until > now for until in self._alive.values())

    async def aclose(self) -> None:
        """Let go of the reader and the connection."""
        if self._reader is not None:
            await self._reader.aclose()
        with suppress(BusError):
            await self.bus.aclose()


def opened_lease(record: Record, run: bytes, roster: Roster) -> tuple[str, SlotClaim | SlotHold | SlotFree]:
    """The slot that a record of `leases` is about, and what it says.

    Args:
        record: as it was read.
        run: id of the run, 16 bytes.
        roster: whose keys sign.

    Raises:
        Refused: it is none of this run, or not signed with the slot's key.
    """
    envelope = Envelope.open(record.value)
    kind = MESSAGES.get(envelope.type)
    if kind is None or envelope.type_version != kind.revision:
        raise Refused(Reason.UNKNOWN_TYPE, f"{envelope.type[:32]} is nothing that stands on {TOPIC}")
    if envelope.run != run:
        raise Refused(Reason.WRONG_RUN, "it is of another run")
    if envelope.sender not in roster:
        raise Refused(Reason.UNKNOWN_SENDER, f"{envelope.sender} is no slot of this boundary")
    if not envelope.verified(roster.entry(envelope.sender).public, TOPIC):
        raise Refused(Reason.BAD_SIGNATURE, f"{envelope.sender} did not sign it")
    message = kind.decode(envelope.body)
    assert isinstance(message, SlotClaim | SlotHold | SlotFree)
    return envelope.sender, message


class SlotClaimant:
    """Looks for a slot and claims it.

    Args:
        slots: folders of the slots that the replica may have.
        terms: what it needs to lease one.
        within: seconds to wait for a free one, in contact with the broker.
    """

    def __init__(self, slots: Sequence[Path], terms: LeaseTerms, within: float) -> None:
        self._slots = {slot.name: slot for slot in slots}
        self._terms, self._within = terms, within
        self._log = terms.log
        self._told: _LeaseLog | None = None
        """What stands on the topic, as far as it was read."""
        self._waited = 0.0
        self._said = False

    async def take(self) -> HeldSlot:
        """Claim a slot that nobody has, waiting for one if there is none, and for a broker that is away.

        Raises:
            ConfigError: none became free in time.
            BusDenied: the broker does not let this principal in.
            StorageError: there is no room for the holder's file.
        """
        # However long it lasts: who waits for a free slot has not been let in to write.
        patience = BrokerPatience(healthy=math.inf)
        try:
            return await supervise(self._attempt, patience, name=None, failed=self._failed)
        finally:
            await self._drop()

    async def _attempt(self) -> HeldSlot:
        try:
            if self._told is None:
                self._told = _LeaseLog(await self._terms.open(), self._terms)
            held = await self._search(self._told)
        except ConnectionLost:  # what was read stays read: a slow broker is not asked for it again
            raise
        except BusError:
            await self._drop()
            raise
        self._told = None  # it is the slot's from now on
        return held

    async def _drop(self) -> None:
        told, self._told = self._told, None
        if told is not None:
            await told.aclose()

    def _failed(self, error: EchelonError) -> None:
        self._log.warning("the leases of slots cannot be read or written now: %s", error)

    async def _search(self, told: _LeaseLog) -> HeldSlot:
        loop = asyncio.get_running_loop()
        known = {name: mine for name in self._slots if (mine := self._holder(name)) is not None}
        # In an order of its own: replicas that start together would otherwise all claim the same slots one by one.
        names = sorted(self._slots)
        SystemRandom().shuffle(names)
        names.sort(key=lambda name: name not in known)
        told.search = SlotSearch(names, known, loop.time())
        began = loop.time() - self._waited
        while True:
            await told.catch_up()
            held = await self._try_all(told, told.search)
            if held is not None:
                return held
            self._waited = loop.time() - began
            if self._waited >= self._within:
                raise ConfigError(none_free(list(self._slots.values())))
            if not self._said:
                self._said = True
                self._log.warning(
                    "%d slots, all taken: waiting up to %.0f s for one", len(names), self._within
                )
            await told.read(LOOK_SECONDS)
            if not told.bus.connected:
                told.search.lost_contact(loop.time())

    async def _try_all(self, told: _LeaseLog, search: SlotSearch) -> HeldSlot | None:
        """Claim one slot after another, each once; None if there is none to be had.

        Each try reads on, so who has what is asked anew before the next: a slot that another replica got meanwhile is
        no candidate any more, and a claim that names its newest record would take it away.
        """
        loop, tried = asyncio.get_running_loop(), set[str]()
        while True:
            left = (name for name in search.candidates(told.leases, loop.time()) if name not in tried)
            name = next(left, None)
            if name is None:
                return None
            tried.add(name)
            held = await self._try(told, name)
            if held is not None:
                return held

    async def _try(self, told: _LeaseLog, name: str) -> HeldSlot | None:
        """Claim one slot; None if somebody else has it, on this host or elsewhere."""
        slot, terms = self._slots[name], self._terms
        lock = FolderLock.take(slot)
        if lock is None:
            return None
        try:
            signer = Signer(terms.key(slot))
            holder = self._holder(name) or self._new_holder(name)
            before = told.leases.of(name)
            claim = SlotClaim(
                holder=holder, after=NONE if before is None else before.newest, seconds=terms.seconds
            )
            await told.bus.publish(lease_record(name, claim, signer, terms.run))
            await told.catch_up()
            lease = told.leases.of(name)
            if lease is not None and lease.holder == holder and lease != before and not lease.free:
                told.search = None
                terms.tally.claims += 1
                terms.tally.epoch = lease.epoch
                return HeldSlot(told, lock, signer, lease.epoch, holder)
        except BaseException:
            lock.release()
            raise
        terms.tally.refused += 1
        lock.release()
        return None

    def _holder(self, name: str) -> bytes | None:
        """By what this host knows its own leases of a slot, if it had one."""
        try:
            found = (self._terms.state / name / HOLDER_FILE).read_bytes()
        except OSError:
            return None
        return found if len(found) == HOLDER_BYTES else None

    def _new_holder(self, name: str) -> bytes:
        holder, place = os.urandom(HOLDER_BYTES), self._terms.state / name
        try:
            private_folder(place)
            write_private(place / HOLDER_FILE, holder)
        except OSError as error:
            raise StorageError(
                f"{place / HOLDER_FILE} cannot be written now ({error.strerror}): make room on its disk"
            ) from error
        return holder


class HeldSlot:
    """A slot that this process has, for as long as it says so in time and nobody else gets it.

    Args:
        told: `leases`, as it was read until now.
        lock: on the slot's folder, for this host.
        signer: the slot's key.
        epoch: of the lease.
        holder: 16 bytes of this replica.
    """

    def __init__(self, told: _LeaseLog, lock: FolderLock, signer: Signer, epoch: int, holder: bytes) -> None:
        self.lock, self.epoch = lock, epoch
        self._told, self._signer, self._holder = told, signer, holder
        self._name, self._terms = lock.folder.name, told.terms
        self._lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks = [
            asyncio.create_task(self._renew(), name="lease renewal"),
            asyncio.create_task(self._watch(), name="lease watch"),
        ]
        for task in self._tasks:
            task.add_done_callback(self._ended)

    async def lost(self) -> NoReturn:
        """Wait until another replica has the slot, which may never be.

        Raises:
            SlotLost: it has.
        """
        await asyncio.shield(self._lost)
        raise AssertionError("a lease is lost with an error")

    async def release(self) -> None:
        """Give the slot back, so that another replica need not wait for the lease to run out. Idempotent."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if not tasks:
            return
        self._terms.tally.epoch = 0
        with suppress(BusError, TimeoutError):
            async with asyncio.timeout(RELEASE_SECONDS):
                if not self._lost.done():
                    await self._say(SlotFree(epoch=self.epoch))
        await self._told.aclose()

    async def _renew(self) -> None:
        """Say that the replica is there, again and again."""
        hold = SlotHold(holder=self._holder, epoch=self.epoch, seconds=self._terms.seconds)
        failing = False
        while True:
            try:
                await self._say(hold)
                if failing:
                    self._terms.log.info("the lease of %s is renewed again", self._name)
                failing = False
            except BusError as error:
                self._terms.tally.unrenewed += 1
                if not failing:
                    self._terms.log.warning(
                        "the lease of %s cannot be renewed now; after %d s another replica may take the slot: %s",
                        self._name, self._terms.seconds, error,
                    )  # fmt: skip
                failing = True
            await asyncio.sleep(self._terms.seconds / RENEWALS)

    async def _watch(self) -> None:
        """Read what others say of the slot."""
        backoff = Backoff()
        while True:
            try:
                await self._told.read(WATCH_SECONDS)
            except BusError as error:
                self._terms.log.debug("leases are not read now: %s", error)
                await backoff.wait()
                continue
            backoff.reset()
            lease = self._told.leases.of(self._name)
            if lease is not None and lease.epoch != self.epoch:
                self._terms.tally.epoch = 0
                raise SlotLost(
                    f"the slot of {self._name} was taken over by another replica (lease {lease.epoch} after "
                    f"{self.epoch}), since this one gave no sign of life for {self._terms.seconds} s: this process "
                    "ends, and takes a free slot when it is started again"
                )

    async def _say(self, message: SlotHold | SlotFree) -> None:
        await self._told.bus.publish(lease_record(self._name, message, self._signer, self._terms.run))

    def _ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled() or self._lost.done():
            return
        error = task.exception()
        if error is not None:
            self._lost.set_exception(error)
            self._lost.exception()  # whoever waits gets it; nobody has to


def lease_record(slot: str, message: Message, signer: Signer, run: bytes) -> Outgoing:
    """The signed record of what a replica says of a slot.

    Args:
        slot: its name.
        message: what is said.
        signer: the slot's key.
        run: id of the run, 16 bytes.
    """
    envelope = Envelope.seal(signer, message, run=run, topic=TOPIC, window=0, sender=slot)
    return Outgoing(TOPIC, envelope.encode(), slot.encode())
