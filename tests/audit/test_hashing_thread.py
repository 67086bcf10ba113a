"""The thread that hashes ahead: it changes no digest and no verdict, its failures reach who asks, and it ends."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from echelon.audit.derived_adapter import digest_known_of
from echelon.audit.findings import Code, Report, TopicFacts
from echelon.audit.incremental import verify_new
from echelon.audit.log import TopicLog
from echelon.audit.log_reading import LOOK_AHEAD, LogReading
from echelon.audit.records import Damaged, LogRecord, StoredRecord, begin_chunk, chunk_digest, is_chunk
from echelon.audit.transfer import BegunDigests, OpenTransfer
from echelon.audit.verify import verify
from echelon.errors import AuditError
from echelon.laws.hashing import Digest, Sha256
from echelon.messages.adapter import adapter_digest
from echelon.messages.exchange import Payload
from echelon.messages.manifest import OuterKind
from echelon.sources import hashing_thread
from echelon.sources.hashing_thread import HashingThread, hashing_ahead
from tests.audit.synthetic import CONTROLLER, Exchange, TopicWriter, scenario, terms

Topics = dict[str, list[StoredRecord]]


class Gated(bytes):
    """Bytes of which somebody is told that they are hashed, and that are hashed once somebody allows it."""

    begun: threading.Event
    allowed: threading.Event


class GatedSha256:
    """Stands for hashlib's in a thread: says which thread hashes what, and waits where it is told to."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()

    def update(self, data: bytes) -> None:
        if isinstance(data, Gated):
            data.begun.set()
            assert data.allowed.wait(60)
        self._sha256.update(data)

    def digest(self) -> bytes:
        return self._sha256.digest()


def gated(data: bytes) -> Gated:
    part = Gated(data)
    part.begun, part.allowed = threading.Event(), threading.Event()
    return part


@pytest.fixture
def thread() -> Iterator[HashingThread]:
    thread = HashingThread()
    yield thread
    thread.stop()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing_thread, "hashlib", type("Gated", (), {"sha256": GatedSha256}))


# ---- the thread ----------------------------------------


def test_digests_are_those_of_hashlib(thread: HashingThread) -> None:
    parts = [bytes([number]) * (number * 50_000) for number in range(9)]
    many = [thread() for _ in range(20)]
    for part in parts:
        for digest in many:
            digest.update(part)
    whole = hashlib.sha256(b"".join(parts)).digest()
    assert [digest.digest() for digest in many] == [whole] * 20
    assert many[0].digest() == whole, "asked for again"
    many[0].update(memoryview(b"more"))
    assert many[0].digest() == hashlib.sha256(b"".join(parts) + b"more").digest()
    assert thread().digest() == hashlib.sha256(b"").digest()


@pytest.mark.usefixtures("watched")
def test_the_newest_is_hashed_first_and_who_asks_takes_over(thread: HashingThread) -> None:
    busy, old, new = gated(b"busy"), gated(b"old"), gated(b"new")
    first, older, newer = thread(), thread(), thread()
    first.update(busy)
    assert busy.begun.wait(60)
    first.update(b" and more")
    older.update(old)
    newer.update(new)
    # The thread is in the midst of a part: what it has not begun is hashed by who asks.
    old.allowed.set()
    assert older.digest() == hashlib.sha256(b"old").digest()
    assert not new.begun.is_set()
    busy.allowed.set()
    assert first.digest() == hashlib.sha256(b"busy and more").digest()
    assert new.begun.wait(60), "the thread goes on with what is left"
    new.allowed.set()
    assert newer.digest() == hashlib.sha256(b"new").digest()


def test_what_fails_in_the_thread_is_raised_to_who_asks(thread: HashingThread) -> None:
    bad, good = thread(), thread()
    bad.update("no bytes")  # type: ignore[arg-type]
    bad.update(b"behind it")
    good.update(b"good")
    assert good.digest() == hashlib.sha256(b"good").digest()
    for _ in range(2):
        with pytest.raises(TypeError):
            bad.digest()


@pytest.mark.usefixtures("watched")
def test_a_failure_while_the_thread_hashes_is_raised_to_who_waits(thread: HashingThread) -> None:
    part, digest = gated(b"part"), thread()
    digest.update(part)
    assert part.begun.wait(60)
    digest.update(None)  # type: ignore[arg-type]
    failed: list[BaseException] = []

    def ask() -> None:
        try:
            digest.digest()
        except TypeError as error:
            failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    part.allowed.set()
    asking.join()
    assert len(failed) == 1


def test_nothing_is_left_running_and_digests_go_on_without_the_thread() -> None:
    before = threading.active_count()
    with hashing_ahead(cores=2) as sha256:
        assert sha256 is not None
        assert threading.active_count() == before + 1
        digest = sha256()
        digest.update(b"a")
    assert threading.active_count() == before
    digest.update(b"b")
    assert digest.digest() == hashlib.sha256(b"ab").digest()
    with pytest.raises(AuditError, match="in between"), hashing_ahead(cores=2):
        raise AuditError("in between")
    assert threading.active_count() == before


@pytest.mark.parametrize(("wanted", "cores"), [(True, 1), (False, 2), (False, None)])
def test_without_a_second_core_or_the_wish_there_is_no_thread(wanted: bool, cores: int | None) -> None:
    before = threading.active_count()
    with hashing_ahead(wanted, cores=cores) as sha256:
        assert sha256 is None
        assert threading.active_count() == before


# ---- reading ahead ----------------------------------------


def chunks(payload: bytes) -> list[StoredRecord]:
    writer = TopicWriter("delta.a", CONTROLLER)
    writer.chunks(payload, Payload.of(payload, b"test"))
    return writer.records


def test_digests_are_begun_of_what_has_the_form_of_a_chunk() -> None:
    record = chunks(b"payload")[0]
    begun = begin_chunk(record, hashlib.sha256)
    assert begun is not None
    assert begun.digest() == chunk_digest(record.topic, record.key, record.headers[:5], record.value)
    shorter = (*record.headers[:4], ("length", b"\x00" * 7), record.headers[5])
    for headers in ((), record.headers[:5], shorter, (("kind", b"commit"),)):
        assert begin_chunk(replace(record, headers=headers), hashlib.sha256) is None


def test_the_digest_of_a_payload_counts_for_its_very_chunks() -> None:
    payload = bytes(range(250)) * 5000
    records = chunks(payload)
    begun = BegunDigests(hashlib.sha256)
    found = [begun.begin(record) for record in records]
    assert begun.begin(replace(records[0], headers=())) is None
    transfer = OpenTransfer(len(payload), len(records), 0)
    for record, one in zip(records, found, strict=True):
        assert transfer.digest() is None
        transfer.add(record.value, one)
    digest = transfer.digest()
    assert digest is not None
    assert digest.digest() == transfer.sha256() == hashlib.sha256(payload).digest()

    for mixed in ([None, *found[1:]], [*found[:-1], None], [found[0], found[0], *found[2:]]):
        other = OpenTransfer(len(payload), len(records), 0)
        for record, one in zip(records, mixed, strict=True):
            other.add(record.value, one)
        assert other.digest() is None
        assert other.sha256() == hashlib.sha256(payload).digest()

    begun.begin(records[0])
    assert transfer.digest() is digest, "another one is begun by another first chunk"
    again = [begun.begin(record) for record in records]
    begun.begin(
        replace(
            records[2],
            headers=(*records[2].headers[:2], ("index", b"\x00\x00\x00\x03"), *records[2].headers[3:]),
        )
    )
    longer = OpenTransfer(len(payload), len(records), 0)
    for record, one in zip(records, again, strict=True):
        longer.add(record.value, one)
    assert longer.digest() is None, "it covers a chunk that is not part of the payload"
    assert longer.sha256() == hashlib.sha256(payload).digest()


def test_payloads_in_one_another_are_begun_as_long_as_few_are_open() -> None:
    begun = BegunDigests(hashlib.sha256)
    three = [chunks(bytes([number]) * 600_000) for number in range(3)]
    first = [begun.begin(records[0]) for records in three]
    second = [begun.begin(records[1]) for records in three]
    assert all(one is not None and one.payload is not None for one in first)
    assert [one is not None and one.payload is not None for one in second] == [False, True, True]


def test_a_digest_is_an_adapters_if_its_bytes_are() -> None:
    adapter = np.linspace(-1, 1, 9, dtype=np.float32)
    made_up = hashlib.sha256(b"whatever")
    known = digest_known_of(adapter.tobytes(), made_up)
    assert known(adapter) == made_up.digest()
    assert known(-adapter) == adapter_digest(-adapter)
    assert digest_known_of(adapter.tobytes(), None)(adapter) == adapter_digest(adapter)


def reading(records: Iterator[LogRecord | Damaged], sha256: Sha256 | None, logs: int = 1) -> LogReading:
    one = LogReading("delta.a", records, TopicLog("delta.a"), TopicFacts())
    if sha256 is not None:
        one.hash_ahead(sha256, logs)
    return one


@pytest.mark.parametrize(("logs", "window"), [(1, LOOK_AHEAD), (4, LOOK_AHEAD // 4), (1000, 1)])
def test_so_many_records_are_read_before_they_are_taken(logs: int, window: int) -> None:
    records = chunks(bytes(20 * 512 * 1024))
    read: list[StoredRecord] = []

    def source() -> Iterator[StoredRecord]:
        for record in records:
            read.append(record)
            yield record

    one = reading(source(), hashlib.sha256, logs)
    for taken, record in enumerate(records):
        assert one.peek() is record
        assert len(read) == min(taken + window, len(records))
        assert one.take() is record
        assert one.begun is not None
    assert one.take() is None


@pytest.mark.parametrize("sha256", [None, hashlib.sha256])
def test_a_source_that_breaks_off_raises_behind_what_it_gave(sha256: Sha256 | None) -> None:
    records = chunks(bytes(1_200_000))

    def broken() -> Iterator[StoredRecord]:
        yield from records
        raise OSError("the disk is gone")

    one = reading(broken(), sha256)
    assert [one.take() for _ in records] == records
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            one.take()


# ---- verdicts ----------------------------------------


def changed(topics: Topics, topic: str, place: int) -> Topics:
    """One byte of a record's value is another."""
    records = list(topics[topic])
    value = records[place].value
    records[place] = replace(records[place], value=value[:-1] + bytes([value[-1] ^ 1]))
    return {**topics, topic: records}


def damages(topics: Topics) -> Iterator[Topics]:
    """Of every topic: a chunk and a manifest changed, one lost, two in the other order, one twice, the end cut off, one
    that cannot be read."""
    for topic, records in topics.items():
        chunk = next(place for place, record in enumerate(records) if is_chunk(record))
        manifest = next(place for place, record in enumerate(records) if place and not is_chunk(record))
        for place in (chunk, manifest):
            yield changed(topics, topic, place)
            yield {**topics, topic: [*records[:place], *records[place + 1 :]]}
            yield {**topics, topic: [*records[: place + 1], *records[place:]]}
            swapped = [*records[:place], records[place + 1], records[place], *records[place + 2 :]]
            yield {**topics, topic: swapped}
            unreadable = Damaged(topic, records[place].offset, "no record")
            yield {**topics, topic: [*records[:place], unreadable, *records[place + 1 :]]}  # type: ignore[list-item]
        yield {**topics, topic: records[:-2]}
        yield {**topics, topic: []}


def verdicts(topics: Topics, genesis: bytes) -> tuple[Report, Report]:
    with hashing_ahead(cores=2) as sha256:
        assert sha256 is not None
        ahead = verify(topics, genesis=genesis, sha256=sha256)
    return verify(topics, genesis=genesis), ahead


@pytest.mark.slow
@pytest.mark.parametrize("kind", OuterKind)
def test_the_thread_changes_no_verdict(kind: OuterKind) -> None:
    exchange = scenario(terms(dim=140_000, kind=kind))
    alone, ahead = verdicts(exchange.topics, exchange.genesis_sha256)
    assert alone == ahead
    assert alone.ok
    found = set()
    for topics in damages(exchange.topics):
        alone, ahead = verdicts(topics, exchange.genesis_sha256)
        assert alone == ahead
        found |= {finding.code for finding in alone.findings}
    assert {Code.CORRUPT_CHUNK, Code.PREFIX, Code.MISSING, Code.UNREADABLE, Code.OFFSET_ORDER} <= found


def test_a_payload_that_is_not_the_signed_one_is_found_all_the_same() -> None:
    exchange = Exchange(terms(dim=140_000))
    payload = bytes(280_000)
    lied = Payload.of(payload, b"delta 0").model_copy(update={"sha256": bytes(32)})
    exchange.gates[0].chunks(payload, lied)
    exchange.delta(0, payload=lied, prefix=exchange.gates[0].chain.value)
    exchange.close()
    alone, ahead = verdicts(exchange.topics, exchange.genesis_sha256)
    assert alone == ahead
    assert Code.PAYLOAD in {finding.code for finding in alone.findings}


class Failing:
    """Computes digests as hashlib does, and fails at the nth that is asked for."""

    def __init__(self, sha256: Sha256, fails_at: int) -> None:
        self._sha256, self._left = sha256, fails_at

    def __call__(self) -> Digest:
        self._left -= 1
        digest = self._sha256()
        if self._left == 0:
            digest.update(None)  # type: ignore[arg-type]
        return digest


@pytest.mark.parametrize("fails_at", [1, 2, 7])
def test_a_failure_of_the_thread_is_no_verdict(fails_at: int) -> None:
    exchange = scenario(terms(dim=140_000))
    before = threading.active_count()
    with hashing_ahead(cores=2) as sha256:
        assert sha256 is not None
        with pytest.raises(TypeError):
            verify(exchange.topics, genesis=exchange.genesis_sha256, sha256=Failing(sha256, fails_at))
    assert threading.active_count() == before


def test_verifying_what_is_new_goes_on_with_the_thread() -> None:
    topics = scenario(terms(dim=140_000, kind=OuterKind.NESTEROV)).topics
    earlier = {name: records[: len(records) // 2] for name, records in topics.items()}
    for sha256 in (None, HashingThread()):
        first = verify_new(
            earlier, lambda name, offset: earlier[name][offset:], None,
            reader="test", allow_open=True, sha256=sha256,
        )  # fmt: skip
        assert first.progress is not None, first.why_not
        second = verify_new(
            topics, lambda name, offset: topics[name][offset:], first.progress, reader="test", sha256=sha256
        )
        assert second.report == verify(topics)
        if sha256 is not None:
            sha256.stop()
