"""A transfer belongs to its sender: whatever others write under its key, its own upload arrives.

Each attack writes records to `masked`, which every device may write, between the records of a victim's upload.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.bus import Bus, Outgoing, TopicPartition, open_bus
from echelon.bus.assembler import Assembler
from echelon.bus.chunks import CHUNK, Origin, Transfer, TransferId, to_chunks, transfer_of
from echelon.messages.boundary import DeadLetter, Masked
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Payload
from echelon.messages.wire import Reason
from echelon.rounds.effects import Effect, Incoming, Stop
from echelon.topics import Role, load_catalogue
from echelon.virtual_loop import run_virtual
from tests.actors.test_repeats import AT, Membership, Reader

RUN = bytes(range(16))
NAMES = ("a-0", "a-1", "a.e-0", "a.aggregator")
SIGNERS = {name: Signer(bytes([number + 1]) * 32) for number, name in enumerate(NAMES)}
ROLES = dict(zip(NAMES, (Role.DEVICE, Role.DEVICE, Role.EDGE, Role.AGGREGATOR), strict=True))
VICTIM, INSIDER = "a-0", "a-1"
LENGTH = 3 * CHUNK + 77
LARGEST = 4 * CHUNK
LAST = 99


class Keeper(Reader):
    """Takes masked updates until the last window."""

    def take(self, event: object) -> list[Effect]:
        assert isinstance(event, Incoming)
        assert event.payload == payload_of(event.sender, event.window)
        self.taken.append((event.sender, event.window))
        return [Stop()] if event.window == LAST else []


def payload_of(sender: str, window: int) -> bytes:
    return hashlib.shake_128(f"{sender} {window}".encode()).digest(LENGTH)


def upload(
    sender: str, window: int, *, signer: str | None = None, payload: bytes | None = None, run: bytes = RUN
) -> list[Outgoing]:
    """Chunks under the sender's key, signed by `signer`, and the manifest."""
    payload = payload_of(sender, window) if payload is None else payload
    described = Payload.of(payload, b"%d" % window)
    transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
    origin = Origin(run, SIGNERS[signer or sender].sign, order=window)
    chunks = to_chunks(payload, transfer, topic=AT.topic, key=sender.encode(), origin=origin)
    message = Masked(window=window, payload=described)
    envelope = Envelope.seal(
        SIGNERS[sender], message, run=run, topic=AT.topic, window=window, sender=sender
    ).encode()
    return [*chunks, Outgoing(AT.topic, envelope, sender.encode())]


def keeper(bus: Bus, path: Path | None = None) -> Keeper:
    return Keeper(
        "a.aggregator", bus=bus, store=StateStore(path, b"reader"), services=Services(), signer=SIGNERS["a.aggregator"],
        membership=Membership(RUN, "a", {name: one.public for name, one in SIGNERS.items()}, ROLES),
        catalogue=load_catalogue(),
        assembler=Assembler(
            max_open_bytes_per_sender=LARGEST, max_open_transfers_per_sender=2, max_open_bytes_total=4 * LARGEST,
            largest={AT.topic: LARGEST},
        ),
    )  # fmt: skip


def read(records: Sequence[Outgoing]) -> tuple[list[tuple[str, int]], Counter[Reason]]:
    """What is taken of the records, and why the others are refused; a good upload of the insider comes last."""

    async def main() -> tuple[list[tuple[str, int]], Counter[Reason]]:
        async with await open_bus("sqlite://") as bus:
            await bus.create_topic(AT.topic)
            await bus.create_topic("deadletter")
            await bus.publish_many([*records, *upload(INSIDER, LAST)])
            one = keeper(bus)
            async with asyncio.timeout(600.0):
                await one.run()
            assert one.assembler.open_bytes <= 2 * one.assembler.most_open_bytes_per_sender
            letters: Counter[Reason] = Counter()
            at = TopicPartition("deadletter")
            end = await bus.end_offset(at)
            async with bus.reader({at: 0}) as left:
                while left.position(at) < end:
                    letters.update(
                        DeadLetter.decode(Envelope.open(record.value).body).reason
                        for record in await left.next()
                    )
            return [taken for taken in one.taken if taken != (INSIDER, LAST)], letters

    return run_virtual(main)


def other_bytes(good: list[Outgoing], signer: str | None) -> list[Outgoing]:
    """The victim's first chunk, then its second with other bytes under the same transfer."""
    transfer = transfer_of(payload_of(VICTIM, 7), b"")
    named = Transfer(TransferId(dict(good[0].headers)["transfer"]), transfer.length, transfer.sha256)
    origin = None if signer is None else Origin(RUN, SIGNERS[signer].sign, order=7)
    forged = list(to_chunks(bytes(LENGTH), named, topic=AT.topic, key=VICTIM.encode(), origin=origin))
    return [good[0], forged[1], *good[1:]]


def flood(good: list[Outgoing], signer: str) -> list[Outgoing]:
    """So many transfers are opened in the victim's name, in the middle of its own, that its own is given up."""
    opened = [upload(VICTIM, 7 + n, signer=signer, payload=bytes([n]) * LENGTH)[0] for n in range(5)]
    return [*good[:2], *opened, *good[2:]]


def early(good: list[Outgoing], signer: str) -> list[Outgoing]:
    """A transfer with the victim's transfer id and another length stands first."""
    payload = bytes(CHUNK + 1)
    named = Transfer(TransferId(dict(good[0].headers)["transfer"]), len(payload), bytes(32))
    origin = Origin(RUN, SIGNERS[signer].sign, order=7)
    return [*to_chunks(payload, named, topic=AT.topic, key=VICTIM.encode(), origin=origin), *good]


def wrong_index(good: list[Outgoing], _signer: str) -> list[Outgoing]:
    """The victim's last chunk as its second: number and bytes are of the victim, put together by another."""
    changed = tuple((name, b"\0\0\0\1" if name == "index" else value) for name, value in good[2].headers)
    return [good[0], replace(good[2], headers=changed), *good[1:]]


FORGED: dict[str, tuple[Callable[[], list[Outgoing]], Reason]] = {
    "another chunk of the same transfer": (lambda: other_bytes(upload(VICTIM, 7), INSIDER), Reason.BAD_SIGNATURE),
    "an unsigned chunk of the same transfer": (lambda: other_bytes(upload(VICTIM, 7), None), Reason.BAD_TRANSFER),
    "many transfers in its name": (lambda: flood(upload(VICTIM, 7), INSIDER), Reason.BAD_SIGNATURE),
    "many transfers, signed by the edge": (lambda: flood(upload(VICTIM, 7), "a.e-0"), Reason.BAD_SIGNATURE),
    "the same transfer id first": (lambda: early(upload(VICTIM, 7), INSIDER), Reason.BAD_SIGNATURE),
    "a wrong index": (lambda: wrong_index(upload(VICTIM, 7), INSIDER), Reason.BAD_TRANSFER),
    "a chunk of another run": (
        lambda: [*upload(VICTIM, 7)[:1], upload(VICTIM, 8, run=bytes(16))[0], *upload(VICTIM, 7)[1:]],
        Reason.BAD_SIGNATURE,
    ),
    "a chunk under the aggregator's key": (
        lambda: [upload("a.aggregator", 7)[0], *upload(VICTIM, 7)],
        Reason.WRONG_SENDER,
    ),
    "a chunk under an edge's key": (lambda: [upload("a.e-0", 7)[0], *upload(VICTIM, 7)], Reason.WRONG_SENDER),
    "a payload longer than any masked update": (
        lambda: [upload(VICTIM, 6, payload=bytes(LARGEST + 1))[0], *upload(VICTIM, 7)],
        Reason.BAD_TRANSFER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("attack", sorted(FORGED))
def test_what_is_forged_is_refused_and_the_upload_arrives(attack: str) -> None:
    records, reason = FORGED[attack]
    taken, refused = read(records())
    assert taken == [(VICTIM, 7)]
    assert set(refused) == {reason}


def replayed(between: list[Outgoing]) -> list[Outgoing]:
    """The victim's uploads of windows 1 to 5, then others write what they find between its chunks of window 7."""
    before = [record for window in range(1, 6) for record in upload(VICTIM, window)]
    good = upload(VICTIM, 7)
    return [*before, *good[:2], *between, *good[2:]]


REPLAYED: dict[str, Callable[[], list[Outgoing]]] = {
    "every upload before": lambda: [record for window in range(1, 6) for record in upload(VICTIM, window)],
    "first chunks of many uploads": lambda: [upload(VICTIM, window)[0] for window in range(1, 6)],
    "a chunk of this one, over and over": lambda: upload(VICTIM, 7)[:1] * 20,
    "chunks of an upload that was never finished": lambda: upload(VICTIM, 6)[:2],
    "the whole of it": lambda: upload(VICTIM, 7),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("attack", sorted(REPLAYED))
def test_what_is_sent_again_changes_nothing(attack: str) -> None:
    """The chunks are the victim's own, signed by it; another has copied them from the topic."""
    taken, refused = read(replayed(REPLAYED[attack]()))
    assert taken == [*((VICTIM, window) for window in range(1, 6)), (VICTIM, 7)]
    assert refused == Counter()


def test_a_reader_that_has_just_started_is_not_made_to_give_a_new_upload_up_for_old_ones() -> None:
    """It does not know yet what was complete before; the order in the chunks says which is the newest."""
    good = upload(VICTIM, 7)
    old = [upload(VICTIM, window)[0] for window in range(1, 6)]
    assert read([*good[:2], *old, *good[2:]]) == ([(VICTIM, 7)], Counter())
    assert read([*old, *good[:2], *old, *good[2:]]) == ([(VICTIM, 7)], Counter())
