"""`--from`: a run starts where another one ended, its terms name that one, and the audit shows the chain."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from echelon.messages.adapter import vector_from_files
from tests.cli.commands import write

Cli = Callable[..., Result]


def run(cli: Cli, folder: Path, *more: str | Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    result = cli("run", write(folder, **changes), "--out", folder / "out", "--json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


def refused(cli: Cli, folder: Path, *more: str | Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    result = cli("run", write(folder, **changes), "--out", folder / "out", *more)
    assert result.exit_code == 2, result.output
    assert not (folder / "out").exists()
    return " ".join(result.stderr.split())


@pytest.mark.slow
def test_a_run_goes_on_from_a_finished_one(cli: Cli, tmp_path: Path) -> None:
    first = run(cli, tmp_path / "first")
    second = run(cli, tmp_path / "second", "--from", tmp_path / "first" / "out")
    assert second["parent"] == {name: first[name] for name in ("genesis_sha256", "adapter_sha256")}
    assert second["base_loss"] == first["final_loss"]
    assert second["final_loss"]["overall"] < first["final_loss"]["overall"]
    assert "parent" not in first


@pytest.mark.slow
def test_the_audit_names_the_parent_and_verifies_the_chain(cli: Cli, tmp_path: Path) -> None:
    outs = [tmp_path / name / "out" for name in ("first", "second", "third")]
    first = run(cli, tmp_path / "first")
    second = run(cli, tmp_path / "second", "--from", outs[0])
    run(cli, tmp_path / "third", "--from", outs[1])
    alone = cli("audit", "verify", outs[2])
    assert alone.exit_code == 0
    assert f"parent   genesis {second['genesis_sha256']}" in alone.stdout
    assert "--parent" in alone.stdout
    chain = cli("audit", "verify", outs[2], "--parent", outs[1], "--parent", outs[0])
    assert chain.exit_code == 0, chain.stdout
    assert f"commit 3 of 3 of {outs[1]}, genesis {second['genesis_sha256']}" in chain.stdout
    assert f"commit 3 of 3 of {outs[0]}, genesis {first['genesis_sha256']}" in chain.stdout
    plain = json.loads(
        cli("audit", "verify", outs[2], "--json", "--parent", outs[1], "--parent", outs[0]).stdout
    )
    assert plain["parent"]["genesis_sha256"] == second["genesis_sha256"]
    assert [one["commit"] for one in plain["chain"]] == [3, 3]
    assert "parent" not in json.loads(cli("audit", "verify", outs[0], "--json").stdout)


@pytest.mark.slow
def test_another_run_is_no_parent(cli: Cli, tmp_path: Path) -> None:
    run(cli, tmp_path / "first")
    run(cli, tmp_path / "other", seed=2)
    run(cli, tmp_path / "second", "--from", tmp_path / "first" / "out")
    out = tmp_path / "second" / "out"
    found = cli("audit", "verify", out, "--parent", tmp_path / "other" / "out")
    assert found.exit_code == 1
    assert "error   parent: " in found.stdout
    assert "and the run names" in found.stdout
    too_many = cli("audit", "verify", tmp_path / "first" / "out", "--parent", out)
    assert too_many.exit_code == 2
    assert "starts from no other run" in " ".join(too_many.stderr.split())


@pytest.mark.slow
def test_a_damaged_parent_fails_the_chain(cli: Cli, tmp_path: Path) -> None:
    run(cli, tmp_path / "first")
    run(cli, tmp_path / "second", "--from", tmp_path / "first" / "out")
    weights = tmp_path / "first" / "out" / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    found = cli("audit", "verify", tmp_path / "second" / "out", "--parent", tmp_path / "first" / "out")
    assert found.exit_code == 1
    assert "does not verify" in found.stdout
    assert "does not verify" not in cli("audit", "verify", tmp_path / "second" / "out").stdout
    assert "is not the final adapter" in refused(
        cli, tmp_path / "third", "--from", tmp_path / "first" / "out"
    )


@pytest.mark.slow
def test_an_exported_adapter_starts_a_run_too(cli: Cli, tmp_path: Path) -> None:
    run(cli, tmp_path / "first")
    exported = cli("export", tmp_path / "first" / "out", "--commit", "1", "--out", tmp_path / "one", "--json")
    digest = json.loads(exported.stdout)["adapter_sha256"]
    second = run(cli, tmp_path / "second", "--from", tmp_path / "one")
    assert second["parent"]["adapter_sha256"] == digest
    out = tmp_path / "second" / "out"
    found = cli("audit", "verify", out, "--parent", tmp_path / "one")
    assert found.exit_code == 0, found.output
    assert f"parent   an adapter of {tmp_path / 'one'}" in found.stdout
    files = {path.name: path.read_bytes() for path in (out / "adapter").iterdir()}
    (tmp_path / "other").mkdir()
    for name, data in files.items():
        (tmp_path / "other" / name).write_bytes(data)
    assert vector_from_files(files)[2].size
    assert cli("audit", "verify", out, "--parent", tmp_path / "other").exit_code == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learner": {"kind": "quadratic", "dim": 24}}, "has shape"),
        ({"learner": {"kind": "quadratic", "dim": 16, "blocks": 2}}, "alone"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    run(cli, tmp_path / "first")
    out = tmp_path / "first" / "out" / "adapter"
    (out / "README.md").unlink()  # which names the base, and is refused first where that is another
    assert words in refused(cli, tmp_path / "second", "--from", out, **changes)


@pytest.mark.slow
def test_a_run_that_is_not_finished_is_no_start(cli: Cli, tmp_path: Path) -> None:
    run(cli, tmp_path / "first")
    exported = tmp_path / "exported"
    assert cli("audit", "export", tmp_path / "first" / "out", "--out", exported).exit_code == 0
    assert cli("run", write(tmp_path), "--out", tmp_path / "a", "--from", exported).exit_code == 0
    said = refused(cli, tmp_path / "second", "--from", tmp_path / "nothing")
    assert "there is no such file or folder" in said
    resumed = cli("run", "--resume", tmp_path / "first" / "out", "--from", exported)
    assert resumed.exit_code == 2
    assert "--from starts a new run" in " ".join(resumed.stderr.split())
