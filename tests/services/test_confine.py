"""A replica's process reads its own slot's files, and no other's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from echelon.services.confine import beside

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
held = confine(folder / "slots", folder / "slots" / "a-1", folder / "state")
if not held:
    print("no Landlock")
    raise SystemExit
(folder / "state" / "new").write_text("x")
(folder / "slots/a-1/tls.new").write_text("renewed")
(folder / "slots/a-1/tls.new").rename(folder / "slots/a-1/tls.pem")
for path in ("slots/a-0/signing.pem", "slots/a-1/signing.pem", "slots/a-1/tls.pem", "slots/a-2/signing.pem",
             "ca.pem", "state/new", "other/x"):
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
    for name in ("slots/a-0", "slots/a-1", "slots/a-2", "state", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in (
        "slots/a-0/signing.pem",
        "slots/a-1/signing.pem",
        "slots/a-2/signing.pem",
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
        "state/new": "True",
        "other/x": "True",
        "child": "False",
        "thread": "False",
    }


def test_what_is_beside_the_slots_is_all_but_the_way_to_them(folder: Path) -> None:
    found = set(beside(folder / "slots"))
    assert {folder / "state", folder / "other", folder / "ca.pem"} <= found
    assert not found & {folder, *folder.parents, folder / "slots"}
    assert not [path for path in found if path.is_relative_to(folder / "slots")]
