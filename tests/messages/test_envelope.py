from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Annotated, ClassVar

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from echelon.messages.envelope import (
    MAX_DSSE_BYTES,
    SMALL_ORDER,
    Dsse,
    Envelope,
    Signer,
    key_id,
    pre_authentication_encoding,
    verify_signature,
)
from echelon.messages.wire import U63, Message, Reason, Refused

ALICE, BOB = Signer(b"\x01" * 32), Signer(b"\x02" * 32)
RUN = bytes(16)


class Hello(Message):
    kind: ClassVar[str] = "hello"
    number: U63


class Large(Message):
    kind: ClassVar[str] = "large"
    data: Annotated[bytes, Field()]


SEALED = Envelope.seal(ALICE, Hello(number=3), run=RUN, topic="checkin", window=4, sender="d1")


def test_rfc_8032_test_1() -> None:
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    signer = Signer(private)
    assert signer.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert signer.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert verify_signature(signer.public, signer.sign(b"x"), b"x")
    assert not verify_signature(signer.public, signer.sign(b"x"), b"y")
    assert not verify_signature(b"\xff" * 31, signer.sign(b"x"), b"x")


P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493


def added(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    """The sum of two points of edwards25519 (RFC 8032, section 5.1.4, affine)."""
    d = -121665 * pow(121666, -1, P) % P
    (x1, y1), (x2, y2) = one, other
    k = d * x1 * x2 * y1 * y2 % P
    x = (x1 * y2 + x2 * y1) * pow(1 + k, -1, P) % P
    return x, (y1 * y2 + x1 * x2) * pow(1 - k, -1, P) % P


def times(number: int, point: tuple[int, int]) -> tuple[int, int]:
    found = (0, 1)
    while number:
        if number & 1:
            found = added(found, point)
        point, number = added(point, point), number >> 1
    return found


def small_points() -> set[tuple[int, int]]:
    """All eight: multiples of a point of order 8, which is any point times the order of the large subgroup."""
    d = -121665 * pow(121666, -1, P) % P
    for y in range(2, 100):
        x2 = (y * y - 1) * pow(d * y * y + 1, -1, P) % P
        for x in (root := pow(x2, (P + 3) // 8, P), root * pow(2, (P - 1) // 4, P) % P):
            if x * x % P == x2 and len(found := {times(n, times(ORDER, (x, y))) for n in range(8)}) == 8:
                return found
    raise AssertionError("no point of order 8")


def test_nobody_signs_under_a_key_of_small_order() -> None:
    """RFC 8032 verification alone accepts R = identity, S = 0 under such a key for one message in eight or more."""
    encodings = {(y | (x & 1) << 255).to_bytes(32, "little") for x, y in small_points()}
    assert len(encodings) == 8
    assert {one[:31] + bytes([one[31] & 0x7F]) for one in encodings} == {
        y for y in SMALL_ORDER if int.from_bytes(y, "little") < P
    }
    unreduced = {(y + P).to_bytes(32, "little") for y in (0, 1)}
    assert unreduced < SMALL_ORDER
    forged = [point + bytes(32) for point in encodings]
    taken = 0
    for public in encodings:
        key = Ed25519PublicKey.from_public_bytes(public)
        for number in range(16):
            message = b"%d" % number
            for signature in forged:
                with suppress(InvalidSignature):
                    key.verify(signature, message)
                    taken += 1
                assert not verify_signature(public, signature, message)
    assert taken > 0, "this library takes them by itself: nothing has to be refused any more"


def test_an_envelope_says_who_where_and_what() -> None:
    opened = Envelope.open(SEALED.encode())
    assert opened == SEALED
    assert Hello.decode(opened.body) == Hello(number=3)
    assert opened.verified(ALICE.public, "checkin")
    assert not opened.verified(BOB.public, "checkin")
    assert not opened.verified(ALICE.public, "handshake"), "a record moved to another topic"


@pytest.mark.parametrize(
    "changes",
    [
        {"run": b"\1" * 16},
        {"window": 5},
        {"sender": "d2"},
        {"type": "other"},
        {"type_version": 2},
        {"body": Hello(number=4).encode()},
        {"signature": bytes(64)},
    ],
)
def test_every_field_is_signed(changes: dict[str, object]) -> None:
    assert not SEALED.model_copy(update=changes).verified(ALICE.public, "checkin")


@given(st.integers(0, len(SEALED.encode()) - 1), st.integers(1, 255))
def test_a_changed_envelope_is_refused_or_not_signed(place: int, mask: int) -> None:
    data = bytearray(SEALED.encode())
    data[place] ^= mask
    try:
        opened = Envelope.open(bytes(data))
    except Refused:
        return
    assert not opened.verified(ALICE.public, "checkin")


def test_pae_is_that_of_the_specification() -> None:
    # protocol.md of DSSE, "Test vectors"
    assert (
        pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )
    assert pre_authentication_encoding("\u00e9", b"") == b"DSSEv1 2 \xc3\xa9 0 "


@pytest.mark.slow
@given(st.binary(max_size=200), st.text(min_size=1, max_size=20))
def test_dsse_round_trip(payload: bytes, payload_type: str) -> None:
    sealed = Dsse.seal(ALICE, payload_type, payload)
    opened = Dsse.decode(sealed.encode())
    assert opened == sealed
    assert opened.verified(ALICE.public)
    assert not opened.verified(BOB.public)
    assert not Dsse(payload_type, payload, key_id(BOB.public), sealed.signature).verified(ALICE.public)
    assert not Dsse(payload_type + "x", payload, sealed.keyid, sealed.signature).verified(ALICE.public)


def test_dsse_is_json_that_other_tools_read() -> None:
    sealed = Dsse.seal_message(ALICE, Hello(number=1))
    document = json.loads(sealed.encode())
    assert document["payloadType"] == "application/vnd.echelon.hello.v1+msgpack"
    assert base64.b64decode(document["payload"]) == Hello(number=1).encode()
    assert [s["keyid"] for s in document["signatures"]] == [key_id(ALICE.public)]


GOOD = Dsse.seal(ALICE, "t", b"payload").encode()


@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_a_changed_dsse_is_refused_or_not_signed(place: int, mask: int) -> None:
    data = bytearray(GOOD)
    data[place] ^= mask
    try:
        opened = Dsse.decode(bytes(data))
    except Refused:
        return
    assert not opened.verified(ALICE.public)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{" + b" " * MAX_DSSE_BYTES, Reason.OVERSIZED),
        (b"[]", Reason.MALFORMED),
        (b"{}", Reason.MALFORMED),
        (b"\xff", Reason.MALFORMED),
        (b"[" * 10_000, Reason.MALFORMED),
        (GOOD.replace(b'"payload":', b'"payload" :'), Reason.NOT_CANONICAL),
        (GOOD[:-1] + b',"more":1}', Reason.NOT_CANONICAL),
        (GOOD.replace(b"cGF5bG9hZA==", b"cGF5bG9hZB=="), Reason.NOT_CANONICAL),
        (GOOD.replace(b"cGF5bG9hZA==", b"cGF5bG9hZA"), Reason.MALFORMED),
        (GOOD.replace(b'"t"', b'"\\u0074"'), Reason.NOT_CANONICAL),
    ],
)
def test_other_encodings_are_refused(data: bytes, expected: Reason) -> None:
    with pytest.raises(Refused) as caught:
        Dsse.decode(data)
    assert caught.value.reason is expected


def test_two_signatures_are_refused() -> None:
    document = json.loads(GOOD)
    document["signatures"] *= 2
    with pytest.raises(Refused):
        Dsse.decode(json.dumps(document, separators=(",", ":")).encode())


def test_nothing_too_large_is_signed() -> None:
    with pytest.raises(Refused) as caught:
        Dsse.seal_message(ALICE, Large(data=bytes(8192)))
    assert caught.value.reason is Reason.OVERSIZED
