"""A byte-identical repeat is taken once, also when a restart stands between a record and its repeat."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path

import pytest

from echelon.actors.boundary import BoundaryActor, Membership
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.bus import Bus, Outgoing, TopicPartition, open_bus
from echelon.bus.assembler import Assembler
from echelon.bus.chunks import Origin, Transfer, TransferId, to_chunks
from echelon.messages.boundary import DeadLetter, Masked
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Payload
from echelon.rounds.effects import Effect, Incoming, Save, Stop
from echelon.topics import Role, load_catalogue
from echelon.virtual_loop import run_virtual

RUN = bytes(range(16))
SIGNERS = {name: Signer(bytes([number]) * 32) for number, name in enumerate(("a-0", "a-1", "a.aggregator"))}
ROLES = {"a-0": Role.DEVICE, "a-1": Role.DEVICE, "a.aggregator": Role.AGGREGATOR}
AT = TopicPartition("masked")
LAST = 99


class Reader(BoundaryActor):
    """Takes masked updates, and stores each step; its state is which ones it took."""

    taken: list[tuple[str, int]]

    def inputs(self) -> Iterable[TopicPartition]:
        return (AT,)

    async def recover(self) -> list[Effect]:
        text = (self.store.snapshot() or b"").decode()
        self.taken = [
            (name, int(window)) for name, window in (part.split("/") for part in text.split() if part)
        ]
        return []

    def take(self, event: object) -> list[Effect]:
        assert isinstance(event, Incoming)
        assert event.payload == payload_of(event.sender, event.window)
        self.taken.append((event.sender, event.window))
        return [Save(), *([Stop()] if event.window == LAST else [])]

    def snapshot(self) -> bytes:
        return " ".join(f"{name}/{window}" for name, window in self.taken).encode()


def payload_of(sender: str, window: int) -> bytes:
    return f"what {sender} uploads for {window}".encode()


def upload(sender: str, window: int) -> list[Outgoing]:
    """The one chunk of an update, and its manifest."""
    payload = payload_of(sender, window)
    described = Payload.of(payload, f"{sender} {window}".encode())
    message = Masked(window=window, payload=described)
    envelope = Envelope.seal(
        SIGNERS[sender], message, run=RUN, topic=AT.topic, window=window, sender=sender
    ).encode()
    transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
    key = sender.encode()
    origin = Origin(RUN, SIGNERS[sender].sign, order=window)
    return [
        *to_chunks(payload, transfer, topic=AT.topic, key=key, origin=origin),
        Outgoing(AT.topic, envelope, key),
    ]


def reader(bus: Bus, path: Path) -> Reader:
    return Reader(
        "a.aggregator", bus=bus, store=StateStore(path, b"reader"), services=Services(), signer=SIGNERS["a.aggregator"],
        membership=Membership(RUN, "a", {name: one.public for name, one in SIGNERS.items()}, ROLES),
        catalogue=load_catalogue(),
        assembler=Assembler(
            max_open_bytes_per_sender=1 << 20, max_open_transfers_per_sender=4, max_open_bytes_total=1 << 20
        ),
    )  # fmt: skip


def two_lives(
    path: Path, first: list[Outgoing], second: list[Outgoing]
) -> tuple[list[tuple[str, int]], list[str]]:
    """What was taken of records that come before and after a restart, and the details of dead letters."""

    async def main() -> tuple[list[tuple[str, int]], list[str]]:
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic(AT.topic)
            await bus.create_topic("deadletter")
            await bus.publish_many(first)
            one = asyncio.create_task(reader(bus, path).run())
            await asyncio.sleep(10.0)
            assert not one.done()
            one.cancel()
            await asyncio.gather(one, return_exceptions=True)
            await bus.publish_many([*second, *upload("a-0", LAST)])
            two = reader(bus, path)
            async with asyncio.timeout(60.0):
                await two.run()
            letters = []
            at = TopicPartition("deadletter")
            end = await bus.end_offset(at)
            async with bus.reader({at: 0}) as left:
                while left.position(at) < end:
                    for record in await left.next():
                        letters.append(DeadLetter.decode(Envelope.open(record.value).body).detail)
            return two.taken, letters

    return run_virtual(main)


@pytest.mark.parametrize("repeated", ["manifest", "all of it"])
def test_a_restart_between_an_update_and_its_repeat(tmp_path: Path, repeated: str) -> None:
    """The repeat of a manifest has no chunks behind the offset that the reader goes on from, and needs none."""
    sent = upload("a-0", 1)
    taken, letters = two_lives(tmp_path / "state.db", sent, sent[-1:] if repeated == "manifest" else sent)
    assert taken == [("a-0", 1), ("a-0", LAST)]
    assert letters == []


def test_a_restart_while_another_transfer_is_open(tmp_path: Path) -> None:
    """The reader goes on from the open transfer's first chunk, and passes what it took after that a second time."""
    [chunk, manifest], closed = upload("a-1", 1), upload("a-0", 1)
    taken, letters = two_lives(
        tmp_path / "state.db", [closed[0], chunk, closed[1], *upload("a-0", 2)], [manifest]
    )
    assert taken == [("a-0", 1), ("a-0", 2), ("a-1", 1), ("a-0", LAST)]
    assert letters == []


def test_a_manifest_whose_chunks_never_came_is_refused_once_in_each_life_at_most(tmp_path: Path) -> None:
    """It was taken by nobody: to remember repeats must not hide it."""
    taken, letters = two_lives(tmp_path / "state.db", upload("a-0", 1), upload("a-1", 1)[-1:])
    assert taken == [("a-0", 1), ("a-0", LAST)]
    assert [letter.rpartition("(")[2] for letter in letters] == ["unknown_transfer)"]
