"""The window that a derivation is at, with what was read of it."""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, field

from echelon.errors import ProtocolError, StateError
from echelon.laws.cohort import Part, close_window, read_part, ring_vector
from echelon.laws.ledger import WindowMean
from echelon.messages.boundary import Cohort, Masked, Window
from echelon.messages.exchange import WindowSummary
from echelon.messages.handshake import Included, Signatures, Unmask
from echelon.messages.manifest import RunManifest
from echelon.messages.split import EdgePart
from echelon.messages.wire import DeviceId
from echelon.rounds.effects import Incoming
from echelon.secagg.faults import InputRefused
from echelon.secagg.prg import ring_bytes
from echelon.secagg.server import Server


@dataclass
class WindowUnderWay:
    """One window that is under way, as far as it was read.

    Attributes:
        cohort: who is in it.
        server: secure aggregation once more.
        included: the set that the aggregator closed.
        signatures: over that set.
        answers: of devices that unmask, not given to the server yet.
        uploads: masked updates by device and digest; which one counts is what the signed included set says.
        added: uploads that the server has.
        parts: what edges signed, by edge and digest; which count is what the window record says.
        lacks: topic of the inputs that were not read yet when the window was to be closed.
    """

    cohort: Cohort
    server: Server
    included: Included | None = None
    signatures: Signatures | None = None
    answers: list[tuple[DeviceId, Unmask]] = field(default_factory=list)
    uploads: dict[tuple[DeviceId, bytes], bytes] = field(default_factory=dict)
    added: set[tuple[DeviceId, bytes]] = field(default_factory=set)
    parts: dict[tuple[str, bytes], tuple[EdgePart, bytes]] = field(default_factory=dict)
    lacks: str | None = None

    def check_signed(self) -> Included:
        """The included set, which a threshold of the cohort signed.

        Raises:
            ProtocolError: there is none.
        """
        if self.included is None or self.signatures is None:
            raise ProtocolError(f"window {self.cohort.window} closed without an included set that was signed")
        return self.included

    def take(self, incoming: Incoming, closing: Window) -> None:
        """Take an input, if it counts in the window: the others are not kept."""
        device, included = DeviceId(incoming.sender), self.check_signed()
        match incoming.message:
            case Unmask():
                self.answers.append((device, incoming.message))
            case Masked():
                upload = incoming.message.payload.sha256
                if any((entry.device, entry.upload_sha256) == (device, upload) for entry in included.entries):
                    self.uploads[device, upload] = incoming.payload or b""
            case EdgePart():
                part = incoming.message.payload.sha256
                if any((ref.edge, ref.sha256) == (incoming.sender, part) for ref in closing.parts):
                    self.parts[incoming.sender, part] = incoming.message, incoming.payload or b""
            case _:
                raise StateError(f"{incoming.message.kind} was kept as an input of a window")

    def close(
        self, message: Window, manifest: RunManifest, dim: int
    ) -> tuple[WindowSummary, WindowMean] | None:
        """Sum the window up from what was read of it, and compare.

        Args:
            message: the window's record.
            manifest: the signed terms.
            dim: d.

        Returns:
            The summary and the damped mean, of d coordinates; None while an input is missing: `lacks` says of which
            topic.

        Raises:
            ProtocolError: the record is not what the inputs add up to.
        """
        included = self.check_signed()
        self.lacks = self._unmask(included)
        if self.lacks is not None:
            return None
        parts = self._read_parts(included, message, manifest, dim)
        if parts is None:
            self.lacks = "parts"
            return None
        result = self.server.finish()
        digest = hashlib.sha256(ring_bytes(result.total)).digest()
        summary, mean = close_window(self.cohort, result, manifest, parts)
        if (
            digest != message.sum_sha256
            or summary != message.summary
            or tuple(result.included) != message.included
        ):
            raise ProtocolError(
                f"the record of window {message.window} is not what its devices' records add up to"
            )
        return summary, mean

    def _unmask(self, included: Included) -> str | None:
        """Give the server what was read; the topic of which it lacks something."""
        for entry in included.entries:
            key = (DeviceId(entry.device), entry.upload_sha256)
            if key in self.added:
                continue
            if key not in self.uploads:
                return "masked"
            self.server.on_masked(
                key[0], ring_vector(self.uploads.pop(key), self.server.context.ring_bits), key[1]
            )
            self.added.add(key)
        for device, answer in self.answers:
            with contextlib.suppress(InputRefused):  # what a server refuses is no part of the sum
                self.server.on_unmask(device, answer)
        self.answers.clear()
        return None if self.server.complete else "handshake"

    def _read_parts(
        self, included: Included, message: Window, manifest: RunManifest, dim: int
    ) -> list[Part] | None:
        """The parts that a window record names, held against its included set; None while one was not read."""
        edges = [ref.edge for ref in message.parts]
        if edges != sorted(set(edges)):
            raise ProtocolError(f"the record of window {message.window} names an edge's part twice")
        devices = {entry.device for entry in included.entries}
        parts = []
        for ref in message.parts:
            found = self.parts.get((ref.edge, ref.sha256))
            if found is None:
                return None
            part = read_part(
                ref.edge, *found, cohort=self.cohort, included=devices, manifest=manifest, dim=dim
            )
            parts.append(part)
        return parts
