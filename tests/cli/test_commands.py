"""The other commands: export, report, topics, keys, audit, help."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from typer.testing import Result

from echelon import __version__
from echelon.audit.export import read_topic
from echelon.audit.records import StoredRecord
from tests.cli.commands import ENVIRONMENT, process, write

Cli = Callable[..., Result]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands")
    done = process("run", write(folder), "--out", folder / "out", "--quiet")
    assert done.returncode == 0, done.stderr
    return folder / "out"


# ---- export --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_final_adapter_comes_out_of_the_exchange_byte_for_byte(
    cli: Cli, run_folder: Path, tmp_path: Path
) -> None:
    # Nothing but the exchange's log is there.
    alone = tmp_path / "alone"
    (alone / "brokers").mkdir(parents=True)
    for path in (run_folder / "brokers").glob("exchange.sqlite*"):
        shutil.copy(path, alone / "brokers")
    result = cli("export", alone, "--commit", "final", "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (run_folder / "adapter" / name).read_bytes()


@pytest.mark.slow
def test_any_commit_can_be_had(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    genesis = cli("export", run_folder, "--commit", "0", "--out", tmp_path / "0", "--json")
    first = cli("export", run_folder, "--commit", "1", "--out", tmp_path / "1", "--json")
    assert (json.loads(genesis.stdout)["commit"], json.loads(first.stdout)["commit"]) == (0, 1)
    assert all(
        (tensor == 0).all() for tensor in load_file(tmp_path / "0" / "adapter_model.safetensors").values()
    )
    lines = (json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines())
    digest = next(
        line["adapter_sha256"] for line in lines if line["kind"] == "commit" and line["commit"] == 1
    )
    assert json.loads(first.stdout)["adapter_sha256"] == digest


@pytest.mark.slow
def test_best_says_how_it_was_chosen(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    by_run = cli("export", run_folder, "--commit", "best", "--out", tmp_path / "run")
    assert by_run.exit_code == 0, by_run.output
    assert "the best by the run's own evaluations" in by_run.stdout
    # An auditor has no metrics, but the losses that crossed with the deltas.
    exported = tmp_path / "exported"
    assert cli("audit", "export", run_folder, exported).exit_code == 0
    by_log = cli("export", exported, "--commit", "best", "--out", tmp_path / "log")
    assert by_log.exit_code == 0, by_log.output
    assert "the best by the losses that crossed with the deltas" in by_log.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commit", "words"), [("9", "the log has commits 0 to 3"), ("newest", "best or final")]
)
def test_a_commit_that_is_not_there_is_named(
    cli: Cli, run_folder: Path, tmp_path: Path, commit: str, words: str
) -> None:
    result = cli("export", run_folder, "--commit", commit, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert words in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_export_overwrites_nothing(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = cli("export", run_folder, "--out", tmp_path)
    assert result.exit_code == 2
    assert "exists and is not empty" in result.stderr


def test_an_altered_log_gives_no_adapter(cli: Cli, run_folder: Path, tmp_path: Path) -> None:
    exported = tmp_path / "exported"
    assert cli("audit", "export", run_folder, exported).exit_code == 0
    file = exported / "global.records"
    with file.open("rb") as stream:
        records = [record for record in read_topic("global", stream) if isinstance(record, StoredRecord)]
    # Offsets and times are the broker's own; what was written is key, headers and value.
    longest = max(records, key=lambda record: len(record.value))
    data = bytearray(file.read_bytes())
    data[data.index(longest.value) + len(longest.value) // 2] ^= 1
    file.write_bytes(bytes(data))
    result = cli("export", exported, "--out", tmp_path / "out")
    assert result.exit_code == 1
    assert "the log does not verify" in result.stderr
    assert not (tmp_path / "out").exists()


# ---- report, topics, keys ------------------------------------------------------------------------


def test_report_writes_the_page_again(cli: Cli, run_folder: Path) -> None:
    (run_folder / "report.html").unlink()
    result = cli("report", run_folder)
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == run_folder / "report.html"
    assert "<html" in (run_folder / "report.html").read_text()


def test_report_of_something_else_is_refused(cli: Cli, tmp_path: Path) -> None:
    result = cli("report", tmp_path)
    assert result.exit_code == 2
    assert "neither summary.json nor metrics.jsonl" in result.stderr


def test_topics_marks_the_one_that_crosses(cli: Cli) -> None:
    result = cli("topics", "list")
    assert result.exit_code == 0
    crossing = [line for line in result.stdout.splitlines() if line.startswith("▶")]
    assert [line.split()[0] for line in crossing] == ["▶delta", "▶"]
    topics = json.loads(cli("topics", "list", "--json").stdout)
    assert [(t["plane"], t["name"]) for t in topics if t["crosses_boundary"]] == [("boundary", "delta")]
    assert {"global", "delta.{boundary}", "head.global", "head.delta.{boundary}", "witness.{name}"} == {
        t["name"] for t in topics if t["plane"] == "exchange"
    }


def test_keys_init_makes_the_keys_that_it_lists(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    result = cli("keys", "init", write(tmp_path), folder, "--json")
    assert result.exit_code == 0, result.output
    listed = {row["file"] for row in json.loads(result.stdout)}
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert listed == made
    assert len([name for name in made if "/devices/" in name]) == 8
    for name in made:
        if name.endswith(".pem"):
            assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_keys_are_never_overwritten(cli: Cli, tmp_path: Path) -> None:
    config = write(tmp_path)
    assert cli("keys", "init", config, tmp_path / "keys").exit_code == 0
    before = (tmp_path / "keys" / "operator.pem").read_bytes()
    result = cli("keys", "init", config, tmp_path / "keys")
    assert result.exit_code == 2
    assert "keys are never overwritten" in result.stderr
    assert (tmp_path / "keys" / "operator.pem").read_bytes() == before


# ---- the command line itself ---------------------------------------------------------------------


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"echelon {__version__}\n"


def test_help_names_every_command(cli: Cli) -> None:
    text = cli("--help").stdout
    for command in ("run", "audit", "export", "report", "topics", "keys"):
        assert command in text
    assert {"verify", "replay", "export", "report"} <= set(cli("audit", "--help").stdout.split())


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["topics", "list"], ["audit", "verify", "/nowhere"]]
)
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom echelon.cli import main\n"
        f"sys.argv = ['echelon', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('loaded', sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("loaded []\n")


THREADS = """
import sys
from echelon.cli import main
sys.argv = ["echelon", "--version"]
try:
    main()
except SystemExit:
    import numpy  # as any command would
    from threadpoolctl import threadpool_info
    print([pool["num_threads"] for pool in threadpool_info() if pool["internal_api"] == "openblas"])
"""


@pytest.mark.slow
@pytest.mark.parametrize(("set_by_user", "threads"), [(None, 1), ("2", 2)])
def test_linear_algebra_of_numpy_has_one_thread_unless_the_user_says_otherwise(
    set_by_user: str | None, threads: int
) -> None:
    environment = {name: value for name, value in ENVIRONMENT.items() if not name.endswith("_NUM_THREADS")}
    if set_by_user is not None:
        environment["OPENBLAS_NUM_THREADS"] = set_by_user
    done = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout.splitlines()[-1])
    if not found:
        pytest.skip("numpy's linear algebra is not OpenBLAS here")
    assert set(found) == {min(threads, os.cpu_count() or 1)}
