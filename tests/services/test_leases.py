"""Replicas on several hosts lease slots from one log: on the virtual clock, with links that fail."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from echelon.bus import Bus, open_bus
from echelon.bus.base import Record, TopicPartition
from echelon.errors import BusDenied, ConfigError, ConnectionLost
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.leases import SlotClaim, SlotHold
from echelon.messages.wire import Refused
from echelon.secagg.roster import Roster, RosterEntry
from echelon.services.leases import (
    AT,
    HeldSlot,
    LeaseTally,
    LeaseTerms,
    SlotClaimant,
    SlotLost,
    lease_record,
    opened_lease,
)
from echelon.virtual_loop import run_virtual

RUN = bytes(16)
NAMES = tuple(f"a-{number}" for number in range(12))
SECONDS = 20
LOG = logging.getLogger("test")


def key(name: str) -> bytes:
    return name.encode().ljust(32, b"\x01")


ROSTER = Roster.enrol(
    "a",
    [RosterEntry(device=name, public=Signer(key(name)).public, slot=slot) for slot, name in enumerate(NAMES)],
    Signer(bytes(32)),
    aggregator=Signer(key("aggregator")).public,
    gate=Signer(key("gate")).public,
)


class Link:
    """A host's way to the broker, which can be cut: every call then fails after a while, and readers see nothing."""

    def __init__(self, name: str) -> None:
        self.url, self.up, self.denied = f"memory://{name}", True, False
        self.slow = 0.0
        """Seconds that a record takes to the broker."""
        self.opened: list[Bus] = []

    async def open(self) -> Bus:
        bus = await open_bus(self.url)
        await bus.create_topic(AT.topic)
        publish, reader = bus.publish, bus.reader

        async def cut_publish(record: object) -> int:
            await self._through()
            await asyncio.sleep(self.slow)
            return await publish(record)  # type: ignore[arg-type]

        def cut_reader(positions: dict[TopicPartition, int]) -> object:
            made = reader(positions)
            following = made.next

            async def cut_next(**how: float) -> list[Record]:
                await self._through()
                return await following(**how)  # type: ignore[arg-type]

            made.next = cut_next  # type: ignore[method-assign, assignment]
            return made

        bus.publish, bus.reader = cut_publish, cut_reader  # type: ignore[method-assign, assignment]
        self.opened.append(bus)
        return bus

    async def _through(self) -> None:
        if self.denied:
            raise BusDenied("not this one")
        if not self.up:
            await asyncio.sleep(1.0)
            raise ConnectionLost("the link is cut")


class Host:
    """A folder of slots whose locks nobody else sees, and a folder of states."""

    def __init__(self, folder: Path, broker: str, slots: int) -> None:
        self.slots = [folder / "slots" / name for name in NAMES[:slots]]
        for slot in self.slots:
            slot.mkdir(parents=True)
        self.link = Link(broker)
        self.terms = LeaseTerms(
            run=RUN,
            roster=ROSTER,
            state=folder / "state",
            seconds=SECONDS,
            open=self.link.open,
            key=lambda slot: key(slot.name),
            log=LOG,
        )

    async def take(self, within: float = 60.0) -> HeldSlot:
        return await SlotClaimant(self.slots, self.terms, within).take()


@contextmanager
def hosts(folder: Path, count: int, slots: int) -> Iterator[list[Host]]:
    made = [Host(folder / f"host{number}", folder.name, slots) for number in range(count)]
    yield made
    shutil.rmtree(folder)


async def killed(held: HeldSlot) -> None:
    """The process ends without a word; its host's locks are let go of by the kernel."""
    for task in held._tasks:
        task.cancel()
    await asyncio.gather(*held._tasks, return_exceptions=True)
    held.lock.release()


def name(held: HeldSlot) -> str:
    return held.lock.folder.name


@pytest.mark.slow
def test_two_hosts_never_have_one_slot_and_each_lease_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    async def run() -> None:
        with hosts(tmp_path / "b", 3, 12) as places:
            held = await asyncio.gather(*(place.take() for place in places for _ in range(4)))
            assert sorted(map(name, held)) == sorted(NAMES)
            assert len({one.epoch for one in held}) == 12
            with pytest.raises(ConfigError, match="12 slots, all taken; enrol more or stop a replica"):
                await places[0].take(within=3.0)
            await asyncio.sleep(10 * SECONDS)
            assert not any(one._lost.done() for one in held)
            for one in held:
                await one.release()

    run_virtual(run)


@pytest.mark.slow
def test_on_a_slow_broker_nobody_claims_a_slot_that_another_replica_got_meanwhile(tmp_path: Path) -> None:
    async def run() -> None:
        with hosts(tmp_path / "b", 12, 12) as places:
            for number, place in enumerate(places):
                place.link.slow = 1.0 + number / 7
            held = await asyncio.gather(*(place.take(within=600.0) for place in places))
            await asyncio.sleep(10 * SECONDS)
            assert [name(one) for one in held if one._lost.done()] == []
            assert sorted(map(name, held)) == sorted(NAMES)
            assert sum(place.terms.tally.takeovers for place in places) == 0
            for one in held:
                await one.release()

    run_virtual(run)


def test_a_slot_that_is_given_back_is_taken_at_once_and_a_killed_one_s_when_its_lease_is_over(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with hosts(tmp_path / "b", 2, 1) as (here, there):
            first = await here.take()
            waiting = asyncio.create_task(there.take())
            await asyncio.sleep(30.0)
            assert not waiting.done()
            await first.release()
            first.lock.release()
            at = loop.time()
            second = await waiting
            assert loop.time() - at < 1.0
            assert second.epoch > first.epoch
            await killed(second)
            at = loop.time()
            third = await here.take()
            assert SECONDS * 0.7 <= loop.time() - at <= SECONDS + 2
            await third.release()

    run_virtual(run)


def test_a_process_that_is_started_again_on_its_host_does_not_wait_for_its_own_lease(tmp_path: Path) -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        with hosts(tmp_path / "b", 2, 2) as (here, there):
            other, first = await there.take(), await here.take()
            await killed(first)
            at = loop.time()
            again = await here.take()
            assert loop.time() - at < 1.0
            assert (name(again), again.epoch > first.epoch) == (name(first), True)
            for one in (other, again):
                await one.release()

    run_virtual(run)


def test_a_host_that_is_cut_off_loses_its_slot_and_learns_it_when_it_is_back(tmp_path: Path) -> None:
    async def run() -> None:
        with hosts(tmp_path / "b", 2, 1) as (here, there):
            first = await here.take()
            lost = asyncio.create_task(first.lost())
            waiting = asyncio.create_task(there.take(within=600.0))
            await asyncio.sleep(5.0)
            assert here.terms.tally == LeaseTally(epoch=first.epoch, claims=1, held=1)
            here.link.up = False
            second = await waiting
            assert there.terms.tally == LeaseTally(epoch=second.epoch, claims=1, takeovers=1, held=1)
            await asyncio.sleep(60.0)
            assert not lost.done()  # it cannot know
            here.link.up = True
            with pytest.raises(SlotLost, match="the slot of a-0 was taken over by another replica"):
                await lost
            assert here.terms.tally.epoch == 0
            assert here.terms.tally.unrenewed > 0
            await first.release()
            assert not second._lost.done()  # what the first one still said did not count
            await second.release()

    run_virtual(run)


def test_a_broker_that_is_away_for_all_takes_nobody_s_slot(tmp_path: Path) -> None:
    async def run() -> None:
        with hosts(tmp_path / "b", 2, 1) as (here, there):
            first = await here.take()
            waiting = asyncio.create_task(there.take(within=600.0))
            await asyncio.sleep(5.0)
            here.link.up = there.link.up = False
            await asyncio.sleep(300.0)
            here.link.up = there.link.up = True
            await asyncio.sleep(300.0)
            assert not first._lost.done()
            assert not waiting.done()
            await first.release()
            await (await waiting).release()

    run_virtual(run)


def test_a_broker_that_refuses_is_waited_for_by_whoever_has_a_slot_and_not_for_ever_by_whoever_has_none(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        with hosts(tmp_path / "b", 2, 2) as (here, there):
            there.link.denied = True
            with pytest.raises(BusDenied):
                await there.take()
            first = await here.take()
            here.link.denied = True
            await asyncio.sleep(900.0)
            assert not first._lost.done()
            here.link.denied = False
            await first.release()

    run_virtual(run)


# ---- records ----------------------------------------------------------------------------------------


def as_read(record: object, value: bytes | None = None) -> Record:
    found = record.at(5, 0)  # type: ignore[attr-defined]
    return Record(AT.topic, 0, 5, found.key, found.value if value is None else value, (), 0)


def test_what_is_signed_with_another_key_of_another_run_or_of_another_kind_is_passed_over() -> None:
    said, signer = SlotHold(holder=RUN, epoch=1, seconds=20), Signer(key("a-0"))
    good = lease_record("a-0", said, signer, RUN)
    assert opened_lease(as_read(good), RUN, ROSTER) == ("a-0", said)
    for record, why in (
        (lease_record("a-1", said, signer, RUN), "a-1 did not sign it"),
        (lease_record("nobody", said, signer, RUN), "no slot of this boundary"),
        (lease_record("a-0", said, signer, bytes(15) + b"\x01"), "another run"),
    ):
        with pytest.raises(Refused, match=why):
            opened_lease(as_read(record), RUN, ROSTER)
    elsewhere = Envelope.seal(signer, said, run=RUN, topic="checkin", window=0, sender="a-0")
    with pytest.raises(Refused, match="a-0 did not sign it"):
        opened_lease(as_read(good, elsewhere.encode()), RUN, ROSTER)
    with pytest.raises(Refused):
        opened_lease(as_read(good, b"\x00"), RUN, ROSTER)
    claimed = SlotClaim(holder=RUN, after=-1, seconds=20)
    assert opened_lease(as_read(lease_record("a-0", claimed, signer, RUN)), RUN, ROSTER)[1] == claimed
