from __future__ import annotations

import base64
import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.note import Checkpoint, SignedNote, note_key_hash, origin
from echelon.errors import CodecError
from echelon.messages.envelope import Signer, verify_signature

SIGNER = Signer(b"\x05" * 32)
NAME = origin(bytes(16), "global")
NOTE = Checkpoint(NAME, 7, b"\x09" * 32).sign(NAME, SIGNER)


def test_the_bytes_are_those_of_the_specification() -> None:
    text, _, line = NOTE.encode().decode().partition("\n\n")
    assert text == f"{NAME}\n7\n{base64.b64encode(bytes([9]) * 32).decode()}"
    dash, name, blob = line.removesuffix("\n").split(" ")
    raw = base64.b64decode(blob)
    assert (dash, name, len(raw)) == ("\u2014", NAME, 68)
    assert raw[:4] == hashlib.sha256(NAME.encode() + b"\n\x01" + SIGNER.public).digest()[:4]
    assert raw[:4] == note_key_hash(NAME, SIGNER.public)
    assert verify_signature(SIGNER.public, raw[4:], (text + "\n").encode())


def test_the_public_example_of_the_format_is_read() -> None:
    # The note and key that Go's package golang.org/x/mod/sumdb/note has as its example.
    key = base64.b64decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW")
    data = (
        "If you think cryptography is the answer to your problem,\n"
        "then you don't know what your problem is.\n\n"
        "\u2014 PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfq"
        "dngotpRZb6KE6RyyBwJnAM=\n"
    ).encode()
    note = SignedNote.decode(data)
    assert note.encode() == data
    assert note_key_hash("PeterNeumann", key[1:]).hex() == "c74f20a3"
    assert note.verified("PeterNeumann", key[1:])


def test_two_signatures_and_only_those() -> None:
    other = Signer(b"\x06" * 32)
    note = SignedNote.decode(NOTE.sign("witness", other).encode())
    assert note.verified(NAME, SIGNER.public)
    assert note.verified("witness", other.public)
    assert not note.verified("witness", SIGNER.public)
    assert not note.verified(NAME, other.public)
    assert Checkpoint.parse(note.text) == Checkpoint(NAME, 7, b"\x09" * 32)


@given(st.integers(0, len(NOTE.encode()) - 1), st.integers(1, 255))
def test_no_byte_can_change(place: int, mask: int) -> None:
    data = bytearray(NOTE.encode())
    data[place] ^= mask
    try:
        note = SignedNote.decode(bytes(data))
    except CodecError:
        return
    assert not note.verified(NAME, SIGNER.public)


@given(st.binary(max_size=200))
def test_anything_else_is_refused_in_one_way(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        assert SignedNote.decode(data).encode() == data


@pytest.mark.parametrize(
    "text",
    [
        f"{NAME}\n07\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n-1\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n7\n{base64.b64encode(bytes(31)).decode()}\n",
        f"{NAME}\n7\n{base64.b64encode(bytes(32)).decode()}\nextension\n",
        f"{NAME}\n7\n*\n",
        f"a b\n7\n{base64.b64encode(bytes(32)).decode()}\n",
        f"{NAME}\n7\n",
        f"{NAME}\n\u0667\n{base64.b64encode(bytes(32)).decode()}\n",
    ],
)
def test_checkpoints_have_one_form(text: str) -> None:
    with pytest.raises(CodecError):
        Checkpoint.parse(text)


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\nb"])
def test_names_that_would_break_a_line_are_refused(name: str) -> None:
    with pytest.raises(CodecError):
        SignedNote("text\n", ()).sign(name, SIGNER)


@pytest.mark.parametrize(
    "data",
    [
        b"text\n",
        b"text\n\nno signature\n",
        b"text\n\n\xe2\x80\x94 name AAAA\n",
        b"te\x01xt\n\n\xe2\x80\x94 name AAAA\n",
        b"\xff\n\n",
        b"x" * 20_000,
        b"text\n\n" + NOTE.encode().split(b"\n\n")[1] * 17,
    ],
)
def test_malformed_notes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        SignedNote.decode(data)
