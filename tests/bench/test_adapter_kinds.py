"""The table of kinds of adapters is that of the kept figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from bench.adapter_kinds import ARMS, rows, settings

ROOT = Path(__file__).resolve().parents[2]


def kept() -> dict[str, dict[str, Any]]:
    """Figures of every arm, by its name; an arm that was measured by itself stands in a file of its own."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((ROOT / "bench" / "results").glob("adapter_kinds*.json")):
        result = json.loads(path.read_text())
        assert result["command"].startswith("python -m bench.adapter_kinds")
        for name, figures in result["figures"].items():
            assert found.setdefault(name, figures) == figures, name  # one seed, virtual time: the same again
    return found


def test_every_arm_is_measured_and_stands_on_the_page_as_it_was_measured() -> None:
    figures = kept()
    assert set(figures) == set(ARMS)
    page = (ROOT / "docs" / "adapters.md").read_text()
    assert [row for row in rows(figures) if row not in page] == []
    assert all(one["audit_ok"] for one in figures.values())


def test_all_arms_differ_in_the_adapter_alone() -> None:
    fields = [settings(arm, 2).model_dump(exclude={"adapter"}) for arm in ARMS.values()]
    assert all(one == fields[0] for one in fields)
