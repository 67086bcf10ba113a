"""Signed notes and checkpoints as C2SP defines them (c2sp.org/signed-note and c2sp.org/tlog-checkpoint).

A checkpoint's text is three lines: origin, size, root in base64. A signature line is an em dash, the key's
name, and base64 of a 4-byte key hash with the Ed25519 signature. Parsing is strict: one text has one
encoding.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from echelon.errors import CodecError
from echelon.messages.envelope import Signer, verify_signature

MAX_NOTE_BYTES = 16 * 1024
MAX_SIGNATURES = 16
_ED25519 = 1
_NAME = re.compile(r"[^\s+\u0000-\u001f\u007f]{1,255}")
_SIGNATURE = re.compile(r"\u2014 (\S+) ([A-Za-z0-9+/]+={0,2})")


def origin(run: bytes, topic: str) -> str:
    """The origin line, and key name, of a topic's log."""
    return f"echelon/{run.hex()}/{topic}"


def note_key_hash(name: str, public: bytes) -> bytes:
    """The 4 bytes that tell keys of one name apart: SHA-256(name || 0x0A || 0x01 || key)[:4]."""
    return hashlib.sha256(name.encode() + b"\n" + bytes([_ED25519]) + public).digest()[:4]


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CodecError(
            f"{name[:64]!r} cannot name a key: it must be without spaces, '+' and control characters"
        )
    return name


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: key name, 4-byte key hash, 64-byte Ed25519 signature."""

    name: str
    key_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text that ends with a newline, and its signatures."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def sign(self, name: str, signer: Signer) -> SignedNote:
        """The note with one more signature."""
        key_hash = note_key_hash(_check_name(name), signer.public)
        added = NoteSignature(name, key_hash, signer.sign(self.text.encode()))
        return SignedNote(self.text, (*self.signatures, added))

    def verified(self, name: str, public: bytes) -> bool:
        """Whether that key signed the text."""
        key_hash = note_key_hash(name, public)
        return any(
            found.name == name
            and found.key_hash == key_hash
            and verify_signature(public, found.signature, self.text.encode())
            for found in self.signatures
        )

    def encode(self) -> bytes:
        """The note's bytes."""
        lines = [
            f"\u2014 {found.name} {base64.b64encode(found.key_hash + found.signature).decode()}\n"
            for found in self.signatures
        ]
        return (self.text + "\n" + "".join(lines)).encode()

    @classmethod
    def decode(cls, data: bytes) -> SignedNote:
        """Read a note; no signature is checked yet.

        Raises:
            CodecError: not UTF-8, control characters, no signature, or another encoding than `encode` writes.
        """
        if len(data) > MAX_NOTE_BYTES:
            raise CodecError(f"a note of {len(data)} bytes; at most {MAX_NOTE_BYTES} are read")
        try:
            whole = data.decode()
        except UnicodeDecodeError:
            raise CodecError("a note is UTF-8 text") from None
        if any((ord(c) < 0x20 and c != "\n") or ord(c) == 0x7F for c in whole):
            raise CodecError("a note has no control characters but newlines")
        text, blank, rest = whole.rpartition("\n\n")
        if not blank or not rest.endswith("\n"):
            raise CodecError("a note is a text, an empty line, and signature lines")
        lines = rest[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise CodecError(f"a note with {len(lines)} signatures; at most {MAX_SIGNATURES} are read")
        found = cls(text + "\n", tuple(_signature(line) for line in lines))
        if found.encode() != data:
            raise CodecError("a note in another encoding than the canonical one")
        return found


def _signature(line: str) -> NoteSignature:
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        raise CodecError(f"{line[:80]!r} is not a signature line")
    try:
        raw = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        raise CodecError("a signature line is not base64") from None
    if len(raw) != 4 + 64:
        raise CodecError(
            f"a signature line with {len(raw)} bytes; a key hash and an Ed25519 signature have 68"
        )
    return NoteSignature(_check_name(match[1]), raw[:4], raw[4:])


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log: who keeps it, its size in leaves, its RFC 6962 root (32 bytes)."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """The three lines."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"

    def sign(self, name: str, signer: Signer) -> SignedNote:
        """A note with one signature."""
        _check_name(self.origin)
        return SignedNote(self.text(), ()).sign(name, signer)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note's text.

        Raises:
            CodecError: not three lines, a size with leading zeros, or a root that is no SHA-256. Extension
                lines are refused: none is defined for these logs.
        """
        lines = text.split("\n")
        if len(lines) != 4 or lines[3]:
            raise CodecError("a checkpoint has three lines: origin, size, root")
        name, size, root = lines[:3]
        if not re.fullmatch(r"0|[1-9][0-9]{0,18}", size, re.ASCII):
            raise CodecError(f"{size[:40]!r} is not the size of a log")
        try:
            raw = base64.b64decode(root, validate=True)
        except (binascii.Error, ValueError):
            raise CodecError("a checkpoint's root is base64") from None
        found = cls(_check_name(name), int(size), raw)
        if len(raw) != 32 or found.text() != text:
            raise CodecError("a checkpoint in another encoding than the canonical one")
        return found
