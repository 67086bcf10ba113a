"""A gate announces one delta more although its key was revoked: the witness and the gate that follows go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from echelon.actors.announcing import Announcer
from echelon.actors.exchange import Writer
from echelon.actors.runtime import Publisher, Services
from echelon.actors.state import StateStore
from echelon.audit.heads import HEAD, LAST, Head, headers_of, kind_of, logs_of
from echelon.audit.log import TopicLog
from echelon.audit.note import Checkpoint
from echelon.audit.records import StoredRecord
from echelon.bus import Outgoing, open_bus
from echelon.errors import StateError
from echelon.laws.keys import Keys, gate_of_place
from echelon.sim.broker import SimBroker
from echelon.virtual_loop import run_virtual
from tests.actors.test_witness import Scene, _newest, announced
from tests.audit.ended import HEAD_A, A, Overtaken
from tests.audit.synthetic import CONTROLLER, GATES
from tests.audit.witnessed import tree_of
from tests.laws.test_keys import NEXT

RUN = Overtaken()
MAIN, OWN = RUN.exchange.main.records, RUN.exchange.gates[0].records


def line(records: int) -> tuple[object, ...]:
    """Gate a's keys, for whoever has read so many records of `global`."""
    reading = TopicLog("global")
    for record in MAIN[:records]:
        reading.read(record)
    return (reading.keys or Keys.of(RUN.exchange.manifest)).line(gate_of_place(0))


def head_of_global(size: int) -> StoredRecord:
    name, tree = logs_of(RUN.exchange.manifest)["global"].origin, tree_of(MAIN)
    note = Checkpoint(name, size, tree.root(size)).sign(name, CONTROLLER)
    return StoredRecord("head.global", 0, b"", Head(0, (), note).encode(), headers_of(HEAD))


# ---- the witness ----------------------------------------


@pytest.mark.parametrize("restarted", ["never", "before it learns", "after it learned", "and lost its state"])
def test_a_witness_that_cosigned_too_much_cosigns_what_the_next_key_announces(restarted: str) -> None:
    stage = Scene(SimBroker("exchange"))

    async def main() -> None:
        stage.put(MAIN[: RUN.revocation])
        stage.put([head_of_global(1), RUN.before, RUN.late])
        early: Callable[[], bool] = lambda: _newest(stage, A) == 2 and not stage.disk.outbox  # noqa: E731
        if restarted != "never":
            await stage.live(early)
        if restarted == "and lost its state":
            stage.disk.wipe()
        if restarted == "after it learned":
            stage.put(MAIN[RUN.revocation :])
            stage.put([RUN.after])
            await stage.live(lambda: last() == RUN.tree.root() and not stage.disk.outbox)
            await stage.live(lambda: True)
            return
        there = False

        def good() -> bool:
            nonlocal there
            if early() and not there:
                there = True
                stage.put(MAIN[RUN.revocation :])
                stage.put([RUN.after])
            return there and last() == RUN.tree.root()

        await stage.live(good)

    def last() -> bytes | None:
        return max(
            ((time, root) for topic, _, root, time in stage.cosigned() if topic == A), default=(0, None)
        )[1]

    run_virtual(main)
    assert last() == RUN.tree.root()
    assert not [one for one in stage.records() if kind_of(one) == b"conflict"], "no fork is alleged"


# ---- the gate that follows ----------------------------------------


def following(records: int) -> Writer:
    """The next key's writer, which has read its own log and so much of `global`."""
    manifest = RUN.exchange.manifest
    log = TopicLog(A, public=GATES[0].public, run=manifest.run_id, boundary=0)
    log.follow(line(records))  # type: ignore[arg-type]
    writer = Writer(log, NEXT, manifest.run_id)
    for record in OWN:
        writer.wrote(Outgoing(record.topic, record.value, record.key, record.headers))
    return writer


async def starts(writer: Writer, heads: list[StoredRecord]) -> list[tuple[int, int, bytes]]:
    """What stands on its head topic once it has started there: (size before, size, key)."""
    async with await open_bus("sqlite://") as bus:
        await bus.create_topic(HEAD_A)
        for one in heads:
            await bus.publish(Outgoing(HEAD_A, one.value, one.key, one.headers))
        announcer = Announcer(writer)
        publisher = Publisher("a.gate", bus, StateStore(None, b"c"), Services(), took=announcer.took)
        pump = asyncio.create_task(publisher.run())
        try:
            announcer.start(await announcer.look(bus), publisher, len(writer.tree))
            await publisher.drained(60.0)
            return await announced(bus, HEAD_A)
        finally:
            pump.cancel()


def test_it_announces_from_what_counts() -> None:
    async def main() -> None:
        writer = following(len(MAIN))
        assert len(writer.tree) == 2, "the delta more is no part of the log"
        found = await starts(writer, [RUN.before, RUN.late])
        assert [(old, size) for old, size, _ in found] == [(0, 1), (1, 2), (1, 2)]
        assert writer.tree.root() == RUN.tree.root()

    run_virtual(main)


def test_what_a_key_announced_before_its_end_binds_the_next_one() -> None:
    """A broker that lost the first delta is found, although another key announced it."""

    async def main() -> None:
        manifest = RUN.exchange.manifest
        log = TopicLog(A, public=GATES[0].public, run=manifest.run_id, boundary=0)
        log.follow(line(len(MAIN)))  # type: ignore[arg-type]
        with pytest.raises(StateError, match=r"announced 1 manifests .* than the 0 that stand there"):
            await starts(Writer(log, NEXT, manifest.run_id), [RUN.before, RUN.late])

    run_virtual(main)


def test_a_head_of_nobody_stops_it_in_words() -> None:
    async def main() -> None:
        name = logs_of(RUN.exchange.manifest)[A].origin
        note = Checkpoint(name, 2, RUN.tree.root()).sign(name, CONTROLLER)
        foreign = StoredRecord(HEAD_A, 0, LAST, Head(0, (), note).encode(), headers_of(HEAD))
        with pytest.raises(StateError, match="its writer did not sign it"):
            await starts(following(len(MAIN)), [RUN.before, foreign])

    run_virtual(main)
