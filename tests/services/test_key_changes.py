"""The controller's service finds changes of keys while it runs."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from echelon.actors.key_changes import ChangesGiven
from echelon.messages.keys import StatementFile
from echelon.services import key_changes
from echelon.services.key_changes import SUFFIX, watch_changes
from tests.laws.test_keys import GOOD


async def test_a_running_service_is_told_of_what_is_put_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Once each; a file that is damaged is said once, and ends nothing."""
    monkeypatch.setattr(key_changes, "LOOK_SECONDS", 0.001)
    told: asyncio.Queue[ChangesGiven] = asyncio.Queue()
    file = StatementFile.of("key.next", GOOD)
    watching = asyncio.create_task(
        watch_changes(tmp_path / "later", told.put_nowait, logging.getLogger("echelon"))
    )
    try:
        (tmp_path / "later").mkdir()
        (tmp_path / "later" / f"a{SUFFIX}").write_bytes(b"{}")
        async with asyncio.timeout(60):
            while not caplog.records:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        (tmp_path / "later" / f"a{SUFFIX}").unlink()
        (tmp_path / "later" / "b.tmp").write_bytes(file.encode())
        (tmp_path / "later" / "b.tmp").rename(tmp_path / "later" / f"b{SUFFIX}")
        async with asyncio.timeout(60):
            assert (await told.get()).files == (file,)
        assert [one.message for one in caplog.records if "no statement" not in one.message] == []
        assert told.empty()
    finally:
        watching.cancel()
