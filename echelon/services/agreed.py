"""What a service reads before it starts: the pinned manifest, the roster, its run file; all checked."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from echelon.config.reading import read_file
from echelon.config.run import load
from echelon.errors import ConfigError, EchelonError
from echelon.messages.adapter import Vector
from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest
from echelon.secagg.roster import MAX_ROSTER_BYTES, Roster
from echelon.services.config import BoundaryConfig, ControllerConfig, ServiceConfig
from echelon.wiring.plugins import look_beside
from echelon.wiring.signed_run import SignedRun


def read_agreed(config: ServiceConfig) -> SignedRun:
    """The run file and the manifest.

    Raises:
        ConfigError: a file cannot be read, the manifest is not the pinned one, or the run file is for another clock.
    """
    sealed = _read(config.manifest, "manifest", 2 * MAX_MANIFEST_BYTES)
    digest = hashlib.sha256(sealed).hexdigest()
    if digest != config.manifest_sha256:
        raise ConfigError(
            f"manifest {config.manifest} has SHA-256 {digest}, and manifest_sha256 pins "
            f"{config.manifest_sha256}: get the right file, or the right pin from the operator of the federation"
        )
    look_beside(config.settings.absolute().parent)
    settings = load(config.settings)
    if settings.clock != "real":
        raise ConfigError(
            f"{config.settings}: clock: virtual is for `echelon run`; a service needs clock: real"
        )
    try:
        return SignedRun(settings, RunManifest.open(sealed), sealed)
    except EchelonError as error:
        raise ConfigError(f"manifest {config.manifest}: {error}") from error


def read_roster(config: BoundaryConfig, signed: SignedRun) -> Roster:
    """The boundary's roster, verified and the manifest's.

    Raises:
        ConfigError: it is not, or the run file or the manifest has no such boundary.
    """
    if config.boundary not in (boundary.name for boundary in signed.settings.boundaries):
        raise ConfigError(f"run file {config.settings} has no boundary {config.boundary}: check `boundary`")
    terms = next((terms for terms in signed.manifest.boundaries if terms.name == config.boundary), None)
    if terms is None:
        raise ConfigError(f"manifest {config.manifest} has no boundary {config.boundary}: check `boundary`")
    try:
        roster = Roster.decode(_read(config.roster, "roster", MAX_ROSTER_BYTES))
        roster.verify(bytes.fromhex(terms.enrolment_public))
    except EchelonError as error:
        raise ConfigError(f"roster {config.roster}: {error}") from error
    if roster.boundary != config.boundary or roster.digest.hex() != terms.roster_sha256:
        raise ConfigError(
            f"roster {config.roster} is not the one that the manifest names for {config.boundary}: get the right one"
        )
    return roster


def read_initial(config: ControllerConfig, signed: SignedRun) -> Vector:
    """The adapter of genesis, float32[d].

    Raises:
        ConfigError: the file cannot be read, or has another length than the manifest's layout.
    """
    dim = signed.manifest.adapter_layout().dim
    data = _read(config.initial, "initial", 4 * dim)
    if len(data) != 4 * dim:
        raise ConfigError(
            f"initial {config.initial} has {len(data)} bytes; the manifest's layout needs {4 * dim}: take both from "
            "the same deployment"
        )
    return np.frombuffer(data, "<f4").astype(np.float32)


def _read(path: Path, field: str, limit: int) -> bytes:
    return read_file(path, field, limit)
