from __future__ import annotations

import base64
import contextlib
import hashlib
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from echelon.audit.note import (
    Checkpoint,
    NoteSignature,
    SignedNote,
    cosigner_key_hash,
    cosigner_vkey,
    note_key_hash,
    origin,
    parse_cosigner_vkey,
)
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
        b"x" * 70_000,
        b"text\n\n" + NOTE.encode().split(b"\n\n")[1] * 129,
    ],
)
def test_malformed_notes_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError):
        SignedNote.decode(data)


# ---- cosignatures ----------------------------------------

WITNESS = Signer(b"\x07" * 32)
WITNESS_NAME = "witness.example/w1"


def test_a_cosignature_is_made_as_the_specification_says() -> None:
    """Put together here by hand from c2sp.org/tlog-cosignature, without the code under test."""
    key = Ed25519PrivateKey.from_private_bytes(b"\x07" * 32)
    public = key.public_key().public_bytes_raw()
    root = base64.b64encode(bytes([9]) * 32).decode()
    body = f"{NAME}\n7\n{root}\n"
    time = 1679315147
    signature = key.sign(b"cosignature/v1\ntime 1679315147\n" + body.encode())
    key_id = hashlib.sha256(WITNESS_NAME.encode() + b"\x0a\x04" + public).digest()[:4]
    blob = base64.b64encode(key_id + struct.pack(">Q", time) + signature).decode()
    by_hand = NOTE.encode() + f"\u2014 {WITNESS_NAME} {blob}\n".encode()
    assert len(base64.b64decode(blob)) == 76

    assert NOTE.cosign(WITNESS_NAME, WITNESS, time).encode() == by_hand
    read = SignedNote.decode(by_hand)
    assert read.cosigned(WITNESS_NAME, WITNESS.public) == time
    assert read.verified(NAME, SIGNER.public)
    assert read.encode() == by_hand


def test_an_example_with_a_cosignature_line_is_read_and_unknown_lines_are_ignored() -> None:
    unknown = [
        NoteSignature("example.com/pq", b"\x01\x02\x03\x04", bytes(8 + 2420)),
        NoteSignature(NAME, b"\x05\x06\x07\x08", bytes(64)),
        NoteSignature("witness.example/w2", b"\x01\x01\x01\x01", bytes(1)),
        NoteSignature("witness.example/w3", cosigner_key_hash("witness.example/w3", bytes(32)), bytes(72)),
    ]
    note = SignedNote(NOTE.text, (*unknown, *NOTE.signatures)).cosign(WITNESS_NAME, WITNESS, 5)
    read = SignedNote.decode(note.encode())
    assert read == note
    assert read.verified(NAME, SIGNER.public)
    assert read.cosigned(WITNESS_NAME, WITNESS.public) == 5
    assert Checkpoint.parse(read.text).size == 7


def test_sixteen_signatures_of_the_longest_kind_are_read() -> None:
    lines = tuple(NoteSignature(f"example.com/pq{n}", bytes(4), bytes(8 + 2420)) for n in range(16))
    note = SignedNote(NOTE.text, (*NOTE.signatures, *lines[:-1]))
    assert SignedNote.decode(note.encode()).verified(NAME, SIGNER.public)


def test_a_bad_line_of_a_known_key_rejects_the_note() -> None:
    good = NOTE.signatures[0]
    bad = NoteSignature(good.name, good.key_hash, bytes(64))
    assert not SignedNote(NOTE.text, (good, bad)).verified(NAME, SIGNER.public)
    cosigned = NOTE.cosign(WITNESS_NAME, WITNESS, 5)
    line = cosigned.signatures[-1]
    for spoilt in (bytes(72), line.signature[:-1], line.signature + b"x", b"\xff" + line.signature[1:]):
        more = SignedNote(NOTE.text, (*cosigned.signatures, NoteSignature(line.name, line.key_hash, spoilt)))
        assert cosigned.cosigned(WITNESS_NAME, WITNESS.public) == 5
        assert more.cosigned(WITNESS_NAME, WITNESS.public) is None


def test_time_text_name_and_kind_are_all_bound() -> None:
    cosigned = NOTE.cosign(WITNESS_NAME, WITNESS, 5)
    line = cosigned.signatures[-1]
    later = struct.pack(">Q", 6) + line.signature[8:]
    assert SignedNote(NOTE.text, (NoteSignature(line.name, line.key_hash, later),)).cosigned(
        WITNESS_NAME, WITNESS.public
    ) is None  # fmt: skip
    other = Checkpoint(NAME, 8, b"\x09" * 32).text()
    assert SignedNote(other, cosigned.signatures).cosigned(WITNESS_NAME, WITNESS.public) is None
    assert cosigned.cosigned("witness.example/w9", WITNESS.public) is None
    assert cosigned.cosigned(WITNESS_NAME, SIGNER.public) is None
    assert not cosigned.verified(WITNESS_NAME, WITNESS.public), "a cosignature is no log's signature"
    assert NOTE.cosigned(NAME, SIGNER.public) is None, "nor the other way round"


def test_of_several_cosignatures_the_newest_counts() -> None:
    note = NOTE.cosign(WITNESS_NAME, WITNESS, 9).cosign(WITNESS_NAME, WITNESS, 4)
    assert note.cosigned(WITNESS_NAME, WITNESS.public) == 9


@pytest.mark.parametrize("time", [-1, 1 << 63])
def test_times_that_the_format_cannot_carry_are_refused(time: int) -> None:
    with pytest.raises(CodecError, match="no time of a cosignature"):
        NOTE.cosign(WITNESS_NAME, WITNESS, time)


def test_a_witness_key_is_written_as_other_tools_take_it() -> None:
    line = cosigner_vkey(WITNESS_NAME, WITNESS.public)
    name, key_id, key = line.split("+", 2)
    assert (name, bytes.fromhex(key_id)) == (WITNESS_NAME, cosigner_key_hash(WITNESS_NAME, WITNESS.public))
    assert base64.b64decode(key) == b"\x04" + WITNESS.public
    assert parse_cosigner_vkey(line) == (WITNESS_NAME, WITNESS.public)
    of_a_log = base64.b64encode(b"\x01" + WITNESS.public).decode()
    front = f"{name}+{key_id}"
    for wrong in (
        *("", "w", "w+00", f"w+00000000+{key}"),
        *(f"{front}+{of_a_log}", f"{front}+*", f"a b+{key_id}+{key}"),
    ):
        with pytest.raises(CodecError):
            parse_cosigner_vkey(wrong)
