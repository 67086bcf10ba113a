"""The benchmark of many boundaries, and that docs/scale.md shows the committed figures."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from bench.boundaries import LATENCY_S, laws
from bench.scale import Point, exchange_of, measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scale_page", ROOT / "scripts" / "scale_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_federation_is_measured_on_a_run_that_verifies() -> None:
    found = measure(Point(devices=12, cohort=4, boundaries=3, commits=2, latency=LATENCY_S))
    assert found["audit_ok"]
    assert found["commits"] == 2
    # From the gate's announcement to the commit: to the broker, to the controller, and back.
    assert LATENCY_S <= found["commit_wait_s"] < 1.0
    assert found["commit_interval_s"] > 0
    assert set(found["commit_written_bytes"]) == {"delta", "global", "head", "witness"}
    # Every boundary reads every commit.
    assert found["commit_read_bytes"]["global"] >= 3 * found["commit_written_bytes"]["global"]


def test_bytes_are_those_of_the_exchange_by_family_of_topics() -> None:
    traffic = {
        "exchange a.gate delta.a out": 600,
        "exchange b.gate delta.b out": 300,
        "exchange controller delta.a in": 600,
        "exchange controller global out": 90,
        "a a.gate control in": 5,
    }
    assert exchange_of(traffic, 3) == {
        "commit_written_bytes": {"delta": 300.0, "global": 30.0},
        "commit_read_bytes": {"delta": 200.0},
    }


def test_the_laws_are_those_that_made_the_points() -> None:
    points = [
        {
            "boundaries": m,
            "commits": 2,
            "cpu_s": 2.0 * (1.0 + 0.1 * m),
            "commit_written_bytes": {"delta": 1400.0 * m},
            "commit_read_bytes": {"head": 300.0 * m * m},
        }
        for m in (3, 5, 10, 20)
    ]
    found = laws(points)
    assert found["written delta"]["coefficients"] == pytest.approx([0.0, 1400.0, 0.0], abs=1e-6)
    assert found["read head"]["coefficients"] == pytest.approx([0.0, 0.0, 300.0], abs=1e-6)
    assert found["cpu_s"]["coefficients"] == pytest.approx([1.0, 0.1, 0.0], abs=1e-9)


def test_the_page_shows_the_committed_figures(page: ModuleType) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.filled(text) == text, "python scripts/scale_page.py writes it again"


def test_a_larger_adapter_and_more_boundaries_are_more_bytes(page: ModuleType) -> None:
    small, large, many = (
        page.commit_bytes(10, 10**6),
        page.commit_bytes(10, 10**7),
        page.commit_bytes(100, 10**6),
    )
    assert all(a < b for a, b in zip(small, large, strict=True))
    assert all(a < b for a, b in zip(small, many, strict=True))
    written, read = large
    assert written > 10 * 2 * 10**7 + 4 * 10**7
    assert read > 10 * 2 * 10**7 + 10 * 4 * 10**7
