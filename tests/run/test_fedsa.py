"""Whole federations of FedSA-LoRA: B is looked for everywhere, A is audited, and both give what was reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.elsa_example import canaries, found_in
from echelon.adapters.exported import personal_layout
from echelon.audit.verify import verify
from echelon.compute.pool import spec_of
from echelon.jobs.training import TrainJob, TrainOutcome
from echelon.messages.adapter import Vector
from echelon.messages.boundary import Masked
from echelon.run.folder import prepare_folder
from echelon.run.personal import OwnPart
from echelon.run.recorder import Recorder
from echelon.training.local import TorchLearner
from echelon.training.state import TrainerState
from echelon.virtual_loop import run_virtual
from tests.run.runs import Outcome, Watched, recorder_for
from tests.run.test_kinds import settings


class Watcher:
    """Keeps every B that a job left, by device, and the states that jobs began with and ended with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left: dict[str, list[Vector]] = {}
        self.began: dict[str, list[bytes | None]] = {}
        self.ended: dict[str, list[bytes]] = {}
        train = TorchLearner.train

        def watched(learner: TorchLearner, job: TrainJob) -> TrainOutcome:
            done = train(learner, job)
            assert learner.adapter_terms is not None
            own = personal_layout(learner.adapter_terms)
            assert own is not None
            state = TrainerState.from_bytes(done.state, learner.dim + own.dim, own.dim)
            self.left.setdefault(job.data, []).append(state.personal)
            self.began.setdefault(job.data, []).append(job.state)
            self.ended.setdefault(job.data, []).append(done.state)
            return done

        monkeypatch.setattr(TorchLearner, "train", watched)

    def marks(self, device: str) -> set[bytes]:
        """Bytes of every B of a device, from three places of each."""
        return {mark for b in self.left[device] for mark in canaries(b.astype("<f4").tobytes())}


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_in(folder: Path, *, resume: bool = False) -> Outcome:
    made = settings(kind="fedsa")
    offset = prepare_folder(made, folder, resume=resume)
    recorder = Recorder(recorder_for(made).devices, folder / "metrics.jsonl", offset)
    if resume:
        recorder.reload()
    watched = Watched(made, folder, recorder, resume=resume)
    result = run_virtual(watched.run)
    assert watched.assembly is not None
    return Outcome(result, watched.assembly, watched.topics)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_b_is_in_its_own_devices_state_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, folder = Watcher(monkeypatch), tmp_path / "run"
    outcome = run_in(folder)
    devices = sorted(watcher.left)
    assert devices == ["a-0", "a-1", "a-2"]
    marks = {device: watcher.marks(device) for device in devices}
    everyone = sorted(set().union(*marks.values()))
    assert len(everyone) > 3 * 3 * len(devices) - 3

    # The search finds what is there: the newest B of each device, in its own state.
    files = files_of(folder)
    for device in devices:
        newest = canaries(watcher.left[device][-1].astype("<f4").tobytes())
        state = b"".join(files[name] for name in files if name.startswith(f"state/{device}.db"))
        assert found_in(newest, state) == set(newest), device
    # No record of any topic has it, and no file of the run but that state.
    records = [
        record.value for topics in outcome.topics.values() for held in topics.values() for record in held
    ]
    assert len(records) > 100
    assert found_in(everyone, b"".join(records)) == set()
    for name, data in files.items():
        owner = next((device for device in devices if name.startswith(f"state/{device}.db")), None)
        others = [mark for device in devices if device != owner for mark in marks[device]]
        assert found_in(others, data) == set(), name
    assert {"summary.json", "metrics.jsonl", "adapter/adapter_model.safetensors"} <= files.keys()
    for name in files:
        if name.startswith("state/"):
            assert (folder / name).stat().st_mode & 0o077 == 0, name

    check_a(outcome)
    manifest = outcome.assembly.manifest
    parts = {device: OwnPart.of(device, None, str(folder)).read(manifest) for device in devices}
    for device, part in parts.items():
        assert any(part.tobytes() == b.tobytes() for b in watcher.left[device][-3:])
    check_reported(outcome, parts)


class Killed(Exception):
    """The process ends here, at once."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("jobs", [5, 7])
def test_b_goes_on_where_it_was_stored_when_a_run_is_broken_off(
    jobs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher, folder = Watcher(monkeypatch), tmp_path / "run"
    train = TorchLearner.train

    def breaks(learner: TorchLearner, job: TrainJob) -> TrainOutcome:
        if sum(map(len, watcher.ended.values())) == jobs:
            raise Killed
        return train(learner, job)

    with monkeypatch.context() as patched:
        patched.setattr(TorchLearner, "train", breaks)
        with pytest.raises(Killed):
            run_in(folder)
    before = {device: (None, *states) for device, states in watcher.ended.items()}
    lives = {device: len(states) for device, states in watcher.began.items()}
    outcome = run_in(folder, resume=True)
    assert verify(outcome.topics["exchange"], genesis=bytes.fromhex(outcome.summary["genesis_sha256"])).ok
    went_on = 0
    for device, states in watcher.began.items():
        first = states[lives.get(device, 0)]
        # The state of its newest job, or, where the process ended before that was stored, of the one before.
        known = before.get(device, (None,))
        assert first in known[-2:]
        went_on += first is not None
    assert went_on
    assert outcome.drop > 0.005


def check_a(outcome: Outcome) -> None:
    """A is all that travels, and it is derived again bit for bit."""
    manifest = outcome.assembly.manifest
    assert all(".lora_A." in entry.key for entry in manifest.adapter_layout().entries)
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    report = verify(outcome.topics["exchange"], genesis=genesis)
    assert report.ok, report.findings
    dim = manifest.adapter_layout().dim
    lengths = {message.payload.length for message in outcome.messages("a", "masked", Masked)}
    assert len(lengths) == 1
    assert 4 * dim <= min(lengths) <= 8 * dim + 64


def check_reported(outcome: Outcome, parts: dict[str, Vector]) -> None:
    """The final loss is that of global A with each device's own B; with A alone nothing is won."""
    learner = TorchLearner(spec_of(settings(kind="fedsa")))
    adapter, before = outcome.result.adapter, outcome.summary["base_loss"]["a"]
    assert not np.array_equal(adapter, learner.initial_adapter())
    assert learner.evaluate_boundary("a", adapter).loss == pytest.approx(before, rel=1e-6)
    moments = np.zeros(learner._flat.trained, np.float32)
    states = {device: TrainerState(moments, moments, 0, 0, part).to_bytes() for device, part in parts.items()}
    found = learner.evaluate_boundary("a", adapter, states).loss
    assert outcome.summary["final_loss"]["a"] == pytest.approx(found, rel=1e-6)
    assert before - found > 0.01
