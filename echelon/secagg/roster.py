"""The signed roster of a boundary's members, and the root over who was in a window's sum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from echelon.errors import ProtocolError
from echelon.messages.envelope import Signer, verify_signature
from echelon.messages.names import BoundaryName, check_member
from echelon.messages.wire import MAX_ITEMS, U16, Fields, Key32, Message, Signature, Slug, pack, plain
from echelon.secagg.keys import statement

MAX_ROSTER_BYTES = 1 << 20


class RosterEntry(Fields):
    """One enrolled device: its name, its Ed25519 identity, its partition of the inbox.

    `rank` is the rank of what it trains, where the run manifest has rank blocks; else it is left out of the bytes.
    """

    left_out: ClassVar[frozenset[str]] = frozenset({"rank"})

    device: Slug
    public: Key32
    slot: U16
    rank: U16 = 0


class EdgeEntry(Fields):
    """One enrolled edge server: its name and its Ed25519 identity."""

    edge: Slug
    public: Key32


class Roster(Message):
    """The devices and edges that one boundary enrolled, ascending by name, and the keys of its aggregator and its gate.

    Signed by the boundary's enrolment key, which none of them holds. Names, keys and slots are distinct. Made by
    `enrol`; whoever reads one from outside calls `verify`.
    """

    kind: ClassVar[str] = "enrolment"
    revision: ClassVar[int] = 2
    boundary: BoundaryName
    aggregator: Key32
    gate: Key32
    """What the gate signs boundary records with; the key of what crosses stands in the run manifest."""
    entries: Annotated[tuple[RosterEntry, ...], Field(min_length=1, max_length=MAX_ITEMS)]
    edges: Annotated[tuple[EdgeEntry, ...], Field(max_length=64)] = ()
    signature: Signature

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        names = [entry.device for entry in self.entries]
        if names != sorted(set(names)):
            raise ValueError(
                "devices of a roster must be in ascending order, and no name may stand there twice"
            )
        if len({entry.public for entry in self.entries}) != len(names):
            raise ValueError("two devices of a roster have one key")
        edges = [entry.edge for entry in self.edges]
        for name in (*names, *edges):
            check_member(name)
        if edges != sorted(set(edges)) or set(edges) & set(names):
            raise ValueError(
                "edges of a roster must be in ascending order, none may stand there twice, and none is a device"
            )
        members: tuple[RosterEntry | EdgeEntry, ...] = (*self.entries, *self.edges)
        if len({self.aggregator, self.gate, *(entry.public for entry in members)}) != len(members) + 2:
            raise ValueError(
                "the aggregator, the gate, every device and every edge of a roster have a key of their own"
            )
        if len({entry.slot for entry in self.entries}) != len(names):
            raise ValueError("two devices of a roster have one inbox slot")
        return self

    @classmethod
    def enrol(
        cls,
        boundary: str,
        entries: Iterable[RosterEntry],
        enrolment: Signer,
        *,
        aggregator: bytes,
        gate: bytes,
        edges: Iterable[EdgeEntry] = (),
    ) -> Self:
        """Sign a roster.

        Args:
            boundary: its name.
            entries: the devices.
            enrolment: the boundary's enrolment key.
            aggregator: public key of the aggregator, 32 bytes.
            gate: public key of the gate inside the boundary, 32 bytes.
            edges: the edges.

        Raises:
            pydantic.ValidationError: names, keys or slots are not distinct.
        """
        ordered = tuple(sorted(entries, key=lambda entry: entry.device))
        servers = tuple(sorted(edges, key=lambda entry: entry.edge))
        signature = enrolment.sign(_signed(boundary, aggregator, gate, ordered, servers))
        return cls(
            boundary=boundary,
            aggregator=aggregator,
            gate=gate,
            entries=ordered,
            edges=servers,
            signature=signature,
        )

    @classmethod
    def decode(cls, data: bytes, *, limit: int = MAX_ROSTER_BYTES) -> Self:
        """Read the canonical encoding; the signature is not checked yet.

        Raises:
            Refused: anything else.
        """
        return super().decode(data, limit=limit)

    def verify(self, enrolment_public: bytes) -> None:
        """Check the signature by the 32-byte enrolment key.

        Raises:
            ProtocolError: it is not that key's.
        """
        signed = _signed(self.boundary, self.aggregator, self.gate, self.entries, self.edges)
        if not verify_signature(enrolment_public, self.signature, signed):
            raise ProtocolError(
                f"the roster of {self.boundary} is not signed by the enrolment key given for it"
            )

    @cached_property
    def _by_device(self) -> dict[str, RosterEntry]:
        return {entry.device: entry for entry in self.entries}

    def entry(self, device: str) -> RosterEntry:
        """The entry of a device.

        Raises:
            ProtocolError: the device is not enrolled.
        """
        entry = self._by_device.get(device)
        if entry is None:
            raise ProtocolError(f"{device} is not on the roster of {self.boundary}: enrol it first")
        return entry

    def key(self, device: str) -> bytes:
        """The Ed25519 public key of a device, 32 bytes.

        Raises:
            ProtocolError: the device is not enrolled.
        """
        return self.entry(device).public

    def __contains__(self, device: object) -> bool:
        return device in self._by_device

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the canonical encoding, signature included."""
        return hashlib.sha256(self.encode()).digest()


def _signed(
    boundary: str, aggregator: bytes, gate: bytes, entries: Sequence[RosterEntry], edges: Sequence[EdgeEntry]
) -> bytes:
    parts = [plain(entry) for entry in entries], [plain(entry) for entry in edges]
    return statement("enrolment", boundary, aggregator, gate, *parts)


@dataclass(frozen=True, slots=True)
class WindowLeaf:
    """What the window's root says of one included device.

    Attributes:
        device: name or pseudonym.
        weight: w.
        base_version: version that it trained from.
        base_sha256: digest of that version.
        upload_sha256: digest of its masked upload.
        signature: its signature over the included set; empty if it was not among those collected.
    """

    device: str
    weight: int
    base_version: int
    base_sha256: bytes
    upload_sha256: bytes
    signature: bytes

    def encode(self) -> bytes:
        """Canonical bytes of the leaf."""
        base = (self.base_version, self.base_sha256)
        return statement(
            "window leaf", self.device, self.weight, *base, *(self.upload_sha256, self.signature)
        )


def roster_root(leaves: Iterable[WindowLeaf]) -> bytes:
    """Merkle tree hash (RFC 9162, section 2.1.1) over the leaves, ascending by device; 32 bytes.

    A device can be shown to be under the root without the others being named.

    Raises:
        ProtocolError: no leaf, or one device twice.
    """
    ordered = sorted(leaves, key=lambda leaf: leaf.device)
    names = [leaf.device for leaf in ordered]
    if not names or len(set(names)) != len(names):
        raise ProtocolError("a window's root is over one or more devices, each of them once")
    return merkle_root([leaf.encode() for leaf in ordered])


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """Merkle tree hash (RFC 9162, section 2.1.1) of byte strings, 32 bytes."""
    if len(leaves) <= 1:
        return hashlib.sha256(b"\x00" + leaves[0] if leaves else b"").digest()
    split = 1 << ((len(leaves) - 1).bit_length() - 1)
    return hashlib.sha256(b"\x01" + merkle_root(leaves[:split]) + merkle_root(leaves[split:])).digest()


def bases_root(bases: Iterable[tuple[int, bytes]]) -> bytes:
    """Merkle tree hash over (version, digest) of the adapters inside the staleness horizon, 32 bytes.

    Raises:
        ProtocolError: no base, or one version twice.
    """
    ordered = sorted(bases)
    if not ordered or len({version for version, _ in ordered}) != len(ordered):
        raise ProtocolError("the staleness horizon holds one or more versions, each of them once")
    return merkle_root([pack([version, digest]) for version, digest in ordered])
