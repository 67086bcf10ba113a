"""What must be refused is refused, with its reason, and the federation ends with the same adapter as without it."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import msgpack
import pytest
from pydantic import create_model

from echelon.bus import Outgoing, open_bus
from echelon.bus.chunks import Origin, Transfer, TransferId, to_chunks
from echelon.messages.boundary import (
    DeadLetter,
    Heartbeat,
    Masked,
    Model,
    SealedDelta,
    WindowOpen,
)
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import DeltaCodec, Pace, Payload
from echelon.messages.handshake import Advertise, Deliver
from echelon.messages.wire import Message, Reason
from echelon.run.assembly import Assembly
from tests.audit.synthetic import window
from tests.run.runs import Outcome, federation, run

READERS = {
    "control": {"a-0", "a-1", "a-2", "a-3", "a.gate"},
    "model": {"a-0", "a-1", "a-2", "a-3"},
    "inbox": {"a-2"},
    "checkin": {"a.aggregator"},
    "handshake": {"a.aggregator", "a.gate"},
    "masked": {"a.aggregator", "a.gate"},
    "delta": {"a.gate"},
}
"""Who reads what (of the inbox, the partition with slot 2)."""
NEVER_SENT = Payload.of(b"never sent", b"x")
OWN = {
    "control": WindowOpen(window=1 << 40, version=0, commit=0),
    "model": Model(
        version=1 << 40, commit=0, sha256=bytes(32), anchored=False, pace=Pace(steps=1, windows=1, mu_ppm=0),
        progress_ppm=0, payload=NEVER_SENT,
    ),
    "inbox": Deliver(window=1 << 40, to="a-2", entries=()),
    "checkin": Heartbeat(),
    "handshake": Advertise(
        window=1 << 40, cipher_public=bytes(32), mask_public=bytes(32), seed_commitment=bytes(32),
        evaluated=False, front=0, back=0, signature=bytes(64),
    ),
    "masked": Masked(window=1 << 40, payload=NEVER_SENT),
    "delta": SealedDelta(
        seq=1 << 40, base_commit=0, windows=(window(0),), codec=DeltaCodec.INT16, exponent=0, payload=NEVER_SENT,
    ),
}  # fmt: skip
FROM_DEVICES = {"checkin", "handshake", "masked"}
OTHER = {topic: Heartbeat() for topic in OWN} | {
    "checkin": WindowOpen(window=9, version=0, commit=0),
}


class Nonsense(Message):
    kind: ClassVar[str] = "nonsense"


class NewReady(Message):
    kind: ClassVar[str] = "ready"
    revision: ClassVar[int] = 9


@cache
def with_extra_field(topic: str) -> Message:
    """The topic's own message, and one field more."""
    own = OWN[topic]
    extended = create_model("Extended", __base__=type(own), surprise=(int, 1))
    return extended(**{name: getattr(own, name) for name in type(own).model_fields})


@dataclass
class Garbage:
    """Everything that is wrong, for every input topic of boundary a."""

    assembly: Assembly
    placed: dict[tuple[str, int, int], Reason] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = self.assembly.identities.boundaries["a"]
        self.run = self.assembly.manifest.run_id

    def writer(self, topic: str) -> tuple[str, Signer]:
        if topic in FROM_DEVICES:
            return "a-1", Signer(self.keys.devices["a-1"])
        return "a.aggregator", Signer(self.keys.aggregator)

    def stranger(self, topic: str) -> tuple[str, Signer]:
        """A member of the boundary that may not write there."""
        if topic in FROM_DEVICES:
            return "a.aggregator", Signer(self.keys.aggregator)
        return "a-1", Signer(self.keys.devices["a-1"])

    def sealed(
        self,
        message: Message,
        topic: str,
        who: tuple[str, Signer],
        *,
        run: bytes | None = None,
        window: int = 0,
    ) -> bytes:
        return Envelope.seal(
            who[1], message, run=run or self.run, topic=topic, window=window, sender=who[0]
        ).encode()

    def records(self, topic: str, time: int = 0) -> list[tuple[Reason, Outgoing]]:
        """`time` makes what is signed differ: a byte-identical repeat would be passed over in silence."""
        partition = 2 if topic == "inbox" else 0
        writer, own, far = self.writer(topic), OWN[topic], (1 << 40) + time
        if "window" in type(own).model_fields:
            own = own.model_copy(update={"window": far})
        good = self.sealed(own, topic, writer, window=far)
        values: list[tuple[Reason, bytes]] = [
            (Reason.TRUNCATED, b""),
            (Reason.TRUNCATED, good[: len(good) // 2]),
            (Reason.TRUNCATED, good[:-1]),
            (Reason.MALFORMED, good + b"\x00"),
            (Reason.MALFORMED, b"\x01"),
            (Reason.WRONG_PLANE, b'{"payloadType":"application/vnd.echelon.commit.v1+msgpack"}'),
            (Reason.OVERSIZED, bytes(70_000)),
            (Reason.TOO_DEEP, b"\x91" * 1000 + b"\x00"),
            (Reason.TOO_MANY, b"\xdd\xff\xff\xff\xff"),
            (Reason.DUPLICATE_KEY, b"\x82" + 2 * (msgpack.packb("type") + msgpack.packb("x"))),
            (Reason.MISSING_FIELD, msgpack.packb({"type": "window"})),
            (Reason.UNKNOWN_FIELD, self.extra(good)),
            (Reason.UNKNOWN_TYPE, self.sealed(Nonsense(), topic, writer)),
            (Reason.UNKNOWN_VERSION, self.sealed(NewReady(), topic, writer)),
            (Reason.WRONG_TOPIC, self.sealed(OTHER[topic], topic, writer)),
            (Reason.WRONG_RUN, self.sealed(own, topic, writer, run=b"another run 1234")),
            (Reason.WRONG_SENDER, self.sealed(own, topic, self.stranger(topic))),
            (Reason.UNKNOWN_SENDER, self.sealed(own, topic, ("b-1", Signer(bytes(32))))),
            (Reason.BAD_SIGNATURE, self.sealed(own, topic, (writer[0], Signer(bytes(32))))),
            (Reason.BAD_SIGNATURE, self.sealed(own, "another-topic", writer)),
            (Reason.UNKNOWN_FIELD, self.sealed(with_extra_field(topic), topic, writer)),
        ]  # fmt: skip
        if "window" in type(own).model_fields:
            values.append((Reason.BAD_FIELD, self.sealed(own, topic, writer, window=3 + time)))
        if topic in ("masked", "model", "delta"):
            values.append((Reason.BAD_TRANSFER, good))
        key = writer[0].encode()
        found = [(reason, Outgoing(topic, value, key, (), partition)) for reason, value in values]
        described = Payload.of(b"payload", b"test")
        transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
        origin = Origin(self.run, writer[1].sign, order=far)
        [chunk] = to_chunks(b"payload", transfer, topic=topic, key=key, partition=partition, origin=origin)
        found.append((Reason.BAD_TRANSFER, Outgoing(topic, b"pAyload", key, chunk.headers, partition)))
        found.append(
            (Reason.UNKNOWN_SENDER, Outgoing(topic, chunk.value, b"nobody", chunk.headers, partition))
        )
        found.append((Reason.BAD_TRANSFER, Outgoing(topic, chunk.value, key, chunk.headers[:3], partition)))
        [unsigned] = to_chunks(b"payload", transfer, topic=topic, key=key, partition=partition)
        found.append((Reason.BAD_TRANSFER, unsigned))
        other, signer = self.stranger(topic)
        forged = Origin(self.run, signer.sign, order=far)
        has_payloads = topic in ("masked", "model", "delta")
        reason = Reason.BAD_SIGNATURE if has_payloads else Reason.WRONG_TOPIC
        found += [
            (reason, chunk)
            for chunk in to_chunks(
                b"payload", transfer, topic=topic, key=key, partition=partition, origin=forged
            )
        ]
        found += [
            (Reason.WRONG_SENDER, chunk)
            for chunk in to_chunks(
                b"payload", transfer, topic=topic, key=other.encode(), partition=partition, origin=forged
            )
        ]
        return found

    @staticmethod
    def extra(good: bytes) -> bytes:
        fields = msgpack.unpackb(good)
        return bytes(msgpack.packb(fields | {"zzz": 1}))

    async def spread(self) -> None:
        """Everything on every topic, three times in the life of the run."""
        async with await open_bus(self.assembly.url("a")) as bus:
            for time, pause in enumerate((0.0, 1.3, 1.0)):
                await asyncio.sleep(pause)
                for topic in OWN:
                    chosen = self.records(topic, time)
                    offsets = await bus.publish_many([record for _, record in chosen])
                    for (reason, record), offset in zip(chosen, offsets, strict=True):
                        self.placed[topic, record.partition, offset] = reason


@cache
def clean() -> Outcome:
    return run(federation())


@cache
def littered() -> tuple[Outcome, Garbage]:
    kept: list[Garbage] = []

    async def litter(assembly: Assembly) -> None:
        kept.append(Garbage(assembly))
        await kept[0].spread()

    outcome = run(federation(), litter)
    return outcome, kept[0]


@pytest.mark.slow
def test_a_littered_federation_ends_with_the_same_adapter() -> None:
    outcome, garbage = littered()
    assert len(garbage.placed) == 3 * sum(len(garbage.records(topic)) for topic in OWN)
    assert outcome.summary["audit"]["ok"]
    assert outcome.adapter == clean().adapter
    assert outcome.summary["windows"] == clean().summary["windows"]
    assert outcome.summary["windows_void"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("topic", sorted(OWN))
def test_every_reader_of_a_topic_refuses_what_stands_there_with_the_right_reason(topic: str) -> None:
    outcome, garbage = littered()
    refused: dict[tuple[str, int, int], dict[str, Reason]] = defaultdict(dict)
    for envelope in outcome.envelopes("a", "deadletter"):
        letter = DeadLetter.decode(envelope.body)
        place = (letter.topic, letter.partition, letter.offset)
        assert envelope.sender not in refused[place], "one refusal each"
        refused[place][envelope.sender] = letter.reason
    placed = {place: reason for place, reason in garbage.placed.items() if place[0] == topic}
    assert placed
    for place, reason in placed.items():
        assert refused[place] == dict.fromkeys(READERS[topic], reason), (place, reason)
    honest = [place for place in refused if place[0] == topic and place not in placed]
    assert honest == []


@pytest.mark.slow
def test_the_other_boundary_hears_nothing_of_it() -> None:
    outcome, _ = littered()
    assert outcome.records("b", "deadletter") == []


@pytest.mark.slow
@pytest.mark.parametrize("topic", ["global", "delta.a"])
def test_what_a_stranger_writes_on_the_exchange_is_never_merged_and_never_passes_the_audit(
    topic: str,
) -> None:
    """Nobody but the writer may write there. Should somebody all the same, the log does not verify."""

    async def litter(assembly: Assembly) -> None:
        async with await open_bus(assembly.url("exchange")) as bus:
            await asyncio.sleep(2.0)
            await bus.publish(Outgoing(topic, b"litter", b"stranger"))

    outcome = run(federation(budget={"seconds": 12}), litter)
    assert not outcome.summary["audit"]["ok"]
    findings = " ".join(outcome.summary["audit"]["findings"])
    assert topic in findings
