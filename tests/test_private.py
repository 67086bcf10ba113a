"""Files that are written anew: whoever reads one finds the old content or the new one, also where the disk is full."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from echelon.private import FILE, write_private, write_whole
from echelon.run.recorder import last_time

FULL = """
import resource, sys
from pathlib import Path
from echelon.private import write_private
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # the kernel takes no byte more, as on a full disk
try:
    write_private(Path(sys.argv[1]), b"x" * 5000)
except OSError as error:
    print("refused", error.errno)
"""


def test_a_write_that_fails_halfway_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    write_private(path, b"old")
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.startswith("refused")
    assert path.read_bytes() == b"old"
    assert [one.name for one in tmp_path.iterdir()] == ["progress.json"], "nothing is left beside it"


def test_a_private_file_stays_private_and_another_keeps_to_the_umask(tmp_path: Path) -> None:
    open_file = tmp_path / "a"
    open_file.write_text("before")
    open_file.chmod(0o666)
    write_private(open_file, b"secret")
    assert stat.S_IMODE(open_file.stat().st_mode) == FILE
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "b", b"public")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o640


def test_a_link_in_a_files_place_is_replaced_and_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("not ours")
    (tmp_path / "a").symlink_to(other)
    write_private(tmp_path / "a", b"ours")
    assert other.read_text() == "not ours"
    assert not (tmp_path / "a").is_symlink()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("", 0.0),
        ('{"t": 1.5}\n{"t": 2.5}\n', 2.5),
        ('{"t": 1.5}\n{"t": 2.', 1.5),
        ('{"t": 1.5}\nnot json\n[]\n{}\n', 1.5),
    ],
)
def test_the_newest_time_of_the_metrics_is_found(tmp_path: Path, text: str, seconds: float) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    assert last_time(path) == seconds
    assert last_time(tmp_path / "none") == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["", "{", "[]", '{"seconds": "soon"}', None])
def test_a_run_goes_on_whatever_its_progress_file_holds(tmp_path: Path, damage: str | None) -> None:
    def echelon(*arguments: str, encoding: str = "utf-8") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, "-m", "echelon", *arguments],
            cwd=tmp_path,
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
            timeout=100,
        )

    root = Path(__file__).resolve().parents[1]
    # A terminal that is not UTF-8, too: a finished run does not die printing.
    done = echelon("run", str(root / "examples" / "virtual.yaml"), "--out", "out", encoding="latin-1")
    assert done.returncode == 0, done.stderr
    progress = tmp_path / "out" / "state" / "progress.json"
    if damage is None:
        progress.unlink()
    else:
        progress.write_text(damage)
    (tmp_path / "out" / "summary.json").unlink()
    again = echelon("run", "--resume", "out", encoding="ascii")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["audit"]["ok"] is True
