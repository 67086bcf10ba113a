"""The section about split training: traffic, trust and clusters; and nothing of it where a run was not split."""

from __future__ import annotations

import json
from pathlib import Path

from echelon.report.data import load
from echelon.report.page import render

LINES = [
    {"kind": "split", "t": 1.0, "boundary": "a", "up": 1000, "down": 900},
    {"kind": "split", "t": 2.0, "boundary": "a", "up": 2_000_000, "down": 1_800_000},
    {
        "kind": "standings", "t": 1.5, "boundary": "a", "clusters": {"a-0": 0, "a-1": 1, "a<2": 1},
        "trust": {"a-0": 1_000_000, "a-1": 250_000, "a<2": 900_000}, "out": ["a-1"],
    },
    {
        "kind": "standings", "t": 2.5, "boundary": "a", "clusters": {"a-0": 0, "a-1": 1, "a<2": 1},
        "trust": {"a-0": 1_000_000, "a-1": 350_000, "a<2": 900_000}, "out": ["a-1"],
    },
]  # fmt: skip


def page(folder: Path, lines: list[dict[str, object]]) -> str:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return render(load(folder))


def test_traffic_trust_and_clusters_are_shown(tmp_path: Path) -> None:
    html = page(tmp_path, LINES)
    assert "Split training" in html
    assert "Traffic between devices and edges" in html
    assert "a, cluster 0" in html
    assert "a, cluster 1" in html
    assert '<span class="pill bad">a-1 0.35</span>' in html
    assert "a&lt;2" in html
    assert "a<2" not in html


def test_devices_that_chose_the_same_encodings_are_in_one_row_of_their_newest_choice(tmp_path: Path) -> None:
    def line(t: float, device: str, **streams: str) -> dict[str, object]:
        named = {stream.replace("_", "."): name for stream, name in streams.items()}
        return {"kind": "encodings", "t": t, "boundary": "a", "device": device, "streams": named}

    chosen = {"up_hidden": "int8", "down_hidden": "int8", "up_gradient": "sketch 3 x 11"}
    html = page(
        tmp_path, [line(1.0, "a-0", up_hidden="bf16"), line(2.0, "a-0", **chosen), line(3.0, "a<1", **chosen)]
    )
    row = "".join(f"<td>{cell}</td>" for cell in ("a-0, a&lt;1", "int8", "int8", "sketch 3 x 11", "as set"))
    assert f"<tr>{row}</tr>" in html
    assert "<td>bf16</td>" not in html


def test_a_run_that_was_not_split_has_no_such_section(tmp_path: Path) -> None:
    html = page(tmp_path, [{"kind": "window", "t": 1.0, "boundary": "a", "window": 0, "outcome": "closed"}])
    assert "Split training" not in html
