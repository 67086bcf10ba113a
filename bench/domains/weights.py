"""Weights in a quarter of their size: every matrix as int8 with one scale a row, every vector as it is.

What is kept is the file, and its digest is what is fixed: the float32 weights that a run uses are computed from it in
one way, so that they are the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load, save

from echelon.errors import ConfigError

SCALE = ".scale"
"""What the name of a matrix's scales ends with."""
LARGEST = 127

Arrays = Mapping[str, npt.NDArray[np.float32]]


def pack(weights: Arrays) -> bytes:
    """The bytes of a safetensors file; the same weights give the same bytes.

    Args:
        weights: float32, vectors and matrices.

    Raises:
        ConfigError: a weight is not finite.
    """
    packed: dict[str, npt.NDArray[np.generic]] = {}
    for name, value in sorted(weights.items()):
        if not np.isfinite(value).all():
            raise ConfigError(
                f"{name} has weights that are no numbers: the training went wrong, make it anew"
            )
        if value.ndim != 2:
            packed[name] = value.astype("<f4")
            continue
        scale = (np.abs(value).max(axis=1) / LARGEST).astype("<f4")
        steps = np.rint(value / np.where(scale > 0, scale, 1)[:, None])
        packed[name] = np.clip(steps, -LARGEST, LARGEST).astype("i1")
        packed[name + SCALE] = scale
    return bytes(save(packed))


def unpack(raw: bytes) -> dict[str, npt.NDArray[np.float32]]:
    """The float32 weights of a file that `pack` made.

    Raises:
        ConfigError: it is no such file.
    """
    try:
        packed = load(raw)
        return {
            name: value.astype(np.float32) * packed[name + SCALE][:, None]
            if value.dtype == np.int8
            else value
            for name, value in packed.items()
            if not name.endswith(SCALE)
        }
    except Exception as error:  # safetensors raises its own class, which it does not name
        raise ConfigError(f"the packed weights cannot be read ({error}): restore the file") from error


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
