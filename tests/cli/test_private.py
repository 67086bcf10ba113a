"""What holds updates, optimiser state, keys or data is for its owner alone, whatever the umask and whoever made it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from echelon.actors.state import StateStore
from echelon.bus import Outgoing, open_bus, sqlite_url
from echelon.errors import ConfigError
from echelon.private import (
    append_private,
    close_tree,
    create_private,
    private_database,
    private_folder,
    write_private,
)
from echelon.services.locks import lock_state
from tests.cli.commands import write

Cli = Callable[..., Result]
UMASKS = (0o000, 0o022, 0o077, 0o277, 0o777)
SHARED = ("adapter", "checkpoints", "config.yaml", "metrics.jsonl", "report.html", "summary.json")
"""Of a run folder: what may be read by whoever may read the folder. Everything else is private."""


@pytest.fixture(autouse=True)
def _umask_back() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def assert_private(path: Path) -> None:
    """The path, and everything in it."""
    for found in (path, *path.rglob("*")):
        assert mode(found) == (0o700 if found.is_dir() else 0o600), f"{found}: {mode(found):o}"


def widen(path: Path) -> None:
    """As an earlier version, or a careless copy, left it."""
    for found in (path, *path.rglob("*")):
        found.chmod(0o777 if found.is_dir() else 0o666)


# ---- the helpers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", UMASKS)
def test_what_is_made_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    place = tmp_path / "deep" / "down"
    private_folder(place)
    create_private(place / "created", b"1")
    write_private(place / "written", b"2")
    os.close(append_private(place / "appended"))
    private_database(place / "db")
    assert_private(tmp_path / "deep")
    with pytest.raises(FileExistsError):
        create_private(place / "created", b"3")
    assert (place / "created").read_bytes() == b"1"


def test_what_was_open_is_closed_when_it_is_used(tmp_path: Path) -> None:
    private_folder(tmp_path / "a")
    for name in ("written", "appended", "db", "db-wal", "db-shm", "db-journal"):
        (tmp_path / "a" / name).write_bytes(b"longer than before")
    widen(tmp_path / "a")
    private_folder(tmp_path / "a")
    write_private(tmp_path / "a" / "written", b"2")
    os.close(append_private(tmp_path / "a" / "appended"))
    private_database(tmp_path / "a" / "db")
    assert_private(tmp_path / "a")
    assert (tmp_path / "a" / "written").read_bytes() == b"2"


def test_a_whole_folder_is_closed_and_links_are_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"")
    private_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").write_bytes(b"")
    widen(tmp_path / "a")
    outside.chmod(0o644)
    (tmp_path / "a" / "link").symlink_to(outside)
    close_tree(tmp_path / "a")
    (tmp_path / "a" / "link").unlink()
    assert_private(tmp_path / "a")
    assert mode(outside) == 0o644


def test_a_folder_of_everybody_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp").chmod(0o1777)
    for call in (private_folder, close_tree):
        with pytest.raises(ConfigError, match="everybody may write to: name one of its own"):
            call(tmp_path / "tmp")
    assert mode(tmp_path / "tmp") == 0o1777


# ---- who uses them -----------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022])
async def test_a_state_file_is_private_with_all_that_sqlite_puts_beside_it(
    tmp_path: Path, umask: int
) -> None:
    os.umask(umask)
    for _ in range(2):  # made, and then found open
        store = StateStore(tmp_path / "state" / "a.db", b"me")
        store.commit(snapshot=b"an update")
        assert {path.name for path in (tmp_path / "state").iterdir()} >= {"a.db", "a.db-wal", "a.db-shm"}
        assert_private(tmp_path / "state")
        store.close()
        for found in (tmp_path / "state").iterdir():
            found.chmod(0o666)


@pytest.mark.parametrize("umask", [0o000, 0o022])
async def test_an_embedded_log_is_private_and_one_that_was_open_is_closed(tmp_path: Path, umask: int) -> None:
    os.umask(umask)
    private_folder(tmp_path / "brokers")
    url = sqlite_url(tmp_path / "brokers" / "a.sqlite")
    for _ in range(2):
        async with await open_bus(url) as bus:
            await bus.create_topic("t", 1)
            await bus.publish(Outgoing("t", b"an update", b"k"))
            assert (tmp_path / "brokers" / "a.sqlite-wal").exists()
            assert_private(tmp_path / "brokers")
        for found in (tmp_path / "brokers").iterdir():
            found.chmod(0o666)


async def test_what_a_killed_writer_left_open_is_closed_too(tmp_path: Path) -> None:
    private_folder(tmp_path / "brokers")
    files = [tmp_path / "brokers" / name for name in ("a.sqlite", "a.sqlite-wal")]
    async with await open_bus(sqlite_url(files[0])) as bus:
        await bus.create_topic("t", 1)
        kept = [file.read_bytes() for file in files]
    for file, content in zip(files, kept, strict=True):
        file.write_bytes(content)
        file.chmod(0o644)
    async with await open_bus(sqlite_url(files[0])) as bus:
        await bus.publish(Outgoing("t", b"an update", b"k"))
        assert_private(tmp_path / "brokers")


def test_closing_a_log_that_this_process_has_open_does_not_cost_it_its_locks(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    private_database(path)
    first = sqlite3.connect(path, isolation_level=None)
    first.execute("CREATE TABLE t (x)")
    first.execute("BEGIN EXCLUSIVE")
    path.chmod(0o644)
    private_database(path)
    held = subprocess.run([sys.executable, "-c", TRY, str(path)], check=False).returncode
    first.execute("COMMIT")
    first.close()
    assert (mode(path), held) == (0o600, 3)


TRY = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError:
    sys.exit(3)
"""


async def test_a_service_closes_its_state_folder_and_all_in_it(tmp_path: Path) -> None:
    os.umask(0)
    state = tmp_path / "state"
    (await lock_state(state, 1.0)).release()
    (state / "http.json").write_bytes(b"")
    (state / "deeper").mkdir()
    (state / "deeper" / "state.db").write_bytes(b"")
    widen(state)
    with await lock_state(state, 1.0):
        assert_private(state)


@pytest.mark.slow
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_run_folder_is_private_but_for_what_is_meant_to_be_shared(
    cli: Cli, tmp_path: Path, umask: int
) -> None:
    os.umask(umask)
    out = tmp_path / "out"
    assert cli("run", write(tmp_path), "--out", out).exit_code == 0
    found = {path.name for path in out.iterdir()}
    assert {"state", "brokers", "echelon.log"} <= found
    for name in sorted(found - set(SHARED)):
        assert_private(out / name)
    for name in SHARED:
        assert mode(out / name) == (0o777 if (out / name).is_dir() else 0o666) & ~umask, name
    assert list((out / "state").glob("*.db"))
    assert (out / "brokers" / "exchange.sqlite").exists()
    assert list((out / "state" / "keys").rglob("*.pem"))


@pytest.mark.slow
def test_a_resumed_run_closes_what_an_earlier_version_left_open(cli: Cli, tmp_path: Path) -> None:
    os.umask(0)
    out = tmp_path / "out"
    assert cli("run", write(tmp_path), "--out", out).exit_code == 0
    (out / "summary.json").unlink()  # as if it had been stopped just before
    widen(out)
    assert cli("run", "--resume", out).exit_code == 0
    for path in out.iterdir():
        if path.name not in SHARED:
            assert_private(path)
