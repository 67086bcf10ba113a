"""Beside Flower: what a client reads is what the device of the same place trains on, and figures make the table."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bench.flower_lora import QUICKSTART, SAME, Both, ours, section, watched
from echelon.config.run import load
from echelon.messages.adapter import CONFIG_FILE, WEIGHTS_FILE, vector_from_files

SMALL = (
    *SAME, "model.model=echelon:micro", "training.batch_size=2", "training.sequence_length=16", "sync.steps=2",
    "adapter.rank=2", "budget.commits=1", "compute.workers=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def both() -> Both:
    return Both(load(QUICKSTART, SMALL))


def test_the_job_has_each_devices_blocks_in_its_order_and_the_first_weights(
    both: Both, tmp_path: Path
) -> None:
    job = both.write_job(tmp_path, 0.5)
    assert (job["clients"], job["rounds"], job["steps"], job["batch"], job["mu"]) == (8, 1, 2, 2, 0.5)
    files = {name: (tmp_path / name).read_bytes() for name in (WEIGHTS_FILE, CONFIG_FILE)}
    np.testing.assert_array_equal(vector_from_files(files)[2], both.learner.initial_adapter())
    with np.load(job["blocks"]) as stored:
        for place, (boundary, device) in enumerate(both.devices):
            data = both.learner.boundary_data(boundary).training[device]
            chosen = both.learner._device_data(device).order.take(0, 4)
            np.testing.assert_array_equal(stored[f"tokens{place}"], data.tokens[chosen])
            np.testing.assert_array_equal(stored[f"counted{place}"], data.counted[chosen])
    assert json.loads((tmp_path / "job.json").read_text())["optimizer"]["lr"] == both.settings.training.lr


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"ended with 3:\nno luck"):
        watched(["sh", "-c", "echo no luck; exit 3"], tmp_path / "log")


@pytest.mark.slow
def test_a_run_gives_its_figures_and_they_make_the_section(both: Both, tmp_path: Path) -> None:
    found = ours(both, SMALL, tmp_path / "ours")
    assert found["tokens"] == pytest.approx(both.tokens, rel=0.02)
    assert 0 < found["loss"] < both.loss(both.learner.initial_adapter()) + 0.1
    assert found["out"] < found["devices_sent"], "two sums of four devices each, against eight uploads"
    assert found["cpu_s"] > 0
    flower = found | {"flwr": "1.0"}
    turn = {"training_cpu_s": 3.0} | {arm: {"flower": flower, "ours": found} for arm in ("fedavg", "fedprox")}
    figures = {"devices": 8, "rounds": 1, "steps": 2, "base_loss": 5.0, "turns": [turn]}
    text = section({"figures": figures})
    assert text.count("\n| ") == 5
    assert "Flower 1.0 under its own simulation" in text
