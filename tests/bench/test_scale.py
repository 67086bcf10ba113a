"""The benchmark of scale: what it measures, what it fits, and that the charts in docs are of the committed figures."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

import pytest

from bench.scale import Point, exponent, fit, key_of, measure, settings_of, steady, write_texts

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def plots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("plot_scale", ROOT / "scripts" / "plot_scale.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_point_is_measured_on_a_run_that_verifies() -> None:
    found = measure(Point(devices=12, cohort=4, boundaries=2, commits=1))
    assert found["audit_ok"]
    assert found["cohorts"] == [4]
    assert found["windows"] >= 4
    assert 0 < found["window_cpu_s"] < found["cpu_s"]
    assert found["window_written_bytes"] > 0
    # Six devices of a boundary each read all of its `control` and `model`.
    assert found["window_delivered_bytes"] > found["window_written_bytes"]
    assert found["final_loss"] < found["base_loss"]
    assert found["jobs"] >= 12


@pytest.mark.slow
def test_a_point_and_its_figures_have_one_key() -> None:
    point = Point(devices=6, cohort=3, commits=1, sweep="cohort")
    assert key_of(measure(point)) == key_of(asdict(point))
    assert key_of(asdict(point)) != key_of(asdict(Point(devices=6, cohort=4, commits=1, sweep="cohort")))


def test_devices_are_dealt_to_boundaries_and_read_texts_of_their_own(tmp_path: Path) -> None:
    settings = settings_of(Point(devices=10, cohort=3, boundaries=3, learner="lora"), tmp_path)
    assert [len(boundary.device_list()) for boundary in settings.boundaries] == [4, 3, 3]
    lines = [(tmp_path / f"b{number}.jsonl").read_text().splitlines() for number in range(3)]
    texts = [json.loads(line)["text"] for part in lines for line in part]
    assert len(set(texts)) > 0.95 * len(texts)
    assert all(len(part) > 4 for part in lines)
    with pytest.raises(SystemExit, match="too few"):
        write_texts(tmp_path, [10_000_000])


def test_fits_find_the_law_that_made_the_points() -> None:
    points = [
        {"x": float(x), "y": 2.0 + 0.5 * x + 0.25 * x * x, "z": 3.0 + 0.1 * x} for x in (8, 16, 32, 64, 128)
    ]
    parabola = fit(points, "x", "y", 2)
    assert parabola["coefficients"] == pytest.approx([2.0, 0.5, 0.25])
    assert parabola["worst_relative_error"] < 1e-9
    assert fit(points, "x", "y", 1)["worst_relative_error"] > 0.1
    assert fit(points, "x", "z", 1)["coefficients"] == pytest.approx([3.0, 0.1])
    assert 1.9 < exponent(points, "x", "y") < 2.0


def test_windows_count_once_every_boundary_has_closed_its_first() -> None:
    closed = [(name, float(k), float(k), 4) for k, name in enumerate("aabab")]
    assert [at for _, at, *_ in steady(closed)] == [2.0, 3.0, 4.0]
    with pytest.raises(SystemExit, match="too few windows"):
        steady([("a", 0.0, 0.0, 4), ("a", 1.0, 1.0, 4), ("b", 2.0, 2.0, 4)])


def test_the_charts_in_docs_show_the_committed_figures(plots: ModuleType) -> None:
    result = json.loads((ROOT / "bench" / "results" / "scale.json").read_text(encoding="utf-8"))
    for name in plots.CHARTS:
        committed = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert committed == plots.draw(result, name), "run python scripts/plot_scale.py"
