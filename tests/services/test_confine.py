"""A replica's process reads its own slot's files and state, and no other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echelon.services.confine import beside
from tests.services.deployed import deployed
from tools.fleet.fleet import Fleet, by_fork

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import pathlib, subprocess, sys, threading
from echelon.services.confine import confine
folder = pathlib.Path(sys.argv[1])
def may(path):
    try:
        return bool((folder / path).read_bytes())
    except PermissionError:
        return False
held = confine(folder / "slots", folder / "state", (folder / "slots/a-1", folder / "state/a-1"))
if not held:
    print("no Landlock")
    raise SystemExit
(folder / "state/a-1/new").write_text("x")
(folder / "slots/a-1/tls.new").write_text("renewed")
(folder / "slots/a-1/tls.new").rename(folder / "slots/a-1/tls.pem")
for path in ("slots/a-0/signing.pem", "slots/a-1/signing.pem", "slots/a-1/tls.pem", "slots/a-2/signing.pem",
             "ca.pem", "state/a-1/new", "state/a-1/state.db", "state/a-0/state.db", "other/x"):
    print(path, may(path))
child = f"open({str(folder / 'slots/a-0/signing.pem')!r}).read()"
print("child", subprocess.run([sys.executable, "-c", child], stderr=subprocess.DEVNULL).returncode == 0)
found = []
thread = threading.Thread(target=lambda: found.append(may("slots/a-2/signing.pem")))
thread.start(); thread.join()
print("thread", found[0])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("slots/a-0", "slots/a-1", "slots/a-2", "state/a-0", "state/a-1", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "slots/a-0/signing.pem",
        "slots/a-1/signing.pem",
        "slots/a-2/signing.pem",
        "state/a-0/state.db",
        "state/a-1/state.db",
        "ca.pem",
        "other/x",
    ):
        (tmp_path / name).write_text(name)
    return tmp_path


def test_one_replica_one_key(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    if "no Landlock" in done.stdout:
        pytest.skip("the kernel has no Landlock, or does not allow it here")
    assert dict(line.split(" ") for line in done.stdout.splitlines()) == {
        "slots/a-0/signing.pem": "False",
        "slots/a-1/signing.pem": "True",
        "slots/a-1/tls.pem": "True",
        "slots/a-2/signing.pem": "False",
        "ca.pem": "True",
        "state/a-1/new": "True",
        "state/a-1/state.db": "True",
        "state/a-0/state.db": "False",
        "other/x": "True",
        "child": "False",
        "thread": "False",
    }


def test_what_is_beside_the_slots_is_all_but_the_way_to_them(folder: Path) -> None:
    found = set(beside(folder / "slots"))
    assert {folder / "state", folder / "other", folder / "ca.pem"} <= found
    assert not found & {folder, *folder.parents, folder / "slots"}
    assert not [path for path in found if path.is_relative_to(folder / "slots")]


def test_what_is_beside_slots_and_states_is_nothing_of_either(folder: Path) -> None:
    found = set(beside(folder / "slots", folder / "state"))
    assert {folder / "other", folder / "ca.pem"} <= found
    assert not found & {folder, *folder.parents, folder / "slots", folder / "state"}
    inner = set(beside(folder / "state", folder / "state" / "a-0"))
    assert not [path for path in inner if path.is_relative_to(folder / "state")], "one lies in the other"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_federation_of_replicas_that_read_their_own_alone_runs_to_its_end(tmp_path: Path) -> None:
    made = deployed(tmp_path, budget={"commits": 1})
    replicas = [f"{name}.device.{number}" for name in "ab" for number in range(3)]
    running = Fleet(
        made, spawn=by_fork, environments={name: {"ECHELON_OWN_SLOT_ONLY": "true"} for name in replicas}
    )
    with running:
        running.start()
        codes = running.wait(500.0)
    assert set(codes.values()) == {0}, running.tails()
    for name in replicas:
        said = running.services[name].log.read_text()
        assert "keys and state can be read from now on" in said or "no Landlock" in said
