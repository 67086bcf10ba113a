"""What must hold of what a device keeps for itself: no broker has it, and masks hide what is sent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from echelon.messages.boundary import (
    Masked,
)
from echelon.sim.left import RunRecords


def no_device_state_on_a_broker(left: RunRecords) -> Iterator[str]:
    """Not two consecutive numbers of a device's weights or update, nor its marks, stand on any broker, masks apart."""
    keys = _patterns(left.outcome.secrets)
    for broker, topics in left.outcome.topics.items():
        for topic, records in topics.items():
            text = b"".join(record.value for record in records)
            found = _search(text, keys)
            if found is not None:
                yield f"{broker}/{topic} holds bytes of a device's state ({found.hex()})"


def _patterns(secrets: list[bytes]) -> NDArray[np.uint64]:
    """Every two consecutive float32 of the secrets as one integer; pairs with a zero are no pattern."""
    pairs = []
    for secret in secrets:
        for start in (0, 4):
            usable = len(secret[start:]) // 8 * 8
            pairs.append(np.frombuffer(secret[start : start + usable], "<u8"))
    if not pairs:
        return np.zeros(0, np.uint64)
    every = np.unique(np.concatenate(pairs))
    low, high = every & np.uint64(0x7FFFFFFF), (every >> np.uint64(32)) & np.uint64(0x7FFFFFFF)
    return np.asarray(every[(low != 0) & (high != 0)], np.uint64)


def _search(text: bytes, keys: NDArray[np.uint64]) -> bytes | None:
    if not keys.size:
        return None
    for shift in range(8):
        usable = (len(text) - shift) // 8 * 8
        if usable <= 0:
            break
        words = np.frombuffer(text, "<u8", usable // 8, shift)
        places = np.searchsorted(keys, words)
        places[places == keys.size] = 0
        hits = words[keys[places] == words]
        if hits.size:
            return bytes(hits[:1].astype("<u8").tobytes())
    return None


def uploads_are_masked(left: RunRecords) -> Iterator[str]:
    """No masked upload shows the update under it: its integers are not those of the update."""
    secure = left.outcome.manifest.secure
    dim = left.outcome.initial.size
    for boundary in left.boundaries:
        payloads = left.payloads(boundary, "masked")
        for message in left.messages(boundary, "masked", Masked):
            upload = left.outcome.uploads.get(message.payload.sha256)
            payload = payloads.get(message.payload.sha256)
            if upload is None or payload is None:
                continue
            shown = np.frombuffer(payload, f"<i{secure.ring_bits // 8}")[:dim].astype(np.float64)
            plain = upload.scaled * 2.0**secure.scale_bits
            near = np.abs(shown - plain) <= 2.0
            if int(near.sum()) * 2 > dim:
                yield f"{boundary}: the upload of {upload.device} for window {message.window} is not masked"
