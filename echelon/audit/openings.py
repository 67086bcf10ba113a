"""Opening the roster root of a window: who was in its sum, and one of them shown to somebody outside.

A window that crossed carries the root over its devices. An auditor outside asks for one leaf under one of these roots;
which window and which leaf follow from a nonce of the auditor's, so neither side chooses. The boundary answers with the
leaf and its path; the devices of the other leaves stay hashes. What is shown is that the boundary had committed to that
leaf before it knew which would be asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from echelon.audit.merkle import inclusion_proof, leaf_hash, verify_inclusion
from echelon.errors import AuditError, CodecError
from echelon.messages.boundary import Cohort, Window
from echelon.messages.exchange import Delta
from echelon.messages.handshake import Included, Signatures
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Message, pack
from echelon.secagg.roster import WindowLeaf

REQUEST = "echelon.opening.request.v1"
ANSWER = "echelon.opening.v1"
MAX_OPENING_BYTES = 64 * 1024
"""Largest request or answer that is read: a leaf and a path of at most eight hashes are far below."""
MAX_PATH = 64
_CHOICE = b"echelon opening v1\x00"


class WindowRoster:
    """Follows the decisions on `control`, and gives the leaves of each window that closed."""

    def __init__(self) -> None:
        self._cohort: Cohort | None = None
        self._included: Included | None = None
        self._signatures: dict[str, bytes] = {}

    def take(self, message: Message) -> list[WindowLeaf] | None:
        """Take the next decision; the leaves, ascending by device, if it closed a window."""
        match message:
            case Cohort():
                if self._cohort is not None and message.window <= self._cohort.window:
                    return None  # a repeat; two different ones of a window contradict each other where sums are derived
                self._cohort, self._included, self._signatures = message, None, {}
            case Included():
                self._included = message
            case Signatures():
                self._signatures = {entry.device: entry.signature for entry in message.entries}
            case Window():
                return self._leaves(message)
            case _:
                pass
        return None

    def _leaves(self, message: Window) -> list[WindowLeaf] | None:
        cohort, included = self._cohort, self._included
        if cohort is None or included is None or not cohort.window == included.window == message.window:
            return None
        members = {member.device: member for member in cohort.members}
        bases = {base.version: base.sha256 for base in cohort.bases}
        leaves = []
        for entry in sorted(included.entries, key=lambda entry: entry.device):
            member = members.get(entry.device)
            if member is None or member.base_version not in bases:
                return None
            leaves.append(
                WindowLeaf(
                    device=entry.device,
                    weight=member.weight,
                    base_version=member.base_version,
                    base_sha256=bases[member.base_version],
                    upload_sha256=entry.upload_sha256,
                    signature=self._signatures.get(entry.device, b""),
                )
            )
        return leaves


@dataclass(frozen=True, slots=True)
class Request:
    """Which leaf is asked for, and of what it follows.

    Attributes:
        run: hex.
        boundary: its name.
        size: how many deltas of the boundary the choice is among.
        nonce: 32 random bytes, hex.
        seq: of the delta that has the window.
        window: its number.
        index: of the leaf, from 0.
        heads: how many leaves there are.
        root: hex.
    """

    run: str
    boundary: str
    size: int
    nonce: str
    seq: int
    window: int
    index: int
    heads: int
    root: str

    @classmethod
    def choose(cls, manifest: RunManifest, boundary: str, deltas: Sequence[Delta], nonce: bytes) -> Self:
        """The choice that a nonce makes among all windows of a boundary's deltas.

        Args:
            manifest: the run's terms.
            boundary: its name.
            deltas: all of them, ascending by seq.
            nonce: 32 bytes that the boundary could not know.

        Raises:
            AuditError: there is no window to choose.
        """
        windows = [(delta.seq, window) for delta in deltas for window in delta.windows]
        if not windows:
            raise AuditError(f"boundary {boundary} has sent no delta yet: there is no window to open")
        seed = _CHOICE + pack([manifest.run_id, boundary, len(deltas), deltas[-1].prefix, nonce])
        seq, window = windows[_number(seed + b"window") % len(windows)]
        return cls(
            run=manifest.run,
            boundary=boundary,
            size=len(deltas),
            nonce=nonce.hex(),
            seq=seq,
            window=window.window,
            index=_number(seed + b"leaf") % window.heads,
            heads=window.heads,
            root=window.roster_root.hex(),
        )

    def encode(self) -> bytes:
        """The file's bytes."""
        return _json(REQUEST, self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read a request.

        Raises:
            CodecError: not a request.
        """
        return cls(**_fields(data, REQUEST, cls.__annotations__))

    def check(self, manifest: RunManifest, deltas: Sequence[Delta]) -> None:
        """Hold the request against the exchange.

        Raises:
            AuditError: it is of another run, or its choice is not the one that its nonce makes.
        """
        if self.run != manifest.run or self.size > len(deltas) or len(self.nonce) != 64:
            raise AuditError("the request is not of this run, or of deltas that are not there")
        if self != Request.choose(manifest, self.boundary, deltas[: self.size], bytes.fromhex(self.nonce)):
            raise AuditError("the request asks for another leaf than its nonce chooses")


@dataclass(frozen=True, slots=True)
class Answer:
    """One leaf under the root of a window, and its path; bytes are hex."""

    run: str
    boundary: str
    window: int
    index: int
    size: int
    device: str
    weight: int
    base_version: int
    base_sha256: str
    upload_sha256: str
    signature: str
    path: list[str]

    @classmethod
    def to(cls, request: Request, leaves: Sequence[WindowLeaf]) -> Self:
        """The answer to a request, from the leaves of its window.

        Raises:
            AuditError: these leaves do not have the root that crossed.
        """
        hashes = [leaf_hash(leaf.encode()) for leaf in leaves]
        if len(leaves) != request.heads:
            raise AuditError(
                f"window {request.window} has {len(leaves)} devices here, and crossed with {request.heads}"
            )
        leaf, path = leaves[request.index], inclusion_proof(hashes, request.index)
        root = bytes.fromhex(request.root)
        if not verify_inclusion(hashes[request.index], request.index, len(hashes), path, root):
            raise AuditError(
                f"window {request.window} has another roster root here than the one that crossed"
            )
        return cls(
            run=request.run,
            boundary=request.boundary,
            window=request.window,
            index=request.index,
            size=len(leaves),
            device=leaf.device,
            weight=leaf.weight,
            base_version=leaf.base_version,
            base_sha256=leaf.base_sha256.hex(),
            upload_sha256=leaf.upload_sha256.hex(),
            signature=leaf.signature.hex(),
            path=[one.hex() for one in path],
        )

    def encode(self) -> bytes:
        """The file's bytes."""
        return _json(ANSWER, self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """Read an answer.

        Raises:
            CodecError: not an answer.
        """
        answer = cls(**_fields(data, ANSWER, cls.__annotations__))
        if len(answer.path) > MAX_PATH or not all(isinstance(one, str) for one in answer.path):
            raise CodecError("the path of an opening is a list of hashes")
        return answer

    def check(self, request: Request, manifest: RunManifest) -> None:
        """Hold the answer against a request that was held against the exchange.

        Raises:
            AuditError: it answers another request, or its leaf does not stand under the root that crossed.
        """
        asked = (request.run, request.boundary, request.window, request.index, request.heads)
        if (self.run, self.boundary, self.window, self.index, self.size) != asked:
            raise AuditError("the answer is to another request")
        try:
            leaf = WindowLeaf(
                device=self.device,
                weight=self.weight,
                base_version=self.base_version,
                base_sha256=bytes.fromhex(self.base_sha256),
                upload_sha256=bytes.fromhex(self.upload_sha256),
                signature=bytes.fromhex(self.signature),
            ).encode()
            path = [bytes.fromhex(one) for one in self.path]
        except (ValueError, OverflowError) as error:
            raise AuditError(f"the answer holds no leaf: {error}") from error
        if not verify_inclusion(leaf_hash(leaf), self.index, self.size, path, bytes.fromhex(request.root)):
            raise AuditError(
                f"the leaf does not stand under the roster root of window {self.window} that crossed"
            )
        secure = manifest.secure
        if not 1 <= self.weight <= secure.n_max * max(secure.staleness):
            raise AuditError(f"the leaf has weight {self.weight}, which the run's terms do not allow")


def _number(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest(), "big")


def _json(kind: str, value: Request | Answer) -> bytes:
    return json.dumps({"format": kind, **asdict(value)}, indent=2).encode() + b"\n"


def _fields(data: bytes, kind: str, wanted: dict[str, Any]) -> dict[str, Any]:
    """The fields of a file of that kind: all that are wanted, no others, each of the right type."""
    types = {"str": str, "int": int, "list[str]": list}
    try:
        fields = json.loads(data[:MAX_OPENING_BYTES])
        complete = fields.pop("format") == kind and set(fields) == set(wanted)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        complete, fields = False, {}
    if not complete:
        raise CodecError(f"it is not a file of the format {kind}")
    for name, annotation in wanted.items():
        value: Any = fields[name]
        if type(value) is not types[str(annotation)] or (isinstance(value, int) and not 0 <= value < 1 << 63):
            raise CodecError(f"{name} is not what a file of the format {kind} has there")
        if isinstance(value, str) and name not in ("boundary", "device"):
            try:
                bytes.fromhex(value)
            except ValueError:
                raise CodecError(f"{name} is not hexadecimal") from None
    return dict(fields)
