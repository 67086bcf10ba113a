from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import pytest

from echelon.audit import helper as helper_module
from echelon.audit.findings import Code, TopicFacts
from echelon.audit.helper import Digests, DigestsAhead, Errand, Helper
from echelon.audit.log import TopicLog
from echelon.audit.log_reading import LogReading
from echelon.audit.records import StoredRecord, is_chunk
from echelon.audit.verify import verify
from echelon.messages.exchange import Payload
from echelon.messages.manifest import OuterKind
from tests.audit.synthetic import CONTROLLER, Exchange, TopicWriter, scenario, terms


def chunks(payload: bytes) -> tuple[bytes, list[StoredRecord]]:
    writer = TopicWriter("delta.a", CONTROLLER)
    described = Payload.of(payload, b"test")
    writer.chunks(payload, described)
    return described.transfer, writer.records


@pytest.fixture(params=[1, 2], ids=["one core", "two cores"])
def helper(request: pytest.FixtureRequest) -> Iterator[Helper]:
    helper = Helper(request.param)
    yield helper
    helper.stop()


def test_digests_that_were_begun_early_are_those_of_the_bytes(helper: Helper) -> None:
    payload = bytes(range(256)) * 6000
    transfer, records = chunks(payload)
    ahead, plain = DigestsAhead(helper, payloads=True), Digests()
    for record in records:
        ahead.expect(record)
    assert [ahead.chunk(record) for record in records] == [plain.chunk(record) for record in records]
    assert ahead.payload(transfer, [record.value for record in records]) == hashlib.sha256(payload).digest()


def test_what_was_computed_counts_for_the_same_objects_alone(helper: Helper) -> None:
    transfer, records = chunks(bytes(1_200_000))
    ahead = DigestsAhead(helper, payloads=True)
    for record in records:
        ahead.expect(record)
    changed = replace(records[0], value=b"\x01" + records[0].value[1:])
    assert ahead.chunk(changed) == Digests().chunk(changed) != Digests().chunk(records[0])
    parts = [changed.value, *(record.value for record in records[1:])]
    assert ahead.payload(transfer, parts) == hashlib.sha256(b"".join(parts)).digest()
    assert ahead.payload(transfer, parts[:1]) == hashlib.sha256(parts[0]).digest()


def test_transfers_that_lie_in_one_another_are_hashed_apart(helper: Helper) -> None:
    ahead = DigestsAhead(helper, payloads=True)
    every = [chunks(bytes([number]) * 600_000) for number in range(5)]
    for index in range(2):
        for _, records in every:
            ahead.expect(records[index])
    for number, (transfer, records) in enumerate(every):
        digest = ahead.payload(transfer, [record.value for record in records])
        assert digest == hashlib.sha256(bytes([number]) * 600_000).digest()


def test_results_come_in_order_and_the_first_failure_is_raised(helper: Helper) -> None:
    def fail() -> int:
        raise ValueError("this part fails")

    assert helper.run([lambda value=value: value for value in range(9)]) == list(range(9))
    with pytest.raises(ValueError, match="this part fails"):
        helper.run([lambda: 1, fail, lambda: 3])


def test_whoever_waits_helps_and_every_task_is_made_once() -> None:
    made: list[int] = []
    helper = Helper(2)
    tasks = [helper.submit(lambda value=value: made.append(value)) for value in range(200)]
    for task in reversed(tasks):
        helper.result(task)
    assert sorted(made) == list(range(200))
    task = Errand(lambda: None)
    assert task.take()
    assert not task.take()
    helper.stop()


@pytest.mark.parametrize("kind", OuterKind)
def test_two_cores_find_what_one_finds(kind: OuterKind, monkeypatch: pytest.MonkeyPatch) -> None:
    exchange = scenario(terms(dim=140_000, kind=kind))
    topics = exchange.topics
    whole = [topics, *(damaged(topics, topic, place) for topic in topics for place in (1, 4, 9))]
    found = []
    for cores in (1, 2):
        monkeypatch.setattr(helper_module, "usable_cores", lambda cores=cores: cores)
        found.append([verify(one, genesis=exchange.genesis_sha256) for one in whole])
    assert found[0] == found[1]
    assert found[0][0].ok
    assert {Code.CORRUPT_CHUNK, Code.PREFIX} <= {f.code for report in found[0][1:] for f in report.findings}


def test_a_payload_that_is_not_the_signed_one_is_found_on_two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(helper_module, "usable_cores", lambda: 2)
    exchange = Exchange(terms(dim=140_000))
    payload = bytes(280_000)
    lied = Payload.of(payload, b"delta 0").model_copy(update={"sha256": bytes(32)})
    exchange.gates[0].chunks(payload, lied)
    exchange.delta(0, payload=lied, prefix=exchange.gates[0].chain.value)
    exchange.close()
    report = verify(exchange.topics, genesis=exchange.genesis_sha256)
    assert Code.PAYLOAD in {finding.code for finding in report.findings}


def damaged(topics: dict[str, list[StoredRecord]], topic: str, place: int) -> dict[str, list[StoredRecord]]:
    """The exchange with one byte of the record at this place, or of the chunk nearest to it, changed."""
    records = list(topics[topic])
    place = min(place, len(records) - 1)
    while place and not is_chunk(records[place]):
        place -= 1
    record = records[place]
    records[place] = replace(record, value=record.value[:-1] + bytes([record.value[-1] ^ 1]))
    return {**topics, topic: records}


def test_a_source_that_breaks_off_raises_behind_what_it_gave() -> None:
    _, records = chunks(bytes(1_200_000))

    def broken() -> Iterator[StoredRecord]:
        yield from records
        raise OSError("the disk is gone")

    reading = LogReading("delta.a", broken(), TopicLog("delta.a"), TopicFacts(), window=8)
    assert [reading.take() for _ in records] == records
    for _ in range(2):
        with pytest.raises(OSError, match="the disk is gone"):
            reading.take()
