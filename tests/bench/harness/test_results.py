"""The raw figures: append-only, never twice, and a write that was cut off is not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.harness.results import Results, read_json, write_json
from echelon.errors import ConfigError


def test_what_was_appended_is_there_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "a" / "raw.jsonl")
    results.append({"key": "x", "loss": 1.5})
    results.append({"key": "y", "loss": 2.5})
    again = Results(results.path)
    assert "x" in again
    assert "z" not in again
    assert again.of(["y", "z", "x"]) == [{"key": "y", "loss": 2.5}, {"key": "x", "loss": 1.5}]


def test_appending_leaves_what_stands_there_byte_for_byte(tmp_path: Path) -> None:
    results = Results(tmp_path / "raw.jsonl")
    results.append({"key": "x"})
    before = results.path.read_bytes()
    results.append({"key": "y"})
    assert results.path.read_bytes().startswith(before)


def test_a_run_is_reported_once(tmp_path: Path) -> None:
    results = Results(tmp_path / "raw.jsonl")
    results.append({"key": "x", "loss": 1.0})
    with pytest.raises(ConfigError, match="already"):
        results.append({"key": "x", "loss": 0.5})
    with results.path.open("a") as file:
        file.write(json.dumps({"key": "x", "loss": 0.5}) + "\n")
    with pytest.raises(ConfigError, match="second result"):
        Results(results.path)


def test_a_line_that_a_crash_cut_off_is_run_again(tmp_path: Path) -> None:
    results = Results(tmp_path / "raw.jsonl")
    results.append({"key": "x"})
    with results.path.open("a") as file:
        file.write('{"key":"y","lo')
    cut = results.path.read_bytes()
    again = Results(results.path)
    assert "y" not in again
    assert results.path.read_bytes() == cut  # who reads while another writes takes nothing away
    again.append({"key": "y"})
    assert set(Results(results.path).lines) == {"x", "y"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "raw.jsonl"
    path.write_text('{"key":"x"}\n{"loss":1}\n')
    with pytest.raises(ConfigError, match=r"raw\.jsonl:2"):
        Results(path)


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the cost model .*cannot be read"):
        read_json(tmp_path / "none.json", "the cost model")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_json(tmp_path / "bad.json", "the cost model")
    write_json(tmp_path / "good.json", {"a": 1})
    assert read_json(tmp_path / "good.json", "a file") == {"a": 1}
