"""Records that one device has opened are not opened again by the others; what was refused is refused by each."""

from __future__ import annotations

import pytest

from echelon.actors.verified_records import KEPT, Membership, OpenedRecords, RecordOpener
from echelon.bus import Outgoing, Record, TopicPartition, open_bus
from echelon.bus.assembler import Assembler
from echelon.bus.chunks import ChunkError, Origin, Transfer, TransferId, to_chunks
from echelon.messages.boundary import DeadLetter
from echelon.messages.envelope import Envelope, Signer
from echelon.messages.exchange import Payload
from echelon.messages.split import SplitFrame
from echelon.messages.wire import Reason, Refused
from echelon.run.assembly import Assembly
from echelon.topics import Role, load_catalogue
from tests.run.runs import boundaries, federation, run


class Counting:
    """Counts how often a boundary's records are verified, by topic."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.by_topic: dict[str, int] = {}
        verified = Envelope.verified

        def count(envelope: Envelope, public: bytes, topic: str) -> bool:
            self.by_topic[topic] = self.by_topic.get(topic, 0) + 1
            return verified(envelope, public, topic)

        monkeypatch.setattr(Envelope, "verified", count)


@pytest.mark.slow
def test_devices_verify_a_decision_once_whatever_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Counting(monkeypatch)
    outcome = run(federation(boundaries=boundaries(12), budget={"commits": 1}))
    written = {topic: len(outcome.records("a", topic)) for topic in ("control", "model")}
    # Once for all devices, once for the gate, once more where the aggregator reads its own decisions at a start.
    assert counted.by_topic["control"] <= 3 * written["control"]
    assert counted.by_topic["model"] <= 3 * written["model"]
    # What only aggregator and gate read is verified by each of them.
    assert counted.by_topic["masked"] >= len(list(outcome.envelopes("a", "masked")))


@pytest.mark.slow
def test_a_forged_decision_is_refused_by_every_device() -> None:
    async def forge(assembly: Assembly) -> None:
        async with await open_bus(assembly.url("a")) as bus:
            at = TopicPartition("control")
            async with bus.reader({at: 0}) as reader:
                record: Record = (await reader.next())[0]
            genuine = Envelope.open(record.value)
            forged = genuine.model_copy(update={"signature": bytes(64)})
            await bus.publish(Outgoing("control", forged.encode(), record.key))

    outcome = run(federation(boundaries=boundaries(4), budget={"commits": 1}), forge)
    letters = [
        (envelope.sender, DeadLetter.decode(envelope.body).reason)
        for envelope in outcome.envelopes("a", "deadletter")
    ]
    refusals = {sender for sender, reason in letters if reason is Reason.BAD_SIGNATURE}
    assert {f"a-{number}" for number in range(4)} <= refusals
    assert outcome.summary["audit"]["ok"]


def test_refusals_are_not_remembered_and_memory_is_bounded() -> None:
    opened = OpenedRecords()
    calls: list[int] = []

    def refuse() -> tuple[Envelope, DeadLetter]:
        calls.append(1)
        raise Refused(Reason.BAD_SIGNATURE, "forged")

    for _ in range(2):
        with pytest.raises(Refused):
            opened.get((b"run", "a", "control", b"value"), refuse)
    assert len(calls) == 2

    made: list[int] = []

    def accept(number: int) -> tuple[Envelope, DeadLetter]:
        made.append(number)
        return (number, number)  # type: ignore[return-value]

    for number in range(KEPT + 1):
        opened.get((b"run", "a", "control", b"%d" % number), lambda number=number: accept(number))
    opened.get((b"run", "a", "control", b"%d" % KEPT), lambda: accept(-1))
    assert -1 not in made
    opened.get((b"run", "a", "control", b"0"), lambda: accept(-2))
    assert made[-1] == -2
    # The same bytes on another topic, or in another boundary, are other records.
    opened.get((b"run", "a", "model", b"%d" % KEPT), lambda: accept(-3))
    opened.get((b"run", "b", "control", b"%d" % KEPT), lambda: accept(-4))
    assert made[-2:] == [-3, -4]


def test_a_frame_of_a_session_that_is_over_is_passed_over_with_its_chunks() -> None:
    """Wherever in between the session ends: an edge that answered late has done nothing wrong."""
    run_id, edge, session = bytes(16), Signer(bytes([1]) * 32), bytes([7]) * 16
    payload = Payload.of(bytes(range(100)), b"frame")
    transfer = Transfer(TransferId(payload.transfer), payload.length, payload.sha256)
    origin = Origin(run_id, edge.sign, session, 0)
    [chunk] = to_chunks(bytes(range(100)), transfer, topic="split.down", key=b"a.e", origin=origin)
    frame = SplitFrame(session=session, number=0, payload=payload)
    sealed = Envelope.seal(edge, frame, run=run_id, topic="split.down", window=0, sender="a.e").encode()
    records = [
        Record(one.topic, 0, offset, one.key, one.value, one.headers, 0)
        for offset, one in enumerate((chunk, Outgoing("split.down", sealed, b"a.e")))
    ]
    members = Membership(run_id, "a", {"a.e": edge.public}, {"a.e": Role.EDGE})
    for known_at, taken in (((), False), ((0,), False), ((1,), None), ((0, 1), True)):
        assembler = Assembler(
            max_open_bytes_per_sender=1 << 20, max_open_transfers_per_sender=4, max_open_bytes_total=1 << 20
        )
        places = iter(record.offset in known_at for record in records)
        opener = RecordOpener(
            members, load_catalogue(), assembler, repeated=lambda _at, _signature: False,
            expects=lambda _topic, _sender, _scope, places=places: next(places),
        )  # fmt: skip
        assert opener.open(records[0]) is None
        if taken is None:  # its chunks were not waited for: nothing to put together
            with pytest.raises(ChunkError):
                opener.open(records[1])
        else:
            assert (opener.open(records[1]) is not None) == taken
        assert assembler.open_bytes == 0
