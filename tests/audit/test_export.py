from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.export import (
    MAGIC,
    ExportedTopic,
    encode_index,
    encode_record,
    encode_topic,
    read_index,
    read_topic,
    topic_file,
)
from echelon.audit.records import Damaged, StoredRecord
from echelon.audit.verify import verify
from echelon.errors import CodecError
from tests.audit.synthetic import scenario

RUN_A = scenario()
FILES = {topic: b"".join(encode_topic(records)) for topic, records in RUN_A.topics.items()}
RECORDS = st.builds(
    StoredRecord,
    topic=st.just("t"),
    offset=st.integers(0, (1 << 64) - 2),
    key=st.binary(max_size=9),
    value=st.binary(max_size=99),
    headers=st.lists(st.tuples(st.text(max_size=9), st.binary(max_size=9)), max_size=4).map(tuple),
    timestamp_ms=st.integers(-(1 << 63), (1 << 63) - 1),
)


@pytest.mark.slow
@given(st.lists(RECORDS, max_size=5))
def test_round_trip(records: list[StoredRecord]) -> None:
    assert list(read_topic("t", io.BytesIO(b"".join(encode_topic(records))))) == records


def test_a_run_verifies_from_its_export() -> None:
    topics = {topic: read_topic(topic, io.BytesIO(data)) for topic, data in FILES.items()}
    assert verify(topics, genesis=RUN_A.genesis_sha256).ok


@pytest.mark.slow
@given(st.sampled_from(sorted(FILES)), st.data())
def test_any_changed_byte_of_a_file_is_reported_or_carries_nothing(topic: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(FILES[topic]) - 1))
    changed = bytearray(FILES[topic])
    changed[place] ^= data.draw(st.integers(1, 255))
    streams = {**FILES, topic: bytes(changed)}
    report = verify({name: read_topic(name, io.BytesIO(raw)) for name, raw in streams.items()})
    if report.ok:  # offsets and times are a broker's, covered by nothing: all that counts must be as before
        found = [r for r in read_topic(topic, io.BytesIO(bytes(changed))) if not isinstance(r, Damaged)]
        parts = [(r.key, r.headers, r.value) for r in found]
        assert parts == [(r.key, r.headers, r.value) for r in RUN_A.topics[topic]]


@given(st.binary(max_size=200))
def test_anything_is_read_without_an_error_of_ours(data: bytes) -> None:
    for prefix in (b"", MAGIC):
        for record in read_topic("t", io.BytesIO(prefix + data)):
            assert record.topic == "t"


def test_what_is_cut_off_is_damaged() -> None:
    whole = b"".join(encode_topic([StoredRecord("t", 4, b"k", b"v", (("h", b"x"),))]))
    for size in range(len(MAGIC) + 1, len(whole)):
        assert any(isinstance(r, Damaged) for r in read_topic("t", io.BytesIO(whole[:size])))
    body = encode_record(StoredRecord("t", 4, b"", b"", ()))
    longer = len(body[4:] + b"x").to_bytes(4, "big") + body[4:] + b"x"
    assert isinstance(next(read_topic("t", io.BytesIO(MAGIC + longer))), Damaged)


def test_the_index() -> None:
    data = encode_index([ExportedTopic("global", topic_file("global"), 3, 99)])
    assert read_index(data) == ("global",)
    assert json.loads(data)["topics"][0]["bytes"] == 99
    for bad in (b"", b"{}", b"[]", data.replace(b"v1", b"v2"), data.replace(b'global"', b'../x"', 1)):
        with pytest.raises(CodecError):
            read_index(bad)
    for name in ("", "..", "a/b", "x" * 250):
        with pytest.raises(CodecError):
            topic_file(name)
