"""A global adapter as an auditor derives it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from echelon.adapters.exported import exported_files
from echelon.laws.hashing import Digest
from echelon.messages.adapter import F32, adapter_digest
from echelon.messages.exchange import Pace
from echelon.messages.manifest import RunManifest
from echelon.pace.base import Decision


@dataclass(frozen=True, slots=True)
class DerivedAdapter:
    """One global adapter, with the pace that it announces.

    Attributes:
        commit: number of the commit; 0 is genesis.
        adapter: float32[d].
        sha256: of the adapter.
        manifest: the run's terms.
        pace: what the commit announces.
        decision: what the pace controller saw and did, derived again likewise; None at genesis.
        genesis_sha256: of the run that it is of.
    """

    commit: int
    adapter: F32
    sha256: bytes
    manifest: RunManifest
    pace: Pace
    decision: Decision | None = None
    genesis_sha256: bytes = b""

    def files(self) -> dict[str, bytes]:
        """The adapter as PEFT's two files, by name."""
        return exported_files(self.manifest, self.adapter)

    def differences(self, files: Mapping[str, bytes]) -> Iterator[str]:
        """What the files of an exported adapter, by name, have otherwise than this one, in words."""
        for name, data in sorted(self.files().items()):
            found = files.get(name)
            if found is None:
                yield f"adapter/{name} is missing"
            elif found != data:
                place = next(
                    (i for i, (a, b) in enumerate(zip(found, data, strict=False)) if a != b), len(data)
                )
                yield f"adapter/{name} is not the final adapter: byte {min(place, len(found))} differs"


def digest_known_of(written: bytes | None, digest: Digest | None) -> Callable[[F32], bytes]:
    """What gives SHA-256 of an adapter, float32[d]: the digest, if the adapter's bytes are those that it is of.

    Args:
        written: some bytes; None: there are none.
        digest: SHA-256 of these; None: it was not begun.
    """

    def digest_of(adapter: F32) -> bytes:
        if digest is not None and written is not None and is_encoded(adapter, written):
            return digest.digest()
        return adapter_digest(adapter)

    return digest_of


def is_encoded(adapter: F32, payload: bytes | memoryview) -> bool:
    """Whether bytes are this vector, float32[d], little-endian; compared as words, so that no value has two forms."""
    words = adapter.astype("<f4", copy=False).view("<u4")
    return len(payload) == words.nbytes and np.array_equal(np.frombuffer(payload, "<u4"), words)
