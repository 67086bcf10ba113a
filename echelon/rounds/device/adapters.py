"""Adapters of a device: the one that it trains from, and newer ones that wait until the gate has derived them."""

from __future__ import annotations

from echelon.errors import ProtocolError
from echelon.laws.shared_readings import SharedReadings
from echelon.laws.versions import Adapter, KnownVersions, SignedCommit
from echelon.messages.adapter import F32
from echelon.messages.boundary import Model
from echelon.messages.exchange import Pace
from echelon.messages.manifest import MILLION, RunManifest

MAX_WAITING_ADAPTERS = 3
"""Adapters that a device keeps until they are derived: the oldest, so that it always comes to one, and the newest."""


class DeviceAdapters:
    """The adapter that a device trains from, and those that it has read since.

    Args:
        manifest: the signed terms.
        dim: d.
        shared: what other devices of this process have read, too; None: this device reads for itself.

    Attributes:
        versions: what it knows of versions.
        version: of the own base; -1 before there is one.
        commit: that the base stands on.
        pace: of that commit.
        progress: committed share of the budget.
        base: float32[d].
        base_sha256: its digest.
        barred: whether the boundary waits for a commit: its newest adapter is not one to train from.
        signed: the commit that the base stands on, as the controller signed it.
        model_from: offset of `model` behind the record of the own base: a restart reads on from there.
        known_version: newest version that `control` has said something of.
        waiting: read and checked, newer than the own base; ascending by version.
    """

    def __init__(self, manifest: RunManifest, dim: int, shared: SharedReadings | None = None) -> None:
        self._shared = shared or SharedReadings()
        self.versions = KnownVersions(manifest, dim, shared=self._shared)
        self.version, self.commit = -1, 0
        self.pace: Pace | None = None
        self.progress = 0.0
        self.base: F32 | None = None
        self.base_sha256 = b""
        self.barred = False
        self.signed: SignedCommit | None = None
        self.model_from = 0
        self.known_version = 0
        self.waiting: list[Adapter] = []

    def told(self, version: int) -> None:
        """`control` has said what is in this version."""
        self.known_version = max(self.known_version, version)

    def take(self, message: Model, payload: bytes, offset: int) -> bool:
        """Take a record of `model`.

        Args:
            message: the record.
            payload: bytes of its chunks.
            offset: where it stands.

        Returns:
            Whether it is a newer adapter than those before.

        Raises:
            ProtocolError: it is not what its signed commit and clipped updates can give.
        """
        if message.version <= max(self.version, self.versions.newest):
            return False
        waiting = self.waiting
        theta, anchor = self.versions.read(message, payload, waiting[-1].theta if waiting else self.base)
        commit = self.versions.commit
        if commit is None:
            raise ProtocolError(f"model version {message.version} stands on no commit")
        if anchor is None and waiting and waiting[-1].message.commit == message.commit:
            anchor = waiting[-1].anchor
        waiting.append(Adapter(message=message, commit=commit, offset=offset, theta=theta, anchor=anchor))
        if len(waiting) > MAX_WAITING_ADAPTERS:
            del waiting[-2]
        return True

    def advance(self) -> Adapter | None:
        """Make the newest adapter the base that the gate derived, and of which `control` has said what is in it.

        Returns:
            That adapter, with the anchor of its commit if any waiting one brought it; None if there is none.
        """
        waiting = self.waiting
        usable = [
            place
            for place, adapter in enumerate(waiting)
            if adapter.message.version <= self.known_version
            and self.versions.usable(adapter.message.version, adapter.message.sha256)
        ]
        if not usable:
            return None
        adapter = waiting[usable[-1]]
        message = adapter.message
        if adapter.anchor is None:
            # Behind another adapter of the same commit, which brought it.
            of_commit = (other.anchor for other in waiting if other.message.commit == message.commit)
            adapter.anchor = next((anchor for anchor in of_commit if anchor is not None), None)
        self.waiting = waiting[usable[-1] + 1 :]
        self.version, self.commit = message.version, message.commit
        self.signed, self.model_from = adapter.commit, adapter.offset + 1
        self.base = None  # its memory is for the next one
        # A view of both would keep the anchor in memory as long as there is no newer version.
        self.base = self._shared.copy(adapter.theta, message.sha256) if message.anchored else adapter.theta
        self.base_sha256 = message.sha256
        self.pace, self.progress = message.pace, message.progress_ppm / MILLION
        self.barred = message.waiting
        return adapter
