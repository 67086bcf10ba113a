"""The keys, the signed manifest and the adapter of genesis in a run's folder, by which it can be resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from echelon.config.run import RunSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import Vector
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import ANEW, stored
from echelon.private import write_private
from echelon.provision.identities import Identities
from echelon.run.folder import INITIAL_FILE, MANIFEST_FILE
from echelon.wiring.signed_run import SignedRun


def keep(state: Path, signed: SignedRun, initial: Vector, identities: Identities) -> None:
    """Write what a resumed run starts from.

    Args:
        state: the folder `state` of the run's.
        signed: what was agreed to.
        initial: the adapter of genesis, little-endian float32[d].
        identities: every private key.
    """
    identities.save(state / "keys")
    write_private(state / INITIAL_FILE, initial.tobytes())
    write_private(state / MANIFEST_FILE, signed.sealed)


def kept(state: Path, settings: RunSettings) -> tuple[SignedRun, Vector, Identities]:
    """Read what `keep` wrote.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    identities = Identities.load(state / "keys", settings)
    try:
        sealed = (state / MANIFEST_FILE).read_bytes()
        with stored(f"{state / INITIAL_FILE}", ConfigError, advice=ANEW):
            initial = np.frombuffer((state / INITIAL_FILE).read_bytes(), "<f4").astype(np.float32)
    except OSError as error:
        raise ConfigError(
            f"{state.parent} cannot be resumed: {error.filename} is missing. Start it anew"
        ) from error
    return SignedRun(settings, RunManifest.open(sealed), sealed), initial, identities
