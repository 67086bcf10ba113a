"""Full disks and errors that nobody foresaw: one line, a report file where it helps, and an exit code."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from echelon.unforeseen import disk_full, explained
from tests.cli.commands import ENVIRONMENT, write

BOOM = "from echelon.cli import app, main\nimport sys\n@app.app.command('boom')\ndef boom():\n    secret = 'k' * 9\n"


def call(
    *arguments: str | Path, code: str | None = None, **streams: object
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "echelon"] if code is None else [sys.executable, "-c", code]
    given: dict[str, object] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(
        [*command, *map(str, arguments)],
        env=ENVIRONMENT,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=110,
        **given,  # type: ignore[call-overload]
    )


def boom(raised: str, folder: Path) -> subprocess.CompletedProcess[str]:
    body = BOOM + f"    {raised}\nsys.argv = ['echelon', 'boom']\nmain()\n"
    return call(code=f"import tempfile; tempfile.tempdir = {str(folder)!r}\nimport echelon.cli.app\n" + body)


def test_what_nobody_foresaw_gives_one_line_and_a_report(tmp_path: Path) -> None:
    found = boom("raise RuntimeError('no\\nidea')", tmp_path)
    assert found.returncode == 1
    (line,) = found.stderr.splitlines()
    assert line.startswith("error: something unforeseen happened (RuntimeError: no idea); the report is in ")
    (report,) = tmp_path.iterdir()
    assert str(report) in line
    text = report.read_text()
    assert "Traceback (most recent call last)" in text
    assert "RuntimeError: no\nidea" in text
    assert "kkkkkkkkk" not in text  # no local variables: keys may be among them
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_a_full_disk_has_a_sentence_and_no_report(tmp_path: Path) -> None:
    found = boom("import errno; raise OSError(errno.ENOSPC, 'No space', '/data/x')", tmp_path)
    assert found.returncode == 1
    assert found.stderr == "error: the disk is full: /data/x cannot be written. Make room, and start again\n"
    assert list(tmp_path.iterdir()) == []


def test_where_no_report_can_be_written_it_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space")

    monkeypatch.setattr("echelon.unforeseen.create_private", full)
    assert "it stands above" in explained(ValueError("x"), "1")
    assert "ValueError: x" in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    read, written = os.pipe()
    os.close(read)
    found = call("--help", stdout=written)
    os.close(written)
    assert (found.returncode, found.stderr) == (1, "")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_output_to_a_full_disk_ends_with_the_error_line(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        found = call("check", write(tmp_path), "--json", stdout=full)
        assert found.returncode == 1
        assert found.stderr == "error: the disk is full. Make room, and start again\n"
        both = call("check", write(tmp_path), "--json", stdout=full, stderr=full)
        assert both.returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_run_whose_progress_cannot_be_written_goes_on(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        found = call("run", write(tmp_path), "--out", tmp_path / "out", stderr=full)
    assert (tmp_path / "out" / "summary.json").is_file()
    assert "best commit" in found.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, as large as the test says."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("a disk of its own needs the right to mount one")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_run_and_it_goes_on_with_more_room(disk: Path, tmp_path: Path) -> None:
    run = write(tmp_path, budget={"commits": 4}, learner={"kind": "quadratic", "dim": 8192})
    found = call("run", run, "--out", disk / "out")
    assert found.returncode == 1
    assert "Traceback" not in found.stderr
    assert re.search(r"^error: .*the disk is full", found.stderr, re.MULTILINE)
    assert "go on with: echelon run --resume" in found.stderr
    subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
    more = call("run", "--resume", disk / "out")
    assert more.returncode == 0, more.stderr
    assert (disk / "out" / "summary.json").is_file()


def test_causes_are_looked_through() -> None:
    full = OSError(errno.EDQUOT, "quota", "/x")
    try:
        try:
            raise full
        except OSError as error:
            raise ValueError("y") from error
    except ValueError as error:
        found, several = disk_full(error), disk_full(ExceptionGroup("several", [KeyError("z"), error]))
    assert found == several == "the disk is full: /x cannot be written. Make room, and start again"
    assert disk_full(OSError(errno.EACCES, "no")) is None
    database = sqlite3.OperationalError("database or disk is full")
    database.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert disk_full(database) is not None
    assert disk_full(sqlite3.OperationalError("no such table")) is None
