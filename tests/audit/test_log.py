from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit import log as module
from echelon.audit.log import FaultCode, TopicLog
from echelon.audit.merkle import Frontier
from echelon.audit.prefix import PrefixChain
from echelon.audit.records import CHUNK_BYTES, StoredRecord, read_chunk, record_hash
from echelon.audit.transfer import OpenTransfer
from echelon.bus.base import Record
from echelon.bus.chunks import to_chunks, transfer_of
from echelon.errors import CodecError, StateError
from echelon.messages.exchange import Genesis, Payload, RefusalReason
from echelon.messages.wire import Refused
from tests.audit.synthetic import GATES, RUN, Exchange, TopicWriter, chunk_headers, scenario, terms
from tests.memory import traced

RUN_A = scenario()


def reader(**options: Any) -> TopicLog:
    return TopicLog("delta.b", public=GATES[1].public, run=RUN, boundary=1, **options)


@pytest.mark.parametrize("length", [0, 1, CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES + 77])
def test_chunks_of_the_bus_are_read(length: int) -> None:
    """The verifier's own reader and the bus's writer agree on the format."""
    payload = bytes(range(256)) * (length // 256 + 1)
    payload = payload[:length]
    found = []
    for out in to_chunks(payload, transfer_of(payload, b"c"), topic="delta.a", key=b"k"):
        record = Record(out.topic, 0, 0, out.key, out.value, out.headers, 0)
        found.append(read_chunk(record).data)
        with pytest.raises(Refused):
            read_chunk(replace(record, topic="delta.b"))
    assert b"".join(found) == payload


def test_impossible_chunks_are_refused() -> None:
    described = Payload(transfer=bytes(16), length=10, sha256=bytes(32))
    for index, total, part in ((1, 1, b"x" * 10), (0, 2, b"x" * 10), (0, 1, b"x" * 9), (0, 0, b"x" * 10)):
        headers = chunk_headers("t", b"", described, index, total, part)
        with pytest.raises(Refused, match="cannot be"):
            read_chunk(StoredRecord("t", 0, b"", part, headers))


PARTS = st.tuples(
    st.text(max_size=4),
    st.binary(max_size=4),
    st.binary(max_size=4),
    st.lists(st.tuples(st.text(max_size=3), st.binary(max_size=3)), max_size=3).map(tuple),
)


@pytest.mark.slow
@given(PARTS, PARTS)
def test_equal_hashes_mean_equal_records(one: tuple, other: tuple) -> None:
    a, b = (StoredRecord(t, 5, k, v, h) for t, k, v, h in (one, other))
    assert (record_hash(a) == record_hash(b)) == (one == other)
    assert record_hash(a) == record_hash(replace(a, offset=9, timestamp_ms=1))


def test_the_chain_skips_repeats_and_feels_order() -> None:
    records = [StoredRecord("t", i, b"", bytes([i]), ()) for i in range(3)]
    one, other, third = PrefixChain("t"), PrefixChain("t"), PrefixChain("u")
    values = {one.value, third.value}
    for record in records:
        assert one.append(record)
        assert other.append(record)
        assert not other.append(records[0])
        values.add(one.value)
    assert one.value == other.value
    assert len(values) == 5
    for record in reversed(records):
        third.append(record)
    assert third.value not in values
    again = PrefixChain.decode("t", one.encode())
    assert not again.append(records[1])
    assert (again.value, len(again)) == (one.value, 3)
    with pytest.raises(CodecError):
        PrefixChain.decode("t", b"x" * 33)


def test_a_reader_can_stop_and_go_on_anywhere() -> None:
    records = RUN_A.topics["delta.b"]
    whole = reader()
    expected = [whole.read(record) for record in records]
    for cut in range(1, len(records)):
        first = reader()
        steps = [first.read(record) for record in records[:cut]]
        again = reader()
        again.restore(first.snapshot())
        assert again.read(records[cut - 1]).entry is None, "a repeat is known after a restart"
        steps += [again.read(record) for record in records[cut:]]
        assert steps == expected
        assert again.snapshot() == whole.snapshot()
    assert whole.open_transfers == 1
    assert whole.first_open_offset == 2
    with pytest.raises(StateError, match="damaged"):
        reader().restore(whole.snapshot()[:-1])
    with pytest.raises(StateError, match=r"delta\.b"):
        TopicLog("delta.a").restore(whole.snapshot())


def test_a_controller_does_not_go_on_behind_a_gap() -> None:
    records = [r for i, r in enumerate(RUN_A.topics["delta.b"]) if i != 1]
    strict, lenient = reader(), reader(resync=True)
    assert [s.entry for s in map(strict.read, records) if s.entry] == []
    entries = [s.entry for s in map(lenient.read, records) if s.entry]
    assert entries[0].number == 1
    assert entries[0].refusal is RefusalReason.BAD_SEQUENCE


def test_a_wrong_prefix_is_a_refusal_and_confined_to_one_stretch() -> None:
    records = RUN_A.topics["delta.b"]
    found = [reader_.read(r) for reader_ in [reader()] for r in (*records[:2], *records[3:])]
    entries = [step.entry for step in found if step.entry]
    assert [e.refusal for e in entries] == [None, RefusalReason.BAD_PREFIX, None, None, None, None]
    tree = Frontier()
    for entry in entries:
        tree.append(entry.value)
    assert tree.root() == RUN_A.logs[1].tree.root()


def test_open_transfers_are_bounded() -> None:
    writer = TopicWriter("delta.b", GATES[1])
    for number in range(module.MAX_OPEN_TRANSFERS + 3):
        data = b"%d" % number
        writer.chunks(data, Payload.of(data, data))
    log = reader()
    faults = [fault for record in writer.records for fault in log.read(record).faults]
    assert [(f.code, f.offset) for f in faults] == [
        (FaultCode.VOID, 0),
        (FaultCode.VOID, 1),
        (FaultCode.VOID, 2),
    ]
    assert log.open_transfers == module.MAX_OPEN_TRANSFERS


def unfinished(writer: TopicWriter, number: int, length: int) -> None:
    """All chunks of a payload but the last, and no manifest."""
    data = number.to_bytes(8, "big") * (length // 8)
    writer.chunks(data, Payload.of(data, b"%d" % number))
    del writer.records[-1:]


def test_endless_unfinished_chunks_hold_no_more_than_one_payload() -> None:
    """A gate that announces payloads and never finishes them."""
    largest = 3 * CHUNK_BYTES
    writer = TopicWriter("delta.b", GATES[1])
    for number in range(12):
        unfinished(writer, number, largest)
    log, without = reader(largest=largest), reader()
    for record in writer.records:
        log.read(record)
        without.read(record)
        assert log.open_bytes <= largest
        assert len(log.snapshot()) < largest + 8192
    assert without.open_bytes > 5 * largest, "a reader without the bound keeps much more"


def test_a_payload_longer_than_the_terms_allow_is_refused_at_its_first_chunk() -> None:
    largest = 2 * CHUNK_BYTES
    for length, fault in ((largest, []), (largest + 8, [FaultCode.OVERSIZED])):
        writer = TopicWriter("delta.b", GATES[1])
        unfinished(writer, 1, length)
        log = reader(largest=largest)
        assert [f.code for f in log.read(writer.records[0]).faults] == fault
        assert log.open_transfers == (not fault)


def test_genesis_says_how_long_payloads_of_global_are() -> None:
    log = TopicLog("global", largest=1 << 20)
    for record in RUN_A.topics["global"]:
        assert all(fault.code is not FaultCode.OVERSIZED for fault in log.read(record).faults)
    assert log.initial is not None
    writer = TopicWriter("global", GATES[1])
    data = bytes(4 * len(log.initial) + 1)
    writer.chunks(data, Payload.of(data, b"long"))
    assert [fault.code for fault in log.read(writer.records[0]).faults] == [FaultCode.OVERSIZED]
    again = TopicLog("global", largest=1 << 20)
    again.restore(log.snapshot())
    writer.chunks(data, Payload.of(data, b"longer"))
    assert [fault.code for fault in again.read(writer.records[-1]).faults] == [FaultCode.OVERSIZED]


@pytest.mark.slow
def test_a_topic_ends_with_too_many_records_that_are_part_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is remembered, so that a repeat is known: there is a bound to that, also over a restart."""
    monkeypatch.setattr(module, "MAX_VOID_RECORDS", 40)
    log = reader()
    sizes = []
    for number in range(200):
        writer = TopicWriter("delta.b", GATES[1])
        data = b"%d" % number
        if number % 3 == 0:
            writer.records.append(StoredRecord("delta.b", number, b"", data, ()))
        elif number % 3 == 1:
            writer.chunks(data, Payload.of(data, data))
        else:
            unfinished(writer, number, 2 * CHUNK_BYTES)
        log.read(writer.records[0])
        sizes.append(len(log.snapshot()))
        if number % 50 == 0:
            again = reader()
            again.restore(log.snapshot())
            log = again
    assert len(set(sizes[120:])) == 1
    for record in RUN_A.topics["delta.b"]:
        step = log.read(record)
        assert (step.entry, [fault.code for fault in step.faults]) == (None, [FaultCode.OVERSIZED])


def test_a_forged_manifest_does_not_use_up_a_payload() -> None:
    exchange = Exchange(terms())
    exchange.delta(1, offer=False)
    records = exchange.topics["delta.b"]
    forged = replace(records[1], value=records[1].value[:-8] + b'AAA="}]}')
    log = reader()
    log.read(records[0])
    assert log.read(forged).entry is None
    entry = log.read(records[1]).entry
    assert entry is not None
    assert entry.payload is not None


def test_records_beyond_the_limit_are_faults() -> None:
    huge = StoredRecord("delta.b", 0, b"", bytes(CHUNK_BYTES + 5000), ())
    assert [f.code for f in reader().read(huge).faults] == [FaultCode.OVERSIZED]
    manifest = StoredRecord("delta.b", 0, b"", bytes(30_000), ())
    assert [f.code for f in reader().read(manifest).faults] == [FaultCode.OVERSIZED]


def test_messages_of_the_other_topic_are_faults() -> None:
    commit = next(r for r in RUN_A.topics["global"] if r.headers == (("kind", b"commit"),))
    assert [f.code for f in reader().read(commit).faults] == [FaultCode.WRONG_TYPE]
    assert [f.code for f in TopicLog("global").read(commit).faults] == [FaultCode.WRONG_TYPE], (
        "before genesis"
    )


def test_headers_decide_nothing_that_is_not_signed() -> None:
    record = RUN_A.topics["delta.b"][1]
    for bad in (
        replace(record, headers=()),
        replace(record, headers=(*record.headers, ("more", b""))),
        replace(record, key=b""),
        replace(record, headers=(("kind", b"chunk"),)),
        replace(record, headers=(("kind", b"chunk"), ("index", struct.pack(">I", 0)))),
    ):
        assert reader().read(bad).entry is None


def test_the_adapter_of_genesis_is_there_until_somebody_takes_it() -> None:
    log = TopicLog("global")
    assert log.take_initial() is None
    for record in RUN_A.topics["global"]:
        log.read(record)
    expected = log.initial
    assert expected is not None
    assert log.take_initial() is expected
    assert log.take_initial() is None


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_writers_own_log_checks_payloads_and_keeps_none(spoilt: bool) -> None:
    plain, own = TopicLog("global"), TopicLog("global", payloads=False)
    for number, record in enumerate(RUN_A.topics["global"]):
        if spoilt and number == len(RUN_A.topics["global"]) - 3 and record.headers[0] == ("kind", b"chunk"):
            continue
        first, second = plain.read(record), own.read(record)
        assert second.faults == first.faults
        assert (second.entry is None) == (first.entry is None)
        if first.entry is not None and second.entry is not None:
            assert second.entry.message == first.entry.message
            assert second.entry.payload in (None, first.entry.payload)
            kept = isinstance(first.entry.message, Genesis)
            assert (second.entry.payload is not None) == kept
    assert own.chain.value == plain.chain.value
    assert own.tree.root() == plain.tree.root()


def test_a_payload_that_is_not_kept_costs_nothing() -> None:
    transfer = OpenTransfer(64 * CHUNK_BYTES, 64, 0, hashed=hashlib.sha256())
    part = bytes(CHUNK_BYTES)
    with traced() as peak:
        for _ in range(64):
            transfer.add(part, None)
        assert transfer.payload() is None
        assert peak() < CHUNK_BYTES
    assert transfer.sha256() == hashlib.sha256(64 * part).digest()
