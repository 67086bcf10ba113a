"""Opening genesis: the run manifest and the adapter that the run starts from, out of its payload."""

from __future__ import annotations

import hashlib

import numpy as np

from echelon.messages.adapter import F32
from echelon.messages.exchange import Genesis
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Reason, Refused


def open_genesis(message: Genesis, payload: bytes) -> tuple[RunManifest, F32]:
    """The run manifest and the initial adapter (float32[d]) of a genesis whose payload is whole.

    Raises:
        EchelonError: a digest, a length, the manifest's own signature or its run does not fit.
    """
    sealed, rest = payload[: message.manifest_length], memoryview(payload)[message.manifest_length :]
    if hashlib.sha256(sealed).digest() != message.manifest_sha256:
        raise Refused(Reason.BAD_TRANSFER, "the run manifest has another SHA-256 than genesis says")
    if hashlib.sha256(rest).digest() != message.adapter_sha256:
        raise Refused(Reason.BAD_TRANSFER, "the initial adapter has another SHA-256 than genesis says")
    manifest = RunManifest.open(sealed)
    if manifest.run_id != message.run:
        raise Refused(Reason.WRONG_RUN, "genesis and the run manifest name different runs")
    dim = manifest.adapter_layout().dim
    if len(rest) != 4 * dim:
        raise Refused(
            Reason.BAD_TRANSFER, f"the initial adapter has {len(rest)} bytes, the layout wants {4 * dim}"
        )
    return manifest, np.frombuffer(rest, "<f4").astype(np.float32)
