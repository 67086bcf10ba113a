"""Signed notes, checkpoints and cosignatures as C2SP defines them (c2sp.org/signed-note, c2sp.org/tlog-checkpoint,
c2sp.org/tlog-cosignature).

A checkpoint's text is three lines: origin, size, root in base64. A signature line is an em dash, the key's
name, and base64 of a 4-byte key ID with the signature: of a log 64 bytes of Ed25519 over the text, of a witness a
time and 64 bytes of Ed25519 over that time and the text (`cosignature/v1`). Lines of keys and kinds that are not
known here are read and ignored. Parsing is strict all the same: one text has one encoding.

Kept by hand because a verdict rests on it: what has a second encoding must be refused, and the format is small.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from echelon.errors import CodecError
from echelon.messages.envelope import Signer, verify_signature

MAX_NOTE_BYTES = 64 * 1024
"""Largest note: room for 16 signatures (as many as every reader of the format takes) of the longest kinds in use."""
MAX_SIGNATURES = 128
"""Most signature lines: a log and its witnesses, of which a run may have 64 gates and more."""
MAX_TIME = (1 << 63) - 1
"""Latest time of a cosignature, in seconds since the epoch."""
_ED25519, _COSIGNATURE = 1, 4
"""Signature types of C2SP: Ed25519 over the text; cosignature/v1."""
_NAME = re.compile(r"[^\s+\u0000-\u001f\ud800-\udfff]{1,255}")
_SIGNATURE = re.compile(r"\u2014 (\S+) ([A-Za-z0-9+/]+={0,2})")


def origin(run: bytes, topic: str) -> str:
    """The origin line, and key name, of a topic's log."""
    return f"echelon/{run.hex()}/{topic}"


def note_key_hash(name: str, public: bytes) -> bytes:
    """The key ID of a log's Ed25519 key: SHA-256(name || 0x0A || 0x01 || key)[:4]."""
    return _key_id(name, _ED25519, public)


def cosigner_key_hash(name: str, public: bytes) -> bytes:
    """The key ID of a witness's Ed25519 key: SHA-256(name || 0x0A || 0x04 || key)[:4]."""
    return _key_id(name, _COSIGNATURE, public)


def _key_id(name: str, kind: int, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]


def cosigned_message(time: int, text: str) -> bytes:
    """What a witness signs: a header line, the time in seconds since the epoch, and the whole text of the note."""
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def cosigner_vkey(name: str, public: bytes) -> str:
    """A witness's name and key in the one line that C2SP's tools take: name, key ID in hex, base64(0x04 || key)."""
    key = base64.b64encode(bytes([_COSIGNATURE]) + public).decode()
    return f"{_check_name(name)}+{cosigner_key_hash(name, public).hex()}+{key}"


def parse_cosigner_vkey(line: str) -> tuple[str, bytes]:
    """Name and key (32 bytes) of a witness.

    Raises:
        CodecError: not such a line, of another kind of key, or with another key ID than name and key give.
    """
    parts = line.split("+", 2)
    try:
        name, raw = _check_name(parts[0]), base64.b64decode(parts[2], validate=True)
    except (IndexError, ValueError):
        raise CodecError(f"{line[:80]!r} is not NAME+KEYID+KEY, as a witness's key is written") from None
    if len(raw) != 33 or raw[0] != _COSIGNATURE:
        raise CodecError(f"{line[:80]!r} is not the Ed25519 key of a witness (signature type 0x04)")
    if cosigner_vkey(name, raw[1:]) != line:
        raise CodecError(f"{line[:80]!r} has another key ID than its name and key give")
    return name, raw[1:]


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise CodecError(
            f"{name[:64]!r} cannot name a key: it must be Unicode without spaces, '+' and control characters"
        )
    return name


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line: key name, 4-byte key ID, and the signature, whose form the key's kind decides."""

    name: str
    key_hash: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class SignedNote:
    """A text that ends with a newline, and its signatures."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def sign(self, name: str, signer: Signer) -> SignedNote:
        """The note with one more signature, as a log makes it."""
        key_hash = note_key_hash(_check_name(name), signer.public)
        added = NoteSignature(name, key_hash, signer.sign(self.text.encode()))
        return SignedNote(self.text, (*self.signatures, added))

    def cosign(self, name: str, signer: Signer, time: int) -> SignedNote:
        """The note with one more cosignature, as a witness makes it.

        Args:
            name: the witness's key name.
            signer: its key, which may be no log's.
            time: seconds since the epoch.

        Raises:
            CodecError: a time that the format cannot carry, or a name that is none.
        """
        if not 0 <= time <= MAX_TIME:
            raise CodecError(f"{time} is no time of a cosignature: it is 0 to 2^63 - 1 seconds")
        key_hash = cosigner_key_hash(_check_name(name), signer.public)
        signature = time.to_bytes(8, "big") + signer.sign(cosigned_message(time, self.text))
        return SignedNote(self.text, (*self.signatures, NoteSignature(name, key_hash, signature)))

    def verified(self, name: str, public: bytes) -> bool:
        """Whether that key signed the text: it has a line, and each of its lines is good."""
        lines = self._lines(name, note_key_hash(name, public))
        return bool(lines) and all(
            verify_signature(public, line.signature, self.text.encode()) for line in lines
        )

    def cosigned(self, name: str, public: bytes) -> int | None:
        """When that witness cosigned the text, in seconds since the epoch; None if it did not.

        A note with a bad line of a known key shows nothing. Of several good lines the newest counts.
        """
        times = []
        for line in self._lines(name, cosigner_key_hash(name, public)):
            time = int.from_bytes(line.signature[:8], "big")
            if len(line.signature) != 8 + 64 or time > MAX_TIME:
                return None
            if not verify_signature(public, line.signature[8:], cosigned_message(time, self.text)):
                return None
            times.append(time)
        return max(times, default=None)

    def only(self, name: str, key_hash: bytes) -> SignedNote:
        """The note with the lines of one key alone."""
        return SignedNote(self.text, self._lines(name, key_hash))

    def _lines(self, name: str, key_hash: bytes) -> tuple[NoteSignature, ...]:
        return tuple(line for line in self.signatures if (line.name, line.key_hash) == (name, key_hash))

    def encode(self) -> bytes:
        """The note's bytes."""
        lines = [
            f"\u2014 {signature.name} {base64.b64encode(signature.key_hash + signature.signature).decode()}\n"
            for signature in self.signatures
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
        if any(ord(c) < 0x20 and c != "\n" for c in whole):
            raise CodecError("a note has no control characters but newlines")
        text, blank, rest = whole.rpartition("\n\n")
        if not blank or not rest.endswith("\n"):
            raise CodecError("a note is a text, an empty line, and signature lines")
        lines = rest[:-1].split("\n")
        if len(lines) > MAX_SIGNATURES:
            raise CodecError(f"a note with {len(lines)} signatures; at most {MAX_SIGNATURES} are read")
        note = cls(text + "\n", tuple(_signature(line) for line in lines))
        if note.encode() != data:
            raise CodecError("a note in another encoding than the canonical one")
        return note


def _signature(line: str) -> NoteSignature:
    match = _SIGNATURE.fullmatch(line)
    if match is None:
        raise CodecError(f"{line[:80]!r} is not a signature line")
    try:
        raw = base64.b64decode(match[2], validate=True)
    except binascii.Error:
        raise CodecError("a signature line is not base64") from None
    if len(raw) <= 4:
        raise CodecError(
            f"a signature line with {len(raw)} bytes; a key ID alone has 4, and a signature follows"
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
        checkpoint = cls(_check_name(name), int(size), raw)
        if len(raw) != 32 or checkpoint.text() != text:
            raise CodecError("a checkpoint in another encoding than the canonical one")
        return checkpoint
