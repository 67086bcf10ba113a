"""What every party of a run agreed to, as its operator signed it."""

from __future__ import annotations

from dataclasses import dataclass

from echelon.config.run import RunSettings
from echelon.messages.manifest import RunManifest
from echelon.wiring.context import manifest_digest


@dataclass(frozen=True)
class SignedRun:
    """A run file and the manifest that was made of it.

    Attributes:
        settings: the run file.
        manifest: opened and checked.
        sealed: the manifest with its signature, as it is pinned.
    """

    settings: RunSettings
    manifest: RunManifest
    sealed: bytes

    @property
    def sha256(self) -> bytes:
        """The digest that everybody pins, 32 bytes."""
        return manifest_digest(self.sealed)
