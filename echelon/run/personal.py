"""A device's own adapter: A of a commit with the B that the device trained and keeps in its state."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from echelon.actors.state import StateStore
from echelon.adapters.exported import exported_files, personal_layout
from echelon.adapters.registry import FORMS
from echelon.errors import ConfigError, StateError
from echelon.messages.adapter import Vector
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import stored
from echelon.private import private_folder, write_private
from echelon.rounds.device.snapshot import left_by_job
from echelon.training.state import TrainerState

STATE_FILE = "state.db"
"""Of a device that is a service, in the folder of its name."""


@dataclass(frozen=True)
class OwnPart:
    """Whose part is asked for, and where its state is.

    Attributes:
        device: its name.
        path: the state's file, or the folder in which a device keeps it.
    """

    device: str
    path: Path

    @classmethod
    def of(cls, device: str, given: Path | None, source: str) -> OwnPart:
        """Where a device's state lies.

        Args:
            device: its name.
            given: the file or folder that the user named; None: that of a run folder.
            source: the run, as the user named it.

        Raises:
            ConfigError: there is no such file.
        """
        place = Path(source) / "state" / f"{device}.db" if given is None else given
        found = next(
            (one for one in (place, place / STATE_FILE, place / device / STATE_FILE) if one.is_file()), None
        )
        if found is None:
            raise ConfigError(
                f"--device {device}: there is no state in {place}: name the device's state file or folder with "
                "--state, on the device's own machine"
            )
        return cls(device, found)

    def read(self, manifest: RunManifest) -> Vector:
        """What stays on the device, float32[p].

        Raises:
            ConfigError: all of the run's adapter travels, or the device has trained nothing yet.
            StateError: the state is of another run or device, or is damaged.
        """
        terms = manifest.adapter
        own = None if terms is None else personal_layout(terms)
        if own is None:
            raise ConfigError(
                f"--device {self.device}: nothing of this run's adapter stays on devices; leave --device out"
            )
        vectors = self._vectors(manifest.run_id + self.device.encode())
        with stored(f"state file {self.path}"):
            left = None if vectors is None else left_by_job(vectors)
        if left is None:
            raise ConfigError(f"--device {self.device}: it has trained nothing yet, so its part is 0")
        return TrainerState.from_bytes(left, manifest.adapter_layout().dim + own.dim, own.dim).personal

    def _vectors(self, owner: bytes) -> bytes | None:
        store = StateStore(self.path, owner)
        try:
            return store.vectors()
        except sqlite3.DatabaseError as error:
            raise StateError(
                f"state file {self.path} is damaged ({error}): take a copy from before"
            ) from error
        finally:
            store.close()


def is_personal(manifest: RunManifest) -> bool:
    """Whether a part of the run's adapter stays on devices."""
    return manifest.adapter is not None and FORMS[manifest.adapter.kind].personal


def write_own(folder: Path, manifest: RunManifest, vector: Vector, personal: Vector) -> None:
    """Write a device's own adapter as PEFT's two files, for their owner alone.

    There is no model card, which is made to be published, and so `echelon push` refuses the folder.

    Args:
        folder: where to; made if it is missing.
        manifest: of the run.
        vector: the adapter of a commit, float32[d].
        personal: what stays on the device, float32[p].

    Raises:
        OSError: it cannot be written.
    """
    private_folder(folder)
    for name, data in exported_files(manifest, vector, personal).items():
        write_private(folder / name, data)
