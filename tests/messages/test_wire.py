from __future__ import annotations

import contextlib
from enum import StrEnum
from typing import Annotated, ClassVar

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, Strict

from echelon.errors import CodecError
from echelon.messages.wire import (
    I64,
    MAX_CONTROL_BYTES,
    MAX_DEPTH,
    MAX_ITEMS,
    U63,
    Fields,
    Message,
    Reason,
    Refused,
    Registry,
    Slug,
    pack,
    plain,
    unpack,
)


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Part(Fields):
    number: U63
    data: Annotated[bytes, Field(max_length=64)]


class Sample(Message):
    kind: ClassVar[str] = "sample"
    number: I64
    name: Slug
    flag: bool
    colour: Annotated[Colour, Strict(False)]
    parts: Annotated[tuple[Part, ...], Field(max_length=8)]


class Newer(Message):
    kind: ClassVar[str] = "sample"
    revision: ClassVar[int] = 2
    number: I64


PARTS = st.builds(Part, number=st.integers(0, (1 << 63) - 1), data=st.binary(max_size=64))
SAMPLES = st.builds(
    Sample,
    number=st.integers(-(1 << 63), (1 << 63) - 1),
    name=st.from_regex(r"[a-z0-9]([a-z0-9._-]{0,8}[a-z0-9])?", fullmatch=True),
    flag=st.booleans(),
    colour=st.sampled_from(Colour),
    parts=st.lists(PARTS, max_size=8).map(tuple),
)
GOOD = Sample(number=5, name="a", flag=True, colour=Colour.RED, parts=(Part(number=1, data=b"x"),))


def reason(data: bytes, **limits: int) -> Reason:
    with pytest.raises(Refused) as caught:
        Sample.decode(data, **limits)
    assert isinstance(caught.value, CodecError)
    return caught.value.reason


@pytest.mark.slow
@given(SAMPLES)
def test_round_trip(message: Sample) -> None:
    assert Sample.decode(message.encode()) == message


@given(st.binary(max_size=80))
def test_any_bytes_are_one_message_or_refused(data: bytes) -> None:
    try:
        message = Sample.decode(data)
    except Refused:
        return
    assert message.encode() == data


@pytest.mark.slow
@given(SAMPLES, st.data())
def test_a_changed_byte_never_gives_the_same_message(message: Sample, data: st.DataObject) -> None:
    encoded = bytearray(message.encode())
    encoded[data.draw(st.integers(0, len(encoded) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(Refused):
        assert Sample.decode(bytes(encoded)) != message


@pytest.mark.slow
@given(SAMPLES, st.data())
def test_what_is_cut_off_is_truncated(message: Sample, data: st.DataObject) -> None:
    encoded = message.encode()
    cut = data.draw(st.integers(0, len(encoded) - 1))
    assert reason(encoded[:cut]) is Reason.TRUNCATED


@pytest.mark.slow
@given(
    st.recursive(
        st.integers() | st.binary(max_size=5) | st.text(max_size=5) | st.floats(),
        lambda s: st.lists(s, max_size=4) | st.dictionaries(st.text(max_size=3), s, max_size=4),
        max_leaves=20,
    )
)
def test_foreign_values_are_refused_by_reason_alone(value: object) -> None:
    try:
        data = msgpack.packb(value)
    except OverflowError:
        return
    with contextlib.suppress(Refused):
        unpack(data)
    with pytest.raises(Refused):
        Sample.decode(data)


def fields(**changes: object) -> dict[str, object]:
    found = plain(GOOD)
    assert isinstance(found, dict)
    return {**found, **changes}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xc4" + bytes([255]) + bytes(255), Reason.MALFORMED),
        (pack([1]), Reason.MALFORMED),
        (b"", Reason.TRUNCATED),
        (b"\xdf\x00\x00", Reason.TRUNCATED),
        (GOOD.encode() + b"\x00", Reason.MALFORMED),
        (b"\xc1", Reason.MALFORMED),
        (pack(fields(extra=1)), Reason.UNKNOWN_FIELD),
        (pack({k: v for k, v in fields().items() if k != "flag"}), Reason.MISSING_FIELD),
        (pack(fields(number="5")), Reason.BAD_FIELD),
        (pack(fields(number=True)), Reason.BAD_FIELD),
        (pack(fields(number=(1 << 63))), Reason.BAD_FIELD),
        (pack(fields(flag=1)), Reason.BAD_FIELD),
        (pack(fields(colour="green")), Reason.BAD_FIELD),
        (pack(fields(name="Not A Slug")), Reason.BAD_FIELD),
        (pack(fields(name="a\n")), Reason.BAD_FIELD),
        (pack(fields(parts=[{"number": 1, "data": "text"}])), Reason.BAD_FIELD),
        (pack(fields(parts=[{"number": 1, "data": b"", "more": 1}])), Reason.UNKNOWN_FIELD),
        (pack(dict(reversed(fields().items()))), Reason.NOT_CANONICAL),
        # 5 as uint8, as uint64, as int8
        (GOOD.encode().replace(b"number\x05", b"number\xcc\x05"), Reason.NOT_CANONICAL),
        (GOOD.encode().replace(b"number\x05", b"number\xcf" + bytes(7) + b"\x05"), Reason.NOT_CANONICAL),
        (GOOD.encode().replace(b"number\x05", b"number\xd0\x05"), Reason.NOT_CANONICAL),
        # a short string with a long header
        (GOOD.encode().replace(b"\xa1a", b"\xd9\x01a"), Reason.NOT_CANONICAL),
        (b"\x82\xa1a\x01\xa1a\x01", Reason.DUPLICATE_KEY),
        (b"\x81\x01\x01", Reason.MALFORMED),
        (b"\x81\xa1\xff\x01", Reason.MALFORMED),
        (msgpack.packb({"number": 1.0}), Reason.MALFORMED),
        (msgpack.packb({"number": msgpack.ExtType(1, b"x")}), Reason.MALFORMED),
        (msgpack.packb({"number": msgpack.Timestamp(1, 1)}), Reason.MALFORMED),
        (b"\x91" * (MAX_DEPTH + 2) + b"\x00", Reason.TOO_DEEP),
        (b"\x91" * 60_000, Reason.TOO_DEEP),
        (b"\x9f" * 60_000, Reason.TOO_DEEP),
        (b"\xdd\xff\xff\xff\xff", Reason.TOO_MANY),
        (b"\xdc" + (2 * MAX_ITEMS + 1).to_bytes(2, "big") + bytes(2 * MAX_ITEMS + 1), Reason.TOO_MANY),
        (b"\xdf\xff\xff\xff\xff", Reason.TOO_MANY),
        (bytes(MAX_CONTROL_BYTES + 1), Reason.OVERSIZED),
    ],
)
def test_every_refusal_has_its_reason(data: bytes, expected: Reason) -> None:
    assert reason(data) is expected


def test_a_lower_limit_is_kept() -> None:
    assert reason(GOOD.encode(), limit=10) is Reason.OVERSIZED


def test_what_cannot_stand_in_a_message_is_not_encoded() -> None:
    for value in (1.0, [1], {1}, object()):
        with pytest.raises(CodecError):
            plain(value)


def test_messages_do_not_change() -> None:
    with pytest.raises(Exception, match="frozen"):
        GOOD.number = 6  # type: ignore[misc]


def test_the_registry_is_closed() -> None:
    registry = Registry("test", (Sample, Newer))
    assert registry.find("sample", 1) is Sample
    assert registry.find("sample", 2) is Newer
    assert list(registry) == [Sample, Newer]
    for kind, version, expected in (("sample", 3, Reason.UNKNOWN_VERSION), ("other", 1, Reason.UNKNOWN_TYPE)):
        with pytest.raises(Refused) as caught:
            registry.find(kind, version)
        assert caught.value.reason is expected
    with pytest.raises(CodecError):
        Registry("test", (Sample, Sample))
