"""The sealed channel between one device and one edge: keys, numbers, and what is taken of what arrives.

Both sides send a fresh X25519 key in a record that their roster key signs. HKDF-SHA256 (RFC 5869) of the agreed secret,
bound to run, boundary, both names and both keys, gives an AES-128-GCM key for each direction; a frame's number is its
nonce, so none is used twice. The log may show a record again and never out of order: a number that was taken is
dropped, one that skips another ends the channel.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from echelon.errors import ProtocolError
from echelon.messages.exchange import Payload
from echelon.messages.frames import decode_frame, encode_frame
from echelon.messages.split import SplitFrame
from echelon.messages.wire import Message, Reason, Refused, pack
from echelon.secagg.keys import AgreementKey, derive

UP, DOWN = b"up", b"down"
TAG_BYTES = 16


@dataclass(frozen=True, slots=True)
class Parties:
    """Whose channel it is; part of every key."""

    run: bytes
    boundary: str
    device: str
    edge: str


def _key(secret: bytes, binding: bytes, direction: bytes) -> AESGCM:
    return AESGCM(derive(secret, b"split channel " + direction, binding, 16))


@dataclass
class Channel:
    """One side of an open session.

    Args:
        session: its 16 bytes.
        sealing: key of what this side sends.
        opening: key of what it gets.
        context: names this side's direction in transfer ids.
    """

    session: bytes
    sealing: AESGCM
    opening: AESGCM
    context: bytes
    secret: bytes = b""
    """What both sides may derive more keys from, 32 bytes: for encodings and perturbations inside of frames."""
    sent: int = 0
    taken: int = 0
    sent_bytes: int = 0
    taken_bytes: int = 0

    def seal(self, head: Message, tensor: bytes = b"") -> tuple[SplitFrame, bytes]:
        """The next frame: its record, and the payload that goes before it in chunks."""
        number, self.sent = self.sent, self.sent + 1
        sealed = self.sealing.encrypt(_nonce(number), encode_frame(head, tensor), self.session)
        self.sent_bytes += len(sealed)
        described = Payload.of(sealed, b"split %s %d " % (self.context, number) + self.session)
        return SplitFrame(session=self.session, number=number, payload=described), sealed

    def open(self, frame: SplitFrame, payload: bytes) -> tuple[Message, bytes] | None:
        """Head and tensor of a frame; None for one that was taken before.

        Raises:
            ProtocolError: a frame is missing before it: the channel cannot go on.
            Refused: it was not sealed by the other side, or is no frame.
        """
        if frame.number < self.taken:
            return None
        if frame.number > self.taken:
            raise ChannelBroken(f"frame {frame.number} of a session that is at {self.taken}")
        try:
            plain = self.opening.decrypt(_nonce(frame.number), payload, self.session)
        except InvalidTag:
            raise Refused(
                Reason.BAD_FRAME, f"frame {frame.number} was not sealed by the other side of this session"
            ) from None
        self.taken += 1
        self.taken_bytes += len(payload)
        return decode_frame(plain)


class ChannelBroken(ProtocolError):
    """A frame was lost on the way; both sides begin a new session."""


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _keys(
    parties: Parties,
    session: bytes,
    key: AgreementKey,
    *,
    theirs: bytes,
    device_public: bytes,
    edge_public: bytes,
) -> tuple[AESGCM, AESGCM, bytes]:
    try:
        secret = key.agree(theirs)
    except ValueError:
        raise Refused(Reason.BAD_FIELD, "a session key that leads to no secret") from None
    binding = pack(
        [parties.run, parties.boundary, parties.device, parties.edge, session, device_public, edge_public]
    )
    return (
        _key(secret, binding, UP),
        _key(secret, binding, DOWN),
        derive(secret, b"split tensors", binding, 32),
    )


def device_channel(parties: Parties, session: bytes, key: AgreementKey, edge_public: bytes) -> Channel:
    """The device's side.

    Args:
        parties: whose channel it is.
        session: its 16 bytes.
        key: the device's fresh key.
        edge_public: the edge's fresh public key, 32 bytes.

    Returns:
        The channel, at its first frame.

    Raises:
        Refused: the edge's key is of low order.
    """
    up, down, secret = _keys(
        parties, session, key, theirs=edge_public, device_public=key.public, edge_public=edge_public
    )
    return Channel(session, up, down, UP, secret)


def edge_channel(parties: Parties, session: bytes, key: AgreementKey, device_public: bytes) -> Channel:
    """The edge's side.

    Args:
        parties: whose channel it is.
        session: its 16 bytes.
        key: the edge's fresh key.
        device_public: the device's fresh public key, 32 bytes.

    Returns:
        The channel, at its first frame.

    Raises:
        Refused: the device's key is of low order.
    """
    up, down, secret = _keys(
        parties, session, key, theirs=device_public, device_public=device_public, edge_public=key.public
    )
    return Channel(session, down, up, DOWN, secret)
