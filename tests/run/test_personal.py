"""A device's own part is read from its state, or it is said why not."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest

from echelon.actors.state import StateStore
from echelon.errors import ConfigError, EchelonError, StateError
from echelon.messages.adapter import AdapterLayout
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms, RunManifest
from echelon.run.personal import OwnPart, is_personal, write_own
from echelon.training.state import TrainerState
from tests.worlds.boundary_world import manifest_for

A, B = "m.q.lora_A.weight", "m.q.lora_B.weight"


def manifest(kind: AdapterKind | None = AdapterKind.FEDSA) -> RunManifest:
    files, travels = AdapterLayout.of({A: (2, 3), B: (4, 2)}), AdapterLayout.of({A: (2, 3)})
    terms = None if kind is None else AdapterTerms(kind=kind, seed=1, files=files.json.decode())
    return manifest_for().model_copy(
        update={"layout": travels.json.decode(), "adapter": terms, "adapter_config": "{}"}
    )


def keep(path: Path, left: bytes | None, *, vectors: bytes | None = None) -> None:
    """A state of the device d0, with what its newest job left."""
    store = StateStore(path, manifest().run_id + b"d0")
    found = msgpack.packb([None, None, None, left]) if vectors is None else vectors
    store.commit(snapshot=b"", vectors=found)
    store.close()


def left(own: np.ndarray) -> bytes:
    moments = np.zeros(14, np.float32)
    return TrainerState(moments, moments, 1, 1, own).to_bytes()


def test_the_own_part_is_found_in_a_file_a_folder_and_a_run_folder(tmp_path: Path) -> None:
    own = np.arange(8, dtype=np.float32)
    for place in ("run/state/d0.db", "service/state.db", "slots/d0/state.db"):
        (tmp_path / place).parent.mkdir(parents=True)
        keep(tmp_path / place, left(own))
    for given, source in (
        (None, "run"),
        ("run/state/d0.db", "elsewhere"),
        ("service", "elsewhere"),
        ("slots", "elsewhere"),
    ):
        part = OwnPart.of("d0", None if given is None else tmp_path / given, str(tmp_path / source))
        assert part.read(manifest()).tobytes() == own.tobytes()


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no state in"):
        OwnPart.of("d0", None, str(tmp_path))
    path = tmp_path / "state.db"
    keep(path, None)
    part = OwnPart("d0", path)
    with pytest.raises(ConfigError, match="it has trained nothing yet"):
        part.read(manifest())
    for kind in (None, AdapterKind.FFA):
        assert not is_personal(manifest(kind))
        with pytest.raises(ConfigError, match="nothing of this run's adapter stays on devices"):
            part.read(manifest(kind))
    with pytest.raises(StateError, match="belongs to another run or actor"):
        OwnPart("d1", path).read(manifest())
    keep(path, left(np.zeros(7, np.float32)))
    with pytest.raises(StateError, match="belongs to another adapter or version"):
        part.read(manifest())
    keep(path, None, vectors=b"\xc1")
    with pytest.raises(StateError, match="state file"):
        part.read(manifest())
    keep(path, left(np.zeros(8, np.float32)))
    data = path.read_bytes()
    for damage in (b"no database at all" * 300, data[:100] + bytes(len(data) - 100)):
        path.write_bytes(damage)
        with pytest.raises(EchelonError):
            part.read(manifest())


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    write_own(folder, manifest(), np.zeros(6, np.float32), np.ones(8, np.float32))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "adapter_config.json": 0o600,
        "adapter_model.safetensors": 0o600,
    }
