"""The benchmark of the split example: its search finds what is there, and its verdict says what does not hold."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from bench.elsa_example import CANARY, canaries, compare, faults, found_in, unsplit
from echelon.config.run import dump, load
from tests.run.splits import split_federation

ROOT = Path(__file__).resolve().parents[2]


def test_the_search_finds_a_canary_at_any_offset_and_no_other() -> None:
    rng = np.random.default_rng(0)
    hay = rng.bytes(10_007)
    for at in (*range(20), 5_003, len(hay) - CANARY):
        needle = hay[at : at + CANARY]
        assert found_in([needle, rng.bytes(CANARY)], hay) == {needle}
    alike = hay[:8] + rng.bytes(8)  # only the first half of it stands there
    assert found_in([alike], hay) == set()
    assert found_in([], hay) == set()
    assert found_in([alike], b"") == set()
    with pytest.raises(ValueError, match="16 bytes"):
        found_in([b"short"], hay)


def test_canaries_are_of_three_places_and_never_of_what_stands_everywhere() -> None:
    data = np.random.default_rng(1).bytes(400)
    assert canaries(data) == [data[:16], data[200:216], data[-16:]]
    assert canaries(bytes(400)) == []
    assert canaries(data[:15]) == []


def test_the_other_run_differs_in_the_edges_alone() -> None:
    settings = load(ROOT / "examples" / "elsa.yaml")
    plain = unsplit(settings)
    assert all(boundary.split is None for boundary in plain.boundaries)
    assert [b.data for b in plain.boundaries] == [b.data for b in settings.boundaries]
    same = {"boundaries", "name"}
    assert plain.model_dump(exclude=same) == settings.model_dump(exclude=same)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_small_federation_is_compared_and_every_figure_can_fail(tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(dump(split_federation()))
    figures: dict[str, Any] = compare(config, ("budget.commits=1",), tmp_path / "runs")
    assert faults(figures) == []
    assert figures["canaries"]["searched_for"] > 100
    for change, says in (
        (("split", "audit_ok", False), "audit of the split run"),
        (("unsplit", "commits", 0), "commits"),
        (("final_loss_apart", "overall", 0.02), "final loss of overall"),
        (("canaries", "in_the_exchange", 1), "stand on the exchange"),
        (("canaries", "found_when_planted", 0), "does not find"),
    ):
        spoilt = copy.deepcopy(figures)
        spoilt[change[0]][change[1]] = change[2]
        assert any(says in fault for fault in faults(spoilt)), says
    assert any("unlike" in fault for fault in faults({**figures, "fall_apart": 0.2}))


def test_the_committed_figures_hold() -> None:
    result = json.loads((ROOT / "bench" / "results" / "elsa_example.json").read_text())
    assert result["command"].startswith("python -m bench.elsa_example")
    assert result["figures"]["budget_commits"] == load(ROOT / "examples" / "elsa.yaml").budget.commits
    assert faults(result["figures"]) == []
