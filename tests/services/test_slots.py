"""Slots: one process each, for its life; the kernel gives a dead one's back."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from echelon.errors import ConfigError
from echelon.services.locks import FolderLock, lock_state
from echelon.services.slots import slots_in, take_slot

LOG = logging.getLogger("test")
HOLDER = """
import sys, time
from pathlib import Path
from echelon.services.locks import FolderLock
lock = FolderLock.take(Path(sys.argv[1]))
print("held" if lock else "not", flush=True)
time.sleep(60)
"""


def enrolled(folder: Path, *names: str) -> list[Path]:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "signing.pem").write_text("key")
    return slots_in(folder)


def holder(slot: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(slot)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


async def test_two_processes_never_have_one_slot_and_a_killed_ones_comes_back(tmp_path: Path) -> None:
    slots = enrolled(tmp_path, "a-0", "a-1")
    other = holder(slots[0])
    try:
        mine = await take_slot(slots, 0.0, LOG)
        assert mine.folder.name == "a-1"
        with pytest.raises(ConfigError, match="2 slots, all taken; enrol more or stop a replica"):
            await take_slot(slots, 0.0, LOG)
        waiting = asyncio.create_task(take_slot(slots, 20.0, LOG))
        await asyncio.sleep(0.4)
        assert not waiting.done()
        os.kill(other.pid, signal.SIGKILL)
        assert (await waiting).folder.name == "a-0"
    finally:
        other.kill()
        other.communicate()


async def test_waiting_is_bounded_and_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (slot,) = enrolled(tmp_path, "a-0")
    with FolderLock.take(slot) or pytest.fail("free"):
        begun = time.monotonic()
        with pytest.raises(ConfigError, match="taken by another process"):
            await take_slot([slot], 0.6, LOG)
        assert time.monotonic() - begun > 0.5  # it did wait; that it ends is all that is asked for beyond
    assert "all taken: waiting up to" in caplog.text
    assert (await take_slot([slot], 0.0, LOG)).folder == slot


async def test_a_slot_whose_state_is_here_comes_first(tmp_path: Path) -> None:
    slots = enrolled(tmp_path, "a-0", "a-1", "a-2")
    assert (await take_slot(slots, 0.0, LOG, known=lambda name: name == "a-2")).folder.name == "a-2"


def test_a_folder_without_slots_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no folder in it has a signing\.pem"):
        slots_in(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        slots_in(tmp_path / "nowhere")


async def test_a_state_folder_is_for_one_process(tmp_path: Path) -> None:
    first = await lock_state(tmp_path / "deep" / "state", 0.0)
    with pytest.raises(ConfigError, match="in use by another process"):
        await lock_state(tmp_path / "deep" / "state", 0.3)
    first.release()
    first.release()
    (await lock_state(tmp_path / "deep" / "state", 0.0)).release()
