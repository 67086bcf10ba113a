"""Trust in a whole federation: honest devices are let in, and one whose model does something else is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from echelon.messages.boundary import Cohort
from echelon.training.split.device_worker import DeviceStart, DeviceWorker
from tests.run.runs import Outcome, run
from tests.run.splits import check, refused, split_federation

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def cohorts(outcome: Outcome) -> list[set[str]]:
    return [
        {member.device for member in cohort.members} for cohort in outcome.messages("a", "control", Cohort)
    ]


def test_a_device_whose_weights_are_noise_is_kept_out_and_the_honest_are_not(monkeypatch: Any) -> None:
    start = DeviceWorker.start

    def noisy(self: DeviceWorker, task: DeviceStart) -> bytes:
        if self.device == "a-7":
            noise = np.random.default_rng(task.job).normal(0, 0.2, task.start.size).astype(np.float32)
            task = replace(task, start=task.start + noise)
        return start(self, task)

    monkeypatch.setattr(DeviceWorker, "start", noisy)
    outcome = run(split_federation(devices=8, edges=2, commits=2, split={"probes": 16, "encodings": {}}))
    check(outcome)
    honest = {f"a-{number}" for number in range(7)}
    assert all(cohort == honest for cohort in cohorts(outcome))
    standings = outcome.summary["standings"]["a"]
    assert standings["out"] == ["a-7"]
    assert all(standings["trust"][device] == 1_000_000 for device in honest)
    letters = refused(outcome)
    assert letters
    assert set(letters) == {("checkin", "low-trust")}
    # What the models did on the probes stays in the boundary.
    assert len(outcome.records("a", "behaviour")) >= 16
    assert "behaviour" not in outcome.topics["exchange"]
