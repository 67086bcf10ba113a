"""Enrolled slots: who a device process is. A process takes a slot that is free and has it for life.

A slot is a folder, named as the device, with `signing.pem` and, where the broker wants one, a certificate. The kernel
lets go of a slot when its process ends, so a killed replica's identity goes to the next one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from echelon.errors import ConfigError
from echelon.messages.envelope import Signer
from echelon.passphrase import Passphrase
from echelon.provision.identities import read_key
from echelon.secagg.roster import Roster
from echelon.services.locks import RETRY_SECONDS, FolderLock
from echelon.wiring.context import own_key

SIGNING_FILE = "signing.pem"


def slots_in(folder: Path) -> list[Path]:
    """Every slot of a folder, by name.

    Raises:
        ConfigError: the folder cannot be read, or holds none.
    """
    try:
        slots = sorted(path for path in folder.iterdir() if (path / SIGNING_FILE).is_file())
    except OSError as error:
        raise ConfigError(
            f"slots {folder} cannot be read: {error.strerror}. `slots` names a folder of folders, one for each device"
        ) from error
    if not slots:
        raise ConfigError(
            f"slots {folder}: no folder in it has a {SIGNING_FILE}; enrol devices and put theirs there"
        )
    return slots


def key_of(slot: Path, roster: Roster, passphrase: Passphrase | None = None) -> bytes:
    """The private key of a slot, 32 bytes.

    Args:
        slot: folder of one device; its name is the device's.
        roster: of the boundary, for the public key that belongs to it.
        passphrase: what the key is encrypted with; None: it is not.

    Raises:
        ConfigError: it cannot be read or opened, or the roster names another key, or nobody of that name.
    """
    key = read_key(slot / SIGNING_FILE, passphrase)
    own_key(roster, slot.name, Signer(key))
    return key


async def take_slot(
    slots: Sequence[Path],
    within: float,
    log: logging.Logger,
    known: Callable[[str], bool] = lambda _name: False,
) -> FolderLock:
    """Take a free slot, waiting for one if there is none.

    Args:
        slots: their folders.
        within: seconds to wait.
        log: told once that it waits.
        known: whether this host holds the state of the device of that name; such slots are tried first.

    Raises:
        ConfigError: none became free in time.
    """
    loop = asyncio.get_running_loop()
    end = loop.time() + within
    ordered = sorted(slots, key=lambda slot: (not known(slot.name), slot.name))
    waited = False
    while True:
        for slot in ordered:
            lock = FolderLock.take(slot)
            if lock is not None:
                return lock
        if loop.time() >= end:
            raise ConfigError(none_free(ordered))
        if not waited:
            waited = True
            log.warning("%d slots, all taken: waiting up to %.0f s for one", len(ordered), within)
        await asyncio.sleep(RETRY_SECONDS)


def none_free(slots: Sequence[Path]) -> str:
    """What is said where no slot became free in time."""
    if len(slots) == 1:
        return f"slot {slots[0]} is taken by another process: stop that one, or name another slot"
    return f"{slots[0].parent}: {len(slots)} slots, all taken; enrol more or stop a replica"
