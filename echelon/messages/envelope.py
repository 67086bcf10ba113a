"""Signatures around messages: our own envelope inside a boundary, DSSE on the exchange.

Boundary plane: every record's value is an `Envelope`, signed by its sender over (run, topic, window, sender,
type, body).
Exchange plane: every manifest is a DSSE envelope (https://github.com/secure-systems-lab/dsse, protocol v1.0) with
exactly one signature and in exactly one JSON encoding, so that other tools can check it and nobody can vary it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, ClassVar, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field

from echelon.messages.wire import (
    MAX_CONTROL_BYTES,
    U16,
    U63,
    Id16,
    Message,
    Reason,
    Refused,
    Signature,
    Slug,
    pack,
)

BOUNDARY_CONTEXT = b"echelon boundary record v1\x00"
EXCHANGE_TYPE = "application/vnd.echelon.{kind}.v{version}+msgpack"
ENVELOPE_OVERHEAD = 1024
"""Bytes that an envelope may add to its body."""
MAX_DSSE_BYTES = 24 * 1024
"""Largest DSSE envelope around a manifest of at most `MAX_HEADS_BYTES` (base64 adds a third)."""


SMALL_ORDER = frozenset(
    bytes.fromhex(y)
    for y in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
"""The y coordinates (little-endian, without the sign of x) of the eight points of edwards25519 whose order divides 8,
and the encodings of 0 and 1 that are not reduced. Under such a public key anybody makes signatures in a few tries."""


class Signer:
    """An Ed25519 key pair (RFC 8032) that signs; the public half is `public` (32 bytes)."""

    def __init__(self, private: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(private)
        self.public = self._key.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        """A 64-byte signature; the same message always gets the same one."""
        return self._key.sign(message)


def verify_signature(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` (64 bytes) over `message` is that of the 32-byte public key.

    Args:
        public: an Ed25519 public key; one that is malformed, or of small order, verifies nothing.
        signature: 64 bytes.
        message: the signed bytes.
    """
    if len(public) != 32 or public[:31] + bytes([public[31] & 0x7F]) in SMALL_ORDER:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


class Envelope(Message):
    """What stands in the value of every record of a boundary topic."""

    kind: ClassVar[str] = "envelope"
    type: Annotated[str, Field(max_length=32)]
    type_version: U16
    run: Id16
    window: U63
    sender: Slug
    body: Annotated[bytes, Field(max_length=MAX_CONTROL_BYTES)]
    signature: Signature

    @staticmethod
    def signed_bytes(
        *, run: bytes, topic: str, window: int, sender: str, type: str, type_version: int, body: bytes
    ) -> bytes:
        """The bytes that a sender signs.

        Args:
            run: id of the run.
            topic: where the message stands. A copy on another topic does not verify.
            window: number of the window, 0 where it belongs to none.
            sender: name of the actor.
            type: kind of the message.
            type_version: revision of that kind.
            body: the encoded message.
        """
        return BOUNDARY_CONTEXT + pack([run, topic, window, sender, type, type_version, body])

    @classmethod
    def seal(
        cls, signer: Signer, message: Message, *, run: bytes, topic: str, window: int, sender: str
    ) -> Self:
        """Sign a message for one topic.

        Args:
            signer: the sender's key.
            message: what is said.
            run: id of the run.
            topic: where it will stand.
            window: number of the window, 0 where it belongs to none.
            sender: name of the actor, as in the roster.
        """
        body = message.encode()
        signed = cls.signed_bytes(
            run=run,
            topic=topic,
            window=window,
            sender=sender,
            type=message.kind,
            type_version=message.revision,
            body=body,
        )
        return cls(
            type=message.kind,
            type_version=message.revision,
            run=run,
            window=window,
            sender=sender,
            body=body,
            signature=signer.sign(signed),
        )

    @classmethod
    def open(cls, data: bytes) -> Self:
        """Read an envelope; its signature is not checked yet.

        Raises:
            Refused: not an envelope in its canonical encoding.
        """
        return cls.decode(data, limit=MAX_CONTROL_BYTES + ENVELOPE_OVERHEAD)

    def verified(self, public: bytes, topic: str) -> bool:
        """Whether the sender's key signed exactly this on exactly this topic."""
        signed = self.signed_bytes(
            run=self.run,
            topic=topic,
            window=self.window,
            sender=self.sender,
            type=self.type,
            type_version=self.type_version,
            body=self.body,
        )
        return verify_signature(public, self.signature, signed)


def key_id(public: bytes) -> str:
    """The name of a key in a DSSE envelope: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public).hexdigest()[:16]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """DSSE's PAE: what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True, slots=True)
class Dsse:
    """A DSSE envelope with one signature."""

    payload_type: str
    payload: bytes
    keyid: str
    signature: bytes

    @classmethod
    def seal(cls, signer: Signer, payload_type: str, payload: bytes) -> Dsse:
        """Sign a payload.

        Args:
            signer: key; its id stands in the envelope.
            payload_type: media type of the payload; it is signed, too.
            payload: the bytes.
        """
        signature = signer.sign(pre_authentication_encoding(payload_type, payload))
        return cls(payload_type, payload, key_id(signer.public), signature)

    @classmethod
    def seal_message(cls, signer: Signer, message: Message) -> Dsse:
        """Sign a message of the exchange plane."""
        payload_type = EXCHANGE_TYPE.format(kind=message.kind, version=message.revision)
        payload = message.encode()
        if len(payload) > message.largest:
            raise Refused(
                Reason.OVERSIZED,
                f"{message.kind} of {len(payload)} bytes, at most {message.largest} may cross",
            )
        return cls.seal(signer, payload_type, payload)

    def verified(self, public: bytes) -> bool:
        """Whether that key, and no other, signed it."""
        signed = pre_authentication_encoding(self.payload_type, self.payload)
        return self.keyid == key_id(public) and verify_signature(public, self.signature, signed)

    def encode(self) -> bytes:
        """The one JSON encoding: keys in this order, no white space, standard base64."""
        return json.dumps(
            {
                "payloadType": self.payload_type,
                "payload": base64.b64encode(self.payload).decode(),
                "signatures": [{"keyid": self.keyid, "sig": base64.b64encode(self.signature).decode()}],
            },
            separators=(",", ":"),
            ensure_ascii=True,
        ).encode()

    @classmethod
    def decode(cls, data: bytes, *, limit: int = MAX_DSSE_BYTES) -> Dsse:
        """Read an envelope that is byte for byte what `encode` writes.

        Raises:
            Refused: anything else.
        """
        if len(data) > limit:
            raise Refused(Reason.OVERSIZED, f"an envelope of {len(data)} bytes, at most {limit} are taken")
        try:
            fields = json.loads(data)
            (signature,) = fields["signatures"]
            envelope = cls(
                payload_type=str(fields["payloadType"]),
                payload=base64.b64decode(fields["payload"], validate=True),
                keyid=str(signature["keyid"]),
                signature=base64.b64decode(signature["sig"], validate=True),
            )
        except (ValueError, KeyError, TypeError, binascii.Error, RecursionError) as error:
            raise Refused(
                Reason.MALFORMED, f"not a DSSE envelope with one signature: {type(error).__name__}"
            ) from None
        try:
            # Half of a surrogate pair survives JSON, and cannot be signed.
            (envelope.payload_type + envelope.keyid).encode()
        except UnicodeEncodeError:
            raise Refused(
                Reason.BAD_FIELD, "the payload type or key id of a DSSE envelope is no Unicode text"
            ) from None
        if envelope.encode() != data:
            raise Refused(Reason.NOT_CANONICAL, "a DSSE envelope in another encoding than the canonical one")
        return envelope
