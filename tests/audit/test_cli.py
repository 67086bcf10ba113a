from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from echelon.audit.note import Checkpoint, origin
from echelon.bus import Outgoing, open_bus, sqlite_url
from echelon.cli.audit import app
from echelon.messages.adapter import WEIGHTS_FILE, adapter_files
from tests.audit.synthetic import CONTROLLER, RUN, Exchange, scenario

RUN_A = scenario()


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def write_run(folder: Path, exchange: Exchange) -> Path:
    """A run folder with the exchange in the embedded bus's own file."""
    path = folder / "brokers" / "exchange.sqlite"
    path.parent.mkdir(parents=True)

    async def publish() -> None:
        async with await open_bus(sqlite_url(path)) as bus:
            for topic, records in exchange.topics.items():
                await bus.create_topic(topic)
                await bus.publish_many([Outgoing(topic, r.value, r.key, r.headers) for r in records])

    asyncio.run(publish())
    (folder / "adapter").mkdir()
    config = exchange.manifest.adapter_config.encode()
    for name, data in adapter_files(
        exchange.manifest.adapter_layout(), config, exchange.core.adapter
    ).items():
        (folder / "adapter" / name).write_bytes(data)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "run", RUN_A)


def sql(run: Path, statement: str, *values: object) -> None:
    database = sqlite3.connect(run / "brokers" / "exchange.sqlite")
    database.execute(statement, values)
    database.commit()
    database.close()


def test_a_run_folder_verifies(run: Path) -> None:
    result = invoke("verify", run, "--genesis", RUN_A.genesis_sha256.hex())
    assert result.exit_code == 0, result.output
    assert "VERIFIED" in result.output
    assert "NOT" not in result.output
    assert invoke("verify", run / "brokers" / "exchange.sqlite").exit_code == 0
    assert invoke("verify", sqlite_url(run / "brokers" / "exchange.sqlite")).exit_code == 0


def test_json_has_everything(run: Path) -> None:
    result = invoke("verify", run, "--json")
    report = json.loads(result.output)
    assert (report["ok"], report["errors"], len(report["commits"])) == (True, 0, 4)
    assert report["genesis_sha256"] == RUN_A.genesis_sha256.hex()
    assert report["topics"]["delta.b"]["manifests"] == 6
    assert {f["code"] for f in report["findings"]} == {"unpinned", "void"}


def test_another_genesis_than_the_pinned_fails(run: Path) -> None:
    assert invoke("verify", run, "--genesis", "00" * 32).exit_code == 1
    assert invoke("verify", run, "--genesis", "xyz").exit_code == 2


@pytest.mark.parametrize("column", ["key", "value", "headers"])
def test_a_byte_changed_in_the_file_is_found_and_named(run: Path, column: str) -> None:
    database = sqlite3.connect(run / "brokers" / "exchange.sqlite")
    where = "WHERE topic = 'delta.a' AND off = 2"
    (old,) = database.execute(f"SELECT {column} FROM records {where}").fetchone()
    raw = bytearray(old.encode() if isinstance(old, str) else old)
    raw[len(raw) // 2] ^= 1
    database.execute(
        f"UPDATE records SET {column} = ? {where}", (raw.decode() if column == "headers" else bytes(raw),)
    )
    database.commit()
    database.close()
    result = invoke("verify", run)
    assert result.exit_code == 1
    assert "delta.a@2" in result.output
    assert "NOT VERIFIED" in result.output


@pytest.mark.slow
@pytest.mark.parametrize(("topic", "off"), [("global", 0), ("global", 13), ("delta.a", 7), ("delta.b", 5)])
def test_a_deleted_row_is_found(run: Path, topic: str, off: int) -> None:
    sql(run, "DELETE FROM records WHERE topic = ? AND off = ?", topic, off)
    result = invoke("verify", run)
    assert result.exit_code == 1
    assert topic in result.output


def test_a_repeated_record_is_told_and_verifies(run: Path) -> None:
    sql(
        run,
        "INSERT INTO records SELECT topic, part, 14, key, headers, ts, value FROM records WHERE topic = ? AND off = 3",
        "global",
    )
    result = invoke("verify", run)
    assert result.exit_code == 0
    assert "global@14  repeat" in result.output


def test_a_changed_adapter_file_fails(run: Path) -> None:
    file = run / "adapter" / WEIGHTS_FILE
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    result = invoke("verify", run)
    assert result.exit_code == 1
    assert WEIGHTS_FILE in result.output


def test_an_open_run(tmp_path: Path) -> None:
    exchange = scenario()
    del exchange.main.records[-1]
    run = write_run(tmp_path / "run", exchange)
    assert invoke("verify", run).exit_code == 1
    assert invoke("verify", run, "--allow-open").exit_code == 0


def test_replay_from_the_exchange_alone(run: Path, tmp_path: Path) -> None:
    source = run / "brokers" / "exchange.sqlite"
    result = invoke("replay", source, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    for name in ("adapter_config.json", WEIGHTS_FILE):
        assert (tmp_path / "out" / name).read_bytes() == (run / "adapter" / name).read_bytes()
    second = json.loads(invoke("replay", source, "--commit", 2, "--json").output)
    assert second["adapter_sha256"] == second["commits"][2]["adapter_sha256"]
    assert invoke("replay", source, "--commit", 9).exit_code == 2
    assert invoke("replay", source, "--out", tmp_path / "out").exit_code == 2, "it writes over nothing"
    sql(run, "DELETE FROM records WHERE topic = 'delta.a' AND off = 0")
    assert invoke("replay", source).exit_code == 1


@pytest.mark.slow
def test_export_and_verify_elsewhere(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "export"
    assert invoke("export", run, out).exit_code == 0
    assert invoke("verify", out, "--genesis", RUN_A.genesis_sha256.hex()).exit_code == 0
    assert invoke("replay", out).exit_code == 0
    assert invoke("export", run, out).exit_code == 2
    (out / "delta.b.records").unlink()
    result = invoke("verify", out)
    assert result.exit_code == 1
    assert "delta.b" in result.output
    (out / "index.json").write_text("{}")
    assert invoke("verify", out).exit_code == 2


def test_the_report_is_for_people(run: Path) -> None:
    result = invoke("report", run)
    assert result.exit_code == 0
    for text in ("Logs", "Commits", "Boundaries", "delta.a", "a/3", "floor, stale", "VERIFIED"):
        assert text in result.output


@pytest.mark.slow
def test_a_checkpoint(run: Path, tmp_path: Path) -> None:
    root = bytes.fromhex(json.loads(invoke("verify", run, "--json").output)["topics"]["global"]["root"])
    name = origin(RUN, "global")
    for size, code in ((8, 0), (9, 1)):
        note = tmp_path / f"{size}.note"
        note.write_bytes(Checkpoint(name, size, root).sign(name, CONTROLLER).encode())
        assert invoke("verify", run, "--checkpoint", note).exit_code == code
    assert invoke("verify", run, "--checkpoint", tmp_path / "none").exit_code == 2


@pytest.mark.parametrize("source", ["/nowhere/at/all", "kafka://host:9092", "ftp://x"])
def test_wrong_sources_end_with_two(source: str) -> None:
    assert invoke("verify", source).exit_code == 2


def test_other_folders_and_files_end_with_two(tmp_path: Path) -> None:
    assert invoke("verify", tmp_path).exit_code == 2
    (tmp_path / "x.sqlite").write_bytes(b"not a database at all")
    assert invoke("verify", tmp_path / "x.sqlite").exit_code == 2


def test_verifying_changes_nothing(run: Path) -> None:
    file = run / "brokers" / "exchange.sqlite"
    before = {p.name: p.read_bytes() for p in file.parent.iterdir()}
    assert invoke("verify", run).exit_code == 0
    assert {p.name: p.read_bytes() for p in file.parent.iterdir()} == before


@pytest.mark.slow
def test_it_starts_without_torch() -> None:
    code = "import sys, echelon.cli.audit; print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout.strip() == "[]"


# ---- incremental, SARIF ----------------------------------------


def test_incremental_says_the_same_and_reads_on_from_its_file(run: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole = invoke("verify", run, "--json")
    first = invoke("verify", run, "--json", "--incremental", state)
    assert (first.exit_code, first.stdout) == (whole.exit_code, whole.stdout)
    assert state.stat().st_mode & 0o777 == 0o600
    kept = state.read_bytes()
    second = invoke("verify", run, "--json", "--incremental", state)
    assert (second.exit_code, second.stdout) == (whole.exit_code, whole.stdout)
    assert "0 records were verified before" in first.stderr
    assert "0 records were verified before" not in second.stderr
    assert state.read_bytes() == kept
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".state")] == []


@pytest.mark.slow
def test_incremental_reads_an_export_and_a_broker_file_alike(run: Path, tmp_path: Path) -> None:
    state, folder = tmp_path / "state", tmp_path / "export"
    assert invoke("export", run, folder).exit_code == 0
    assert invoke("verify", folder, "--incremental", state).exit_code == 0
    again = invoke("verify", run, "--json", "--incremental", state)
    assert again.stdout == invoke("verify", run, "--json").stdout
    further = invoke("verify", folder, "--json", "--incremental", state)
    assert further.stdout == invoke("verify", folder, "--json").stdout


@pytest.mark.slow
@pytest.mark.parametrize("statement", [
    "DELETE FROM records WHERE topic = 'global' AND off >= 9",
    "DELETE FROM records WHERE topic = 'delta.a' AND off >= 2",
    "UPDATE records SET value = x'00' WHERE topic = 'global' AND off = 3",
    "UPDATE records SET value = x'00' WHERE topic = 'global' AND off = 1",
    "UPDATE records SET value = x'00' WHERE topic = 'delta.b' AND off = 0",
    "DELETE FROM records WHERE topic = 'delta.b' AND off = 0",
])  # fmt: skip
def test_incremental_finds_that_the_verified_part_was_changed(
    run: Path, tmp_path: Path, statement: str
) -> None:
    state = tmp_path / "state"
    assert invoke("verify", run, "--incremental", state).exit_code == 0
    kept = state.read_bytes()
    sql(run, statement)
    result = invoke("verify", run, "--incremental", state, "--allow-open")
    assert result.exit_code == 1
    assert "rewritten" in result.output
    assert state.read_bytes() == kept, "the state that knows better is kept"


@pytest.mark.slow
def test_a_state_that_cannot_be_used_is_refused_in_words(run: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert invoke("verify", run, "--incremental", state).exit_code == 0
    state.write_bytes(state.read_bytes()[:-1] + b"x")
    for content in (state.read_bytes(), b"", b"echelon audit state v9\nxx", b"\x00" * 100):
        state.write_bytes(content)
        result = invoke("verify", run, "--incremental", state)
        assert result.exit_code == 2
        assert "verify from the start" in result.output
    assert invoke("verify", run, "--incremental", tmp_path).exit_code == 2
    assert invoke("verify", run, "--incremental", tmp_path / "no" / "state").exit_code == 2
    assert invoke("verify", run, "--reread").exit_code == 2


@pytest.mark.slow
def test_reread_compares_everything(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("echelon.audit.incremental.COMPARED_RECORDS", 1)
    state = tmp_path / "state"
    assert invoke("verify", run, "--incremental", state).exit_code == 0
    sql(run, "UPDATE records SET value = x'00' WHERE topic = 'delta.a' AND off = 0")
    assert invoke("verify", run, "--incremental", state).exit_code == 0
    assert invoke("verify", run, "--incremental", state, "--reread").exit_code == 1


def test_sarif_is_written_beside_the_rest(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "found.sarif"
    sql(run, "DELETE FROM records WHERE topic = 'delta.a' AND off = 2")
    result = invoke("verify", run, "--json", "--sarif", target)
    assert result.exit_code == 1
    log = json.loads(target.read_text())
    results = log["runs"][0]["results"]
    assert len(results) == len(json.loads(result.stdout)["findings"])
    assert {one["level"] for one in results} >= {"error"}
    assert invoke("verify", run, "--sarif", tmp_path / "no" / "found").exit_code == 2
