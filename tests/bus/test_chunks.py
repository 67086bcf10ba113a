"""Chunked transfers: whatever order and repeats chunks come in, the payload or a refusal comes out."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from echelon.bus import Outgoing, Record, TopicPartition
from echelon.bus.assembler import MAX_SETTLED, Assembler
from echelon.bus.chunks import (
    CHUNK,
    NO_SCOPE,
    OVERHEAD,
    ChunkError,
    ChunkFault,
    Origin,
    Transfer,
    TransferId,
    chunks_of,
    is_chunk,
    read_chunk,
    to_chunks,
    transfer_of,
)
from echelon.errors import StorageError
from tests.memory import traced

BLOCK = hashlib.shake_256(b"block").digest(6 * CHUNK)
lengths = st.sampled_from([0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 7])


def payload_of(length: int, start: int = 0) -> bytes:
    return BLOCK[start : start + length]


def record(out: Outgoing, offset: int) -> Record:
    return Record(out.topic, out.partition, offset, out.key, out.value, out.headers, 0)


def records_of(
    payload: bytes, *, key: bytes = b"s", first: int = 0, context: bytes = b"context"
) -> list[Record]:
    transfer = transfer_of(payload, context)
    return [record(out, first + n) for n, out in enumerate(to_chunks(payload, transfer, topic="t", key=key))]


def assembler(sender: int = 8 * CHUNK, transfers: int = 4, total: int = 16 * CHUNK) -> Assembler:
    return Assembler(
        max_open_bytes_per_sender=sender, max_open_transfers_per_sender=transfers, max_open_bytes_total=total
    )


def refused(fault: ChunkFault):
    return pytest.raises(ChunkError, match=fault.value)


def test_golden_chunk():
    """The wire format, written out by hand: a change here is a change of format."""
    payload = b"abc"
    context = b"ctx"
    transfer = transfer_of(payload, context)
    sha256 = hashlib.sha256(b"abc").digest()
    named = b"echelon transfer v1\x00" + b"\x92" + b"\xc4\x03ctx" + b"\xc4\x20" + sha256
    assert transfer.id == hashlib.sha256(named).digest()[:16]
    assert transfer.id.hex() == "28f777390834960b9b82042a74e9bf2f"
    [chunk] = to_chunks(payload, transfer, topic="masked", key=b"dev")
    body = b"echelon/chunk/v1\x00" + b"\x00\x00\x00\x06masked" + b"\x00\x00\x00\x03dev"
    for name, value in (
        (b"kind", b"chunk"),
        (b"transfer", transfer.id),
        (b"index", b"\x00\x00\x00\x00"),
        (b"total", b"\x00\x00\x00\x01"),
        (b"length", b"\x00\x00\x00\x00\x00\x00\x00\x03"),
    ):
        body += struct.pack(">I", len(name)) + name + struct.pack(">I", len(value)) + value
    assert chunk.headers[-1] == ("sha256", hashlib.sha256(body + payload).digest())
    assert [name for name, _ in chunk.headers] == ["kind", "transfer", "index", "total", "length", "sha256"]
    assert (chunk.topic, chunk.key, chunk.value) == ("masked", b"dev", payload)


@pytest.mark.slow
@given(lengths, st.binary(max_size=8), st.binary(max_size=8))
def test_the_transfer_id_names_payload_and_context(length, one, other):
    payload = payload_of(length)
    assert transfer_of(payload, one) == transfer_of(bytearray(payload), one)
    assert (transfer_of(payload, one).id == transfer_of(payload, other).id) == (one == other)
    assert transfer_of(payload + b"x", one).id != transfer_of(payload, one).id


@given(lengths)
def test_chunks_are_small_equal_and_add_up(length):
    payload = payload_of(length)
    chunks = list(
        to_chunks(memoryview(payload), transfer_of(payload, b""), topic="t", key=b"k" * 64, partition=2)
    )
    assert len(chunks) == chunks_of(length) >= 1
    assert b"".join(chunk.value for chunk in chunks) == payload
    assert all(len(chunk.value) == CHUNK for chunk in chunks[:-1])
    assert all(chunk.size - len(chunk.value) - 64 <= OVERHEAD for chunk in chunks)
    assert all(is_chunk(record(chunk, 0)) and chunk.partition == 2 for chunk in chunks)


@pytest.mark.slow
@settings(max_examples=40)
@given(st.data())
def test_any_interleaving_with_repeats_gives_every_payload_once(data):
    senders = [b"a", b"b", b"c"]
    payloads = {
        (sender, n): payload_of(data.draw(lengths))
        for sender in senders
        for n in range(data.draw(st.integers(0, 2)))
    }
    records = [
        item
        for (sender, n), payload in payloads.items()
        for item in records_of(payload, key=sender, context=bytes([n]))
    ]
    repeats = [
        records[at % len(records)] for at in data.draw(st.lists(st.integers(0, 99), max_size=5)) if records
    ]
    order = data.draw(st.randoms(use_true_random=False)).sample(records + repeats, len(records + repeats))
    receiving = assembler(sender=12 * CHUNK, total=64 * CHUNK)
    for offset, item in enumerate(order):
        assert receiving.add(item.key, replace(item, offset=offset)) == ()
    for (sender, n), payload in payloads.items():
        transfer = transfer_of(payload, bytes([n]))
        assert receiving.complete(sender, transfer.id, transfer.length, transfer.sha256) == payload
    assert receiving.open_bytes == 0
    assert receiving.first_open_offset(TopicPartition("t")) is None


@pytest.mark.slow
@settings(max_examples=300)
@given(st.data())
def test_any_changed_byte_of_a_chunk_record_is_found_at_it(data):
    good = records_of(payload_of(300), key=b"key")[0]
    where = data.draw(st.sampled_from(["key", "value", "topic", *range(6)]))
    flip = data.draw(st.integers(1, 127))
    name_too = data.draw(st.booleans())

    def changed(content: bytes) -> bytes:
        at = data.draw(st.integers(0, len(content) - 1))
        return content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]

    if where == "key":
        bad = replace(good, key=changed(good.key))
    elif where == "value":
        bad = replace(good, value=changed(good.value))
    elif where == "topic":
        bad = replace(good, topic=changed(good.topic.encode()).decode())
    else:
        name, value = good.headers[where]
        header = (changed(name.encode()).decode(), value) if name_too else (name, changed(value))
        bad = replace(good, headers=(*good.headers[:where], header, *good.headers[where + 1 :]))
    receiving = assembler()
    with refused(ChunkFault.CORRUPT):
        receiving.add(b"s", bad)
    assert receiving.open_bytes == 0


@pytest.mark.parametrize(
    "keep", [(), (0, 1, 2, 3, 4), (1, 0, 2, 3, 4, 5), (0, 1, 2, 3, 4, 5, 5), (0, 0, 1, 2, 3, 4)]
)
def test_headers_must_be_those_of_a_chunk_in_order(keep):
    good = records_of(b"abc")[0]
    with refused(ChunkFault.CORRUPT):
        assembler().add(b"s", replace(good, headers=tuple(good.headers[index] for index in keep)))


def forged(index: int, total: int, length: int, value: bytes, transfer: bytes = bytes(16)) -> Record:
    """A chunk with a right digest and whatever numbers a peer likes."""
    headers = (
        ("kind", b"chunk"),
        ("transfer", transfer),
        ("index", struct.pack(">I", index)),
        ("total", struct.pack(">I", total)),
        ("length", struct.pack(">Q", length)),
    )
    body = b"echelon/chunk/v1\x00" + b"\x00\x00\x00\x01t" + b"\x00\x00\x00\x01s"
    for name, content in headers:
        body += struct.pack(">I", len(name)) + name.encode() + struct.pack(">I", len(content)) + content
    headers = (*headers, ("sha256", hashlib.sha256(body + value).digest()))
    return Record("t", 0, 0, b"s", value, headers, 0)


@pytest.mark.parametrize(
    ("index", "total", "length", "size", "fault"),
    [
        (1, 1, 5, 5, ChunkFault.OUT_OF_RANGE),
        (0, 0, 0, 0, ChunkFault.OUT_OF_RANGE),
        (0, 2, 5, 5, ChunkFault.OUT_OF_RANGE),
        (0, 1, CHUNK + 1, CHUNK, ChunkFault.OUT_OF_RANGE),
        (0, 1, 5, 4, ChunkFault.OUT_OF_RANGE),
        (0, 1, 5, 6, ChunkFault.OUT_OF_RANGE),
        (0, 2**32 - 1, 2**63, CHUNK, ChunkFault.OUT_OF_RANGE),
        (0, 9, 9 * CHUNK, CHUNK, ChunkFault.TOO_LARGE),
        (0, 2**32 - 1, (2**32 - 1) * CHUNK, CHUNK, ChunkFault.TOO_LARGE),
    ],
)
def test_numbers_that_do_not_fit_are_refused(index, total, length, size, fault):
    receiving = assembler()
    with refused(fault):
        receiving.add(b"s", forged(index, total, length, bytes(size)))
    assert receiving.open_bytes == 0
    assert receiving.first_open_offset(TopicPartition("t")) is None


def test_a_payload_of_just_the_bound_fits_and_one_byte_more_does_not():
    receiving = assembler(sender=2 * CHUNK)
    for item in records_of(payload_of(2 * CHUNK)):
        assert receiving.add(b"s", item) == ()
    transfer = transfer_of(payload_of(2 * CHUNK), b"context")
    assert receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256) == payload_of(2 * CHUNK)
    with refused(ChunkFault.TOO_LARGE):
        receiving.add(b"s", records_of(payload_of(2 * CHUNK + 1))[0])


def test_a_differing_repeat_is_a_fork():
    first = forged(0, 2, CHUNK + 1, bytes(CHUNK))
    receiving = assembler()
    receiving.add(b"s", first)
    for other in (
        forged(0, 2, CHUNK + 1, b"\x01" + bytes(CHUNK - 1)),  # other bytes
        forged(1, 3, 2 * CHUNK + 5, bytes(CHUNK)),  # another length
        replace(first, partition=1),  # another place
    ):
        with refused(ChunkFault.DIFFERS):
            receiving.add(b"s", other)
    receiving.add(b"s", forged(1, 2, CHUNK + 1, b"\x07"))
    payload = bytes(CHUNK) + b"\x07"
    digest = hashlib.sha256(payload).digest()
    assert receiving.complete(b"s", TransferId(bytes(16)), CHUNK + 1, digest) == payload


def test_completion_needs_the_transfer_all_its_chunks_and_its_digest():
    payload = payload_of(CHUNK + 5)
    transfer = transfer_of(payload, b"context")
    receiving = assembler()
    with refused(ChunkFault.UNKNOWN_TRANSFER):
        receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256)
    first, second = records_of(payload)
    receiving.add(b"s", second)
    with refused(ChunkFault.INCOMPLETE):
        receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256)
    receiving.add(b"s", first)
    with refused(ChunkFault.UNKNOWN_TRANSFER):
        receiving.complete(b"other", transfer.id, transfer.length, transfer.sha256)
    with refused(ChunkFault.DIGEST_MISMATCH):
        receiving.complete(b"s", transfer.id, transfer.length, bytes(32))
    assert receiving.open_bytes == 0
    for item in (first, second):
        receiving.add(b"s", item)
    with refused(ChunkFault.DIGEST_MISMATCH):
        receiving.complete(b"s", transfer.id, transfer.length - 1, transfer.sha256)


def test_a_sender_above_its_bounds_loses_its_own_oldest_transfer():
    receiving = assembler(sender=8 * CHUNK, transfers=2)
    receiving.add(b"quiet", records_of(payload_of(CHUNK), key=b"quiet", first=3)[0])
    firsts = [records_of(payload_of(2 * CHUNK, start=n), first=10 * n)[0] for n in range(3)]
    assert receiving.add(b"s", firsts[0]) == receiving.add(b"s", firsts[1]) == ()
    [dropped] = receiving.add(b"s", firsts[2])
    assert dropped.sender == b"s"
    assert dropped.id == transfer_of(payload_of(2 * CHUNK), b"context").id
    assert (dropped.at, dropped.first_offset, dropped.open_bytes) == (TopicPartition("t"), 0, CHUNK)
    assert receiving.open_bytes == 3 * CHUNK
    assert receiving.first_open_offset(TopicPartition("t")) == 3
    receiving.drop(b"quiet")
    assert receiving.first_open_offset(TopicPartition("t")) == 10
    receiving.drop(b"s")
    assert receiving.open_bytes == 0


def test_the_first_open_offset_is_the_lowest_in_whatever_order_chunks_come():
    receiving = assembler()
    for n, item in reversed(list(enumerate(records_of(payload_of(2 * CHUNK + 1), first=5)))):
        receiving.add(b"s", item)
        assert receiving.first_open_offset(TopicPartition("t")) == 5 + n
    assert receiving.first_open_offset(TopicPartition("t", 1)) is None


def test_above_the_common_bound_the_greatest_sender_pays():
    receiving = assembler(sender=4 * CHUNK, transfers=4, total=5 * CHUNK)
    small = records_of(payload_of(CHUNK), key=b"small")[0]
    receiving.add(b"small", small)
    for n in range(4):
        receiving.add(b"greedy", records_of(payload_of(CHUNK, start=n + 1), key=b"greedy")[0])
    dropped = receiving.add(b"late", records_of(payload_of(CHUNK, start=9), key=b"late")[0])
    assert [item.sender for item in dropped] == [b"greedy"]
    transfer = transfer_of(payload_of(CHUNK), b"context")
    assert receiving.complete(b"small", transfer.id, transfer.length, transfer.sha256) == payload_of(CHUNK)


@pytest.mark.slow
def test_empty_chunks_are_not_free():
    receiving = assembler(sender=CHUNK, transfers=10**9, total=CHUNK)
    for n in range(2 * CHUNK // OVERHEAD):
        receiving.add(b"s", forged(0, 1, 0, b"", transfer=n.to_bytes(16, "big")))
    assert receiving.open_bytes == CHUNK


@pytest.mark.parametrize("bounds", [(CHUNK - 1, 1, CHUNK), (CHUNK, 0, CHUNK), (2 * CHUNK, 1, CHUNK)])
def test_bounds_that_make_no_sense_are_refused(bounds):
    with pytest.raises(ValueError, match="bounds"):
        assembler(*bounds)


@cache
def prepared(sender: bytes, start: int, length: int) -> tuple[Transfer, list[Record]]:
    payload = payload_of(length, start=start)
    return transfer_of(payload, b"context"), records_of(payload, key=sender)


class Bounded(RuleBasedStateMachine):
    """Whatever peers send, memory stays within the bounds and restart offsets do not pass an open chunk."""

    SENDER, TRANSFERS, TOTAL = 3 * CHUNK, 2, 7 * CHUNK

    def __init__(self) -> None:
        super().__init__()
        self.assembler = assembler(self.SENDER, self.TRANSFERS, self.TOTAL)
        self.offset = 0
        self.model: dict[
            tuple[bytes, bytes], dict[int, tuple[int, bytes]]
        ] = {}  # open chunks: offset and value
        self.done: set[tuple[bytes, bytes]] = set()

    @rule(
        sender=st.sampled_from([b"a", b"b", b"c", b"d"]),
        start=st.integers(0, 3),
        length=lengths,
        index=st.integers(0, 3),
    )
    def chunk(self, sender, start, length, index):
        transfer, chunks = prepared(sender, start, length)
        if length > self.SENDER:
            with refused(ChunkFault.TOO_LARGE):
                self.assembler.add(sender, chunks[0])
            return
        item = replace(chunks[index % len(chunks)], offset=self.offset)
        self.offset += 1
        if (sender, transfer.id) in self.done:
            assert self.assembler.add(sender, item) == ()
            return
        for dropped in self.assembler.add(sender, item):
            gone = self.model.pop((dropped.sender, dropped.id), {})
            offsets = [offset for offset, _ in gone.values()]
            if (dropped.sender, dropped.id) == (sender, transfer.id):
                offsets.append(item.offset)
            assert dropped.first_offset == min(offsets)
            if (dropped.sender, dropped.id) == (sender, transfer.id):
                return
        parts = self.model.setdefault((sender, transfer.id), {})
        parts.setdefault(index % len(chunks), (item.offset, item.value))

    @rule(sender=st.sampled_from([b"a", b"b", b"c", b"d"]), start=st.integers(0, 3), length=lengths)
    def manifest(self, sender, start, length):
        payload = payload_of(length, start=start)
        transfer, _ = prepared(sender, start, length)
        parts = self.model.get((sender, transfer.id))
        if parts is not None and len(parts) == transfer.total:
            assert self.assembler.complete(sender, transfer.id, length, transfer.sha256) == payload
            del self.model[(sender, transfer.id)]
            self.done.add((sender, transfer.id))
        else:
            with refused(ChunkFault.UNKNOWN_TRANSFER if parts is None else ChunkFault.INCOMPLETE):
                self.assembler.complete(sender, transfer.id, length, transfer.sha256)

    @invariant()
    def bounded(self):
        held: dict[bytes, int] = {}
        for (sender, _), parts in self.model.items():
            held[sender] = held.get(sender, 0) + sum(max(OVERHEAD, len(value)) for _, value in parts.values())
        assert self.assembler.open_bytes == sum(held.values()) <= self.TOTAL
        assert all(size <= self.SENDER for size in held.values())
        for sender in held:
            assert sum(1 for who, _ in self.model if who == sender) <= self.TRANSFERS

    @invariant()
    def first_open(self):
        offsets = [offset for parts in self.model.values() for offset, _ in parts.values()]
        assert self.assembler.first_open_offset(TopicPartition("t")) == min(offsets, default=None)


TestBounded = pytest.mark.slow(Bounded.TestCase)
TestBounded.settings = settings(max_examples=40, stateful_step_count=30)


# ---- whose a transfer is, and where it stands among those of its sender -----------------------------------


def sign(message: bytes) -> bytes:
    """Stands for a signature: the assembler does not check it."""
    return hashlib.shake_256(message).digest(64)


def signed(payload: bytes, order: int, *, scope: bytes = NO_SCOPE, first: int = 0) -> list[Record]:
    origin = Origin(b"run", sign, scope, order)
    transfer = transfer_of(payload, scope + order.to_bytes(2, "big"))
    chunks = to_chunks(payload, transfer, topic="t", key=b"s", partition=3, origin=origin)
    return [record(out, first + n) for n, out in enumerate(chunks)]


def take(receiving: Assembler, records: list[Record]) -> list[bytes]:
    """The ids of the transfers that were dropped for the records."""
    dropped = [one for item in records for one in receiving.take(b"s", item, read_chunk(item, signed=True))]
    return [one.id for one in dropped]


def finish(receiving: Assembler, payload: bytes, order: int, scope: bytes = NO_SCOPE) -> None:
    transfer = transfer_of(payload, scope + order.to_bytes(2, "big"))
    assert receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256) == payload


def test_golden_signed_chunk():
    """The wire format, written out by hand: a change here is a change of format."""
    origin = Origin(b"the run", sign, b"0123456789abcdef", 7)
    transfer = transfer_of(b"abc", b"ctx")
    [chunk] = to_chunks(b"abc", transfer, topic="masked", key=b"dev", partition=2, origin=origin)
    names = ["kind", "transfer", "index", "total", "length", "scope", "order", "sha256", "signature"]
    assert [name for name, _ in chunk.headers] == names
    values = dict(chunk.headers)
    assert (values["scope"], values["order"]) == (b"0123456789abcdef", b"\x00" * 7 + b"\x07")
    body = b"echelon/chunk/v1\x00" + b"\x00\x00\x00\x06masked" + b"\x00\x00\x00\x03dev"
    for name in names[:-2]:
        value = values[name]
        body += struct.pack(">I", len(name)) + name.encode() + struct.pack(">I", len(value)) + value
    digest = hashlib.sha256(body + b"abc").digest()
    assert values["sha256"] == digest
    tag = b"echelon boundary chunk v1\x00" + b"\x00\x00\x00\x07the run" + b"\x00\x00\x00\x02"
    assert values["signature"] == sign(tag + digest)
    assert read_chunk(record(chunk, 0), signed=True).signed_bytes(b"the run") == tag + digest
    assert chunk.size - 3 - 3 <= OVERHEAD


def test_a_chunk_is_signed_or_it_is_not():
    for item, is_signed in ((signed(b"abc", 1)[0], True), (records_of(b"abc")[0], False)):
        assert read_chunk(item, signed=is_signed).signature == dict(item.headers).get("signature", b"")
        with refused(ChunkFault.CORRUPT):
            read_chunk(item, signed=not is_signed)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_any_changed_header_of_a_signed_chunk_is_found_or_changes_what_was_signed(data):
    [good] = signed(payload_of(300), 7)
    place = data.draw(st.integers(0, 7))
    name, value = good.headers[place]
    at = data.draw(st.integers(0, len(value) - 1))
    changed = value[:at] + bytes([value[at] ^ data.draw(st.integers(1, 255))]) + value[at + 1 :]
    with refused(ChunkFault.CORRUPT):
        read_chunk(
            replace(good, headers=(*good.headers[:place], (name, changed), *good.headers[place + 1 :])),
            signed=True,
        )
    moved = read_chunk(replace(good, partition=4), signed=True)
    assert moved.signed_bytes(b"run") != read_chunk(good, signed=True).signed_bytes(b"run")
    assert moved.signed_bytes(b"run") != moved.signed_bytes(b"other run")


def test_what_is_older_than_a_complete_transfer_is_over():
    receiving = assembler()
    old, done, later = payload_of(2 * CHUNK), payload_of(2 * CHUNK, 1), payload_of(2 * CHUNK, 2)
    assert take(receiving, signed(old, 1)[:1]) == []
    assert take(receiving, signed(done, 2)) == []
    finish(receiving, done, 2)
    assert receiving.open_bytes == 0, "what was begun before is given up with it"
    for again in (signed(old, 1), signed(done, 2)):
        assert take(receiving, again) == []
        assert receiving.open_bytes == 0
    assert take(receiving, signed(later, 2)) == []  # another of the same order
    finish(receiving, later, 2)


def test_the_lowest_order_is_given_up_whenever_it_came():
    receiving = assembler(transfers=2)
    new = signed(payload_of(2 * CHUNK), 9)
    assert take(receiving, new[:1]) == []
    ids = [dict(signed(payload_of(2 * CHUNK, n), n)[0].headers)["transfer"] for n in range(1, 5)]
    found = [one for n in range(1, 5) for one in take(receiving, signed(payload_of(2 * CHUNK, n), n)[:1])]
    assert found == ids[:3]
    assert take(receiving, new[1:]) == []
    finish(receiving, payload_of(2 * CHUNK), 9)


def test_a_new_session_begins_its_own_order():
    receiving = assembler(transfers=2)
    one, two = bytes([1]) * 16, bytes([2]) * 16
    old, new = payload_of(2 * CHUNK), payload_of(2 * CHUNK, 1)
    assert take(receiving, signed(old, 900, scope=one)) == []
    finish(receiving, old, 900, one)
    assert take(receiving, signed(old, 901, scope=one)[:1] + signed(old, 902, scope=one)[:1]) == []
    assert len(take(receiving, signed(new, 0, scope=two))) == 1
    finish(receiving, new, 0, two)


def test_remembered_transfers_are_bounded():
    receiving = assembler()
    for n in range(MAX_SETTLED + 5):
        payload = b"%d" % n
        assert take(receiving, signed(payload, 3)) == []
        finish(receiving, payload, 3)
    assert take(receiving, signed(b"%d" % (MAX_SETTLED + 4), 3)) == []
    assert receiving.open_bytes == 0
    assert take(receiving, signed(b"0", 3)) == []
    assert receiving.open_bytes == OVERHEAD, (
        "forgotten: one more that nobody finishes, within the sender's bounds"
    )


def test_a_topic_has_a_longest_payload_and_others_have_none():
    receiving = Assembler(
        max_open_bytes_per_sender=8 * CHUNK, max_open_transfers_per_sender=2, max_open_bytes_total=8 * CHUNK,
        largest={"t": CHUNK + 3},
    )  # fmt: skip
    assert receiving.add(b"s", records_of(payload_of(CHUNK + 3))[0]) == ()
    with refused(ChunkFault.TOO_LARGE):
        receiving.add(b"s", records_of(payload_of(CHUNK + 4))[0])
    elsewhere = next(to_chunks(b"", transfer_of(b"", b""), topic="u", key=b"s"))
    with refused(ChunkFault.TOO_LARGE):
        receiving.add(b"s", record(elsewhere, 0))


def test_a_transfer_holds_its_payload_once_from_the_first_chunk_to_the_payload():
    payload = bytes(16 * CHUNK)
    transfer = transfer_of(payload, b"context")
    receiving = assembler(sender=16 * CHUNK)
    with traced() as peak:
        for item in to_chunks(payload, transfer, topic="t", key=b"s"):
            receiving.add(b"s", item.at(0, 0))
        assert receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256) == payload
        assert peak() < 16 * CHUNK * 1.5


def test_a_peer_that_announces_a_long_payload_costs_only_what_it_sends():
    receiving = assembler(sender=8 * CHUNK, total=16 * CHUNK)
    last = forged(7, 8, 8 * CHUNK, bytes(CHUNK))
    with traced() as peak:
        receiving.add(b"s", last)
        assert peak() < CHUNK


@pytest.fixture(params=["in memory", "on disk"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path | None:
    """The folder of transfers; None: memory."""
    monkeypatch.setattr("echelon.bus.assembler.SPILLED", 0)
    return tmp_path if request.param == "on disk" else None


def test_chunks_come_in_any_order(place: Path | None):
    payload = payload_of(5 * CHUNK + 3)
    transfer = transfer_of(payload, b"context")
    for order in ((5, 4, 3, 2, 1, 0), (0, 2, 1, 5, 3, 4), (3, 0, 1, 2, 4, 5)):
        receiving = assembler()
        if place is not None:
            receiving.keep_in(place)
        records = records_of(payload)
        for count, index in enumerate(order, 1):
            receiving.add(b"s", records[index])
            for again in order[:count]:
                receiving.add(b"s", records[again])
            other = replace(records[index], offset=99)
            receiving.add(b"s", other)
        assert receiving.complete(b"s", transfer.id, transfer.length, transfer.sha256) == payload


@pytest.mark.parametrize("length", [0, 1, CHUNK, 2 * CHUNK + 7])
def test_transfers_of_many_senders_do_not_meet(place: Path | None, length: int):
    receiving = assembler()
    if place is not None:
        receiving.keep_in(place)
    payloads = {b"%d" % n: payload_of(length, start=n) for n in range(5)}
    records = {who: records_of(payload, key=who) for who, payload in payloads.items()}
    for _ in range(2):  # places are used again
        for some in zip(*records.values(), strict=True):
            for who, item in zip(records, some, strict=True):
                assert receiving.add(who, item) == ()
        receiving.drop(b"3")
        for who, payload in payloads.items():
            transfer = transfer_of(payload, b"context")
            if who != b"3":
                assert receiving.complete(who, transfer.id, transfer.length, transfer.sha256) == payload
        receiving._settled.clear()
    assert receiving.open_bytes == 0
    assert place is None or list(place.iterdir()) == []  # the file has no name


def test_what_is_received_on_disk_is_not_in_memory(tmp_path: Path):
    receiving = assembler(sender=32 * CHUNK, total=128 * CHUNK)
    receiving.keep_in(tmp_path)
    payload = bytes(32 * CHUNK)
    transfer = transfer_of(payload, b"context")
    with traced() as peak:
        for item in to_chunks(payload, transfer, topic="t", key=b"s"):
            for who in (b"s", b"u", b"v"):
                receiving.add(who, item.at(0, 0))
        assert peak() < 3 * CHUNK
        for who in (b"s", b"u", b"v"):
            assert receiving.complete(who, transfer.id, transfer.length, transfer.sha256) == payload
        assert peak() < 1.5 * 32 * CHUNK


def test_a_disk_that_does_not_take_it_is_an_error_of_its_own(tmp_path: Path):
    receiving = assembler(sender=16 * CHUNK)
    receiving.keep_in(tmp_path / "gone")
    first, *_ = records_of(payload_of(CHUNK), context=b"c")
    assert receiving.add(b"s", first) == ()  # too small for a file
    with pytest.raises(StorageError, match="make room on its disk"):
        receiving.add(b"s", forged(0, 8, 8 * CHUNK, bytes(CHUNK)))
