"""The fixed pace: H, R and μ stay as the run's manifest gives them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import ClassVar

from echelon.errors import CodecError
from echelon.messages.exchange import Pace
from echelon.messages.manifest import PaceKind, RunManifest
from echelon.messages.wire import pack, plain
from echelon.pace.base import Decision, PaceInputs


@dataclass(frozen=True, slots=True)
class FixedPace:
    """Always the pace of the run manifest."""

    kind: ClassVar[PaceKind] = PaceKind.FIXED
    pace: Pace

    @classmethod
    def of(cls, manifest: RunManifest) -> FixedPace:
        """The pace of a run in its initial state."""
        return cls(manifest.pace)

    @property
    def decision(self) -> Decision:
        """There is none to take."""
        return Decision("fixed", "fixed")

    def observe(self, inputs: PaceInputs) -> tuple[FixedPace, Pace]:
        """No change, whatever was merged."""
        return self, self.pace

    def encode(self) -> bytes:
        """The pace."""
        return b"echelon fixed pace v1\x00" + pack(plain(self.pace))

    def decode(self, data: bytes) -> FixedPace:
        """The same controller; there is no state to take over."""
        if data != self.encode():
            raise CodecError("the stored pace is not the run manifest's: the state belongs to another run")
        return self

    def digest(self) -> bytes:
        """SHA-256 of `encode()`."""
        return hashlib.sha256(self.encode()).digest()
