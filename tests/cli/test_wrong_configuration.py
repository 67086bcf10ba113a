"""Wrong configuration ends with exit code 2 and a message that tells what to change; nothing is left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.commands import process, settings, write

Cli = Callable[..., Result]


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def test_an_unknown_key_is_named(cli: Cli, tmp_path: Path) -> None:
    refused(
        cli("run", write(tmp_path, sync={"stepz": 3}), "--out", tmp_path / "out"),
        "sync.stepz is no setting; did you mean steps?",
    )
    assert not (tmp_path / "out").exists()


def test_a_floor_above_the_cohort_is_named(cli: Cli, tmp_path: Path) -> None:
    config = write(tmp_path, window={"cohort": 3}, secure={"k_min": 4})
    refused(
        cli("run", config, "--out", tmp_path / "out"),
        "window.cohort = 3",
        "secure.k_min",
        "raise window.cohort or lower the floor",
    )


def test_a_floor_above_the_number_of_devices_is_named(cli: Cli, tmp_path: Path) -> None:
    config = write(tmp_path, secure={"k_min": 5})
    refused(
        cli("run", config, "--out", tmp_path / "out"), "'a' has 4 devices", "Add devices or lower the floor"
    )


def test_an_overflow_of_the_ring_is_named_before_a_model_is_loaded(cli: Cli, tmp_path: Path) -> None:
    config = write(tmp_path, secure={"scale_bits": 30})
    result = cli("run", config, "--out", tmp_path / "out")
    refused(result, "the ring overflows", "lower scale_bits to 24")
    assert "loading model" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_two_devices_with_one_id_are_named(cli: Cli, tmp_path: Path) -> None:
    boundaries = settings()["boundaries"]
    boundaries[0]["devices"] = [{"id": "x"}, {"id": "y"}, {"id": "z"}]
    boundaries[1]["devices"] = [{"id": "p"}, {"id": "q"}, {"id": "x"}]
    refused(
        cli("run", write(tmp_path, boundaries=boundaries), "--out", tmp_path / "out"),
        "two devices are called 'x': give each a name of its own",
    )


def test_a_boundary_that_no_topic_can_be_named_after_is_refused(cli: Cli, tmp_path: Path) -> None:
    boundaries = settings()["boundaries"]
    boundaries[0]["name"] = "north.west"
    config = write(tmp_path, boundaries=boundaries)
    refused(
        cli("run", config, "--out", tmp_path / "out"), "north.west", "lower-case letters, digits and hyphens"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_folder_that_cannot_be_made_is_named(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(
        cli("run", write(tmp_path), "--out", tmp_path / "file" / "out"),
        f"{tmp_path / 'file' / 'out'} cannot be written (Not a directory): choose another with --out",
    )


def test_a_folder_that_holds_something_else_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    refused(cli("run", write(tmp_path), "--out", tmp_path / "out"), "is not empty", "--out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def torch_run(**changes: Any) -> dict[str, Any]:
    return {"learner": {"kind": "lora"}, "clock": "real", "compute": {"workers": 1}} | changes


@pytest.mark.slow
def test_an_unknown_model_is_named_and_the_folder_can_be_used_again(tmp_path: Path) -> None:
    config = write(tmp_path, **torch_run(model={"model": "./no-such-model"}))
    done = process("run", config, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert (
        "model './no-such-model' is not a folder; give a folder with config.json, or a model id"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_empty_data_is_named(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").write_text(" \n")
    boundaries = settings()["boundaries"]
    for boundary in boundaries:
        boundary["data"] = {"source": f"text:{tmp_path}/*.txt"}
    done = process("run", write(tmp_path, **torch_run(boundaries=boundaries)), "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert (
        "has no document to train on (left out: empty text: 5); name files or packages that have "
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_file_that_is_missing_is_named(cli: Cli, tmp_path: Path) -> None:
    refused(cli("run", tmp_path / "absent.yaml"), "absent.yaml cannot be read", "Check the path")


def test_no_run_file_at_all(cli: Cli) -> None:
    refused(cli("run"), "name a run file", "--resume DIR")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sync.steps", "write it as a.b=value"),
        ("sync.steps=0", "sync.steps: Input should be greater than or equal to 1"),
        ("boundaries.7.devices=4", "leads nowhere"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(
    cli: Cli, tmp_path: Path, override: str, words: str
) -> None:
    refused(cli("run", write(tmp_path), "--out", tmp_path / "out", "--set", override), words)


def test_an_unknown_option_ends_with_two(cli: Cli) -> None:
    assert cli("run", "--no-such-option").exit_code == 2
