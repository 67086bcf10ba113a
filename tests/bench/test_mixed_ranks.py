"""The table of mixed ranks is that of the kept figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

from bench.mixed_ranks import ARMS, rows, settings

ROOT = Path(__file__).resolve().parents[2]


def test_every_arm_stands_on_the_page_as_it_was_measured() -> None:
    result = json.loads((ROOT / "bench" / "results" / "mixed_ranks.json").read_text())
    assert result["command"].startswith("python -m bench.mixed_ranks")
    figures = result["figures"]
    assert set(figures) == set(ARMS)
    page = (ROOT / "docs" / "adapters.md").read_text()
    assert [row for row in rows(figures) if row not in page] == []
    assert all(one["audit_ok"] for seeds in figures.values() for one in seeds.values())


def test_all_arms_differ_in_ranks_alone() -> None:
    made = [settings(ranks, 2, 1) for ranks in ARMS.values()]
    fields = [one.model_dump(exclude={"adapter", "boundaries"}) for one in made]
    assert all(one == fields[0] for one in fields)
    assert {one.adapter.alpha / one.adapter.rank for one in made} == {2.0}
    assert [len(one.boundaries[0].device_list()) for one in made] == [8, 8, 8]
