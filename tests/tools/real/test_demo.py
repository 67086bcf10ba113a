"""The demonstration with a real model on real text, as the recipe runs it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.nightly
@pytest.mark.timeout(5400)  # a quarter of an hour on two idle cores
def test_a_pretrained_model_learns_from_speeches_in_both_boundaries():
    subprocess.run([ROOT / "justw", "demo-real"], cwd=ROOT, check=True)
    summary = json.loads((ROOT / "runs/real/summary.json").read_text())
    for boundary in ("founding", "modern"):
        assert summary["final_loss"][boundary] < summary["base_loss"][boundary]
    assert summary["audit"]["ok"]
