"""Which failures a service waits out, and which end it."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

import echelon.services.locks as locks
import echelon.services.run as running
from echelon.actors.state import StateStore
from echelon.actors.supervision import ServicePatience
from echelon.bus import Bus, open_bus
from echelon.errors import BusDenied, BusError, ConnectionLost, StateError
from echelon.private import private_folder
from echelon.services.config import AggregatorConfig, DeviceConfig, load_service
from echelon.services.roles import role_of
from echelon.services.run import FAILED, GOOD, Service
from tests.services.deployed import deployed

ROOT = Path(__file__).resolve().parents[2]
NO_HTTP = {"ECHELON_HTTP__PORT": "null", "ECHELON_SHUTDOWN": "60"}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return deployed(tmp_path_factory.mktemp("supervision")).config("a", "aggregator")


def service(config: Path, state: Path) -> Service:
    found = load_service(AggregatorConfig, config, {**NO_HTTP, "ECHELON_STATE": str(state)})
    return Service(found, role_of(found))


def failing(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> list[str]:
    """The n-th connection fails with the n-th error, or succeeds for None; the last goes on for ever."""
    opened: list[str] = []

    async def open_or_fail(url: str, **options: object) -> Bus:
        error = errors[min(len(opened), len(errors) - 1)]
        opened.append(url)
        if error is not None:
            raise error
        return await open_bus(url)

    monkeypatch.setattr(running, "open_bus", open_or_fail)
    return opened


async def stop_when(check: object, within: float = 20.0) -> None:
    assert callable(check)
    end = asyncio.get_running_loop().time() + within
    while not check():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)


async def test_a_broker_that_is_away_is_waited_for_whatever_the_number_of_tries(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = failing(
        monkeypatch, ConnectionLost("away"), BusError("no such topic"), ConnectionLost("away"), None
    )
    one = service(config, tmp_path)
    work = asyncio.create_task(one.run())
    await stop_when(lambda: one.health.state.value == "running")
    assert await work == GOOD
    assert len(opened) == 4
    assert one.metrics.registry.get_sample_value("echelon_restarts_total") == 3


async def test_a_device_that_has_yet_to_take_a_slot_takes_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = failing(monkeypatch, ConnectionLost("away"))
    path = config.parents[1] / "devices" / config.name
    found = load_service(DeviceConfig, path, {**NO_HTTP, "ECHELON_STATE": str(tmp_path)})
    one = Service(found, role_of(found))
    work = asyncio.create_task(one.run())
    await stop_when(lambda: opened or work.done(), within=60.0)
    assert await work == GOOD
    assert one.role.facts["device"] == "a-0"


async def test_stopping_works_while_the_broker_is_away(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = failing(monkeypatch, ConnectionLost("away"))
    one = service(config, tmp_path)
    work = asyncio.create_task(one.run())
    await stop_when(lambda: len(opened) > 2)
    assert await asyncio.wait_for(work, 20.0) == GOOD


async def test_a_broker_that_refuses_for_long_ends_the_service(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(running, "ServicePatience", partial(ServicePatience, grace=2.0))
    opened = failing(monkeypatch, BusDenied("principal a.aggregator may not READ checkin"))
    assert await asyncio.wait_for(service(config, tmp_path).run(), 20.0) == FAILED
    assert len(opened) > 2
    assert "may not READ checkin" in caplog.text


async def test_a_broker_that_refuses_a_service_it_had_let_in_is_waited_for(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "ServicePatience", partial(ServicePatience, grace=-1.0, healthy=-1.0))
    opened = failing(monkeypatch, BusDenied("may not READ checkin"), BusDenied("may not READ checkin"), None)
    one = service(config, tmp_path)
    work = asyncio.create_task(one.run())
    await stop_when(lambda: one.health.state.value == "running")
    assert await work == GOOD
    assert len(opened) == 3


async def test_a_full_disk_is_waited_out(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first two lives find no room for a page more; then somebody makes room."""
    lives: list[StateStore] = []

    def opened(path: Path, owner: bytes) -> StateStore:
        store = StateStore(path, owner)
        lives.append(store)
        if len(lives) <= 2:
            (pages,) = store._db.execute("PRAGMA page_count").fetchone()
            store._db.execute(f"PRAGMA max_page_count = {pages}")
            try:
                store.commit(snapshot=b"state" * 100_000)
            finally:
                store.close()
        return store

    monkeypatch.setattr(running, "StateStore", opened)
    one = service(config, tmp_path)
    work = asyncio.create_task(one.run())
    await stop_when(lambda: len(lives) == 3 and one.health.state.value == "running")
    assert await work == GOOD
    assert one.metrics.registry.get_sample_value("echelon_storage_failures_total") == 2
    assert "starting again: state file" in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_full_disk_at_the_start_is_waited_out(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def without_room(path: Path) -> None:
        tries.append(path)
        if len(tries) <= 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        private_folder(path)

    monkeypatch.setattr(locks, "private_folder", without_room)
    one = service(config, tmp_path / "state")
    work = asyncio.create_task(one.run())
    await stop_when(lambda: one.health.state.value == "running")
    assert await work == GOOD
    assert len(tries) >= 3


async def test_a_contradiction_ends_the_service_at_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = failing(monkeypatch, StateError("the log was forked"), None)
    assert await asyncio.wait_for(service(config, tmp_path).run(), 20.0) == FAILED
    assert len(opened) == 1


async def test_the_state_of_another_run_is_refused(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = deployed(tmp_path / "other", topics=False).config("a", "aggregator")
    for path, code in ((other, None), (config, FAILED)):
        one = service(path, tmp_path / "state")
        work = asyncio.create_task(one.run())
        if code is None:
            await stop_when(lambda: (tmp_path / "state" / "state.db").exists())
            assert await work == GOOD
        else:
            assert await asyncio.wait_for(work, 20.0) == code
    assert "belongs to another run or actor" in caplog.text


@pytest.mark.slow
def test_nothing_that_a_service_is_made_of_imports_torch() -> None:
    """Only a device's training process does, and only for a real model."""
    code = (
        "import sys, echelon.cli.app, echelon.services.run, echelon.services.roles, echelon.bus.kafka\n"
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr
