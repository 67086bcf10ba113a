"""The bodies of secure aggregation: what devices say on `handshake` and read on `inbox`, and what is decided.

The rounds are those of Bonawitz et al., CCS 2017 ("Practical Secure Aggregation for Privacy-Preserving
Machine Learning"), figure 4, the variant with the consistency check:

    round  devices          server
    0      Advertise        KeyList      U1: whose keys are in use, with the signed advertisements themselves
    1      Sealed           SharesList   U2: who sealed shares; and one Deliver for each of them
    2      (masked upload)  Included     U3: whose masked upload is in the sum, with its digest
    3      Consistency      Signatures   U4: who signed U3
    4      Unmask           (the sum)

`KeyList`, `SharesList`, `Included` and `Signatures` are decisions: a restarted server adopts them as they
stand. Lists are ascending by device without repeats, so one set has one encoding.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, ClassVar, Protocol

from pydantic import AfterValidator, Field

from echelon.messages.wire import U16, U63, Digest, Fields, Key32, Message, Signature, Slug

MAX_MEMBERS = 200
"""Most devices in one list: keeps a list of the longest names within 64 KiB."""
SHARE_BYTES = 33
"""A Shamir share: an element of the field of p > 2**256, big-endian."""
SEALED_BYTES = 2 * SHARE_BYTES + 16
"""Two shares (of the mask key, then of the self-mask seed) and the tag of AES-128-GCM."""

Share = Annotated[bytes, Field(min_length=SHARE_BYTES, max_length=SHARE_BYTES)]
Ciphertext = Annotated[bytes, Field(min_length=SEALED_BYTES, max_length=SEALED_BYTES)]


class _Named(Protocol):
    @property
    def device(self) -> str: ...


def _ascending(entries: tuple[_Named, ...]) -> tuple[_Named, ...]:
    _ascending_names(tuple(entry.device for entry in entries))
    return entries


def _ascending_names(names: tuple[str, ...]) -> tuple[str, ...]:
    if any(before >= after for before, after in pairwise(names)):
        raise ValueError("devices are not in ascending order without repeats")
    return names


class Advertise(Message):
    """Round 0: a device's fresh keys for one window.

    `signature` is by the device's identity over the context, its name and these six: others are shown it.
    """

    kind: ClassVar[str] = "advertise"
    revision: ClassVar[int] = 2
    window: U63
    cipher_public: Key32
    """X25519, for sealing shares."""
    mask_public: Key32
    """X25519, for pairwise masks."""
    seed_commitment: Digest
    """Commitment to the self-mask seed, by which the server tells bad shares from good ones."""
    evaluated: bool
    """Whether the device has an evaluation of the window's commit to add: others count who does before they mask."""
    front: U16
    """The device's vector moves the model's blocks below `front` and those from `back` on; 0 and 0: all."""
    back: U16
    signature: Signature


class KeyEntry(Fields):
    """One advertisement of the key list."""

    device: Slug
    cipher_public: Key32
    mask_public: Key32
    seed_commitment: Digest
    evaluated: bool
    front: U16
    back: U16
    signature: Signature


class KeyList(Message):
    """Decision U1: the keys that are in use in this window."""

    kind: ClassVar[str] = "roster"
    revision: ClassVar[int] = 2
    costly: ClassVar[bool] = True
    window: U63
    entries: Annotated[tuple[KeyEntry, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]


class SealedShare(Fields):
    """Shares for or from `device`, sealed between the two."""

    device: Slug
    ciphertext: Ciphertext


class Sealed(Message):
    """Round 1: a device's shares, one ciphertext for each neighbour in U1; an entry names who opens it."""

    kind: ClassVar[str] = "sealed"
    window: U63
    entries: Annotated[tuple[SealedShare, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]


class SharesList(Message):
    """Decision U2: the devices whose shares are with their neighbours; pairwise masks run among these."""

    kind: ClassVar[str] = "shares"
    costly: ClassVar[bool] = True
    window: U63
    devices: Annotated[tuple[Slug, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending_names)]


INBOXES = 1024
"""Most partitions of `inbox`: a broker of one node takes some thousand of all topics together."""


def inbox_of(slot: int) -> int:
    """The partition of `inbox` that a slot's device reads: its own, or beyond `INBOXES` slots one for several."""
    return slot % INBOXES


class Deliver(Message):
    """The ciphertexts for one device, from its neighbours in U2. `device` of an entry is the sender."""

    kind: ClassVar[str] = "deliver"
    window: U63
    to: Slug
    entries: Annotated[tuple[SealedShare, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]


class Upload(Fields):
    """A masked upload that is in the sum: whose, and the SHA-256 of its little-endian bytes."""

    device: Slug
    upload_sha256: Digest


class Included(Message):
    """Decision U3: the masked uploads that are in the sum."""

    kind: ClassVar[str] = "included"
    window: U63
    entries: Annotated[tuple[Upload, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]


class Consistency(Message):
    """Round 3: the device's signature over the context, U1, U2 and U3 as it was shown them."""

    kind: ClassVar[str] = "consistency"
    window: U63
    signature: Signature


class SignatureEntry(Fields):
    """One device's signature over U3."""

    device: Slug
    signature: Signature


class Signatures(Message):
    """Decision U4: the signatures over U3 that were collected."""

    kind: ClassVar[str] = "signatures"
    costly: ClassVar[bool] = True
    window: U63
    entries: Annotated[tuple[SignatureEntry, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]


class RevealedShare(Fields):
    """A share that was dealt by `device`."""

    device: Slug
    share: Share


class Unmask(Message):
    """Round 4: shares of the seeds of U3 and of the mask keys of U2 without U3, never both of a device."""

    kind: ClassVar[str] = "unmask"
    costly: ClassVar[bool] = True
    window: U63
    seeds: Annotated[tuple[RevealedShare, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]
    keys: Annotated[tuple[RevealedShare, ...], Field(max_length=MAX_MEMBERS), AfterValidator(_ascending)]
