"""Inputs of old windows are trimmed: a run goes on, is rebuilt behind them, and is audited from within."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
from typer.testing import CliRunner

from echelon.actors.aggregator import Aggregator
from echelon.actors.gate import Gate
from echelon.actors.runtime import Services
from echelon.actors.state import StateStore
from echelon.audit.findings import Code
from echelon.bus import Bus, TopicPartition, open_bus, sqlite_url
from echelon.cli.app import app
from echelon.errors import ConfigError, LogLost
from echelon.messages.boundary import INPUTS
from echelon.messages.manifest import RunManifest
from echelon.provision.trimming import TrimPlan, plan, signed_terms, trim
from echelon.rounds.aggregator.recovery import History
from echelon.run.assembly import Assembly
from echelon.run.folder import MANIFEST_FILE, prepare_folder
from echelon.secagg.roster import Roster
from echelon.virtual_loop import run_virtual
from echelon.wiring.actors import make_aggregator, make_gate
from echelon.wiring.context import Place, manifest_digest
from tests.audit.test_boundary import audit, errors, of
from tests.run.runs import Watched, boundaries, federation, recorder_for, run
from tests.run.test_killed import CHILD, ROOT

T = TypeVar("T")
KEPT, COMMITS = 2, 6


async def trimmed(bus: Bus, manifest: RunManifest, roster: Roster) -> TrimPlan:
    found = await plan(bus, manifest, roster)
    await trim(bus, found.cuts)
    return found


# ---- while it runs ----------------------------------------


def test_a_run_that_is_trimmed_goes_on_and_is_derived_behind_it() -> None:
    cuts: list[int] = []

    async def meddle(assembly: Assembly) -> None:
        roster = assembly.identities.boundaries["a"].roster
        async with await open_bus(assembly.url("a")) as bus:
            while len(cuts) < 3:
                await asyncio.sleep(1.0)
                found = await trimmed(bus, assembly.manifest, roster)
                if found.cuts:
                    assert found.snapshot is not None
                    cuts.append(found.snapshot.window)

    done = run(
        federation(boundaries=boundaries(4, 4), budget={"commits": 8}, retention={"windows": 2}), meddle
    )
    assert done.summary["commits"] == 8
    assert len(cuts) == 3
    assert done.records("a", "masked")[0].offset > 0
    outside, inside, roster = of(done)
    found = audit(outside, inside, roster)
    assert found.errors == 0, errors(found)
    assert found.facts.trimmed == cuts[-1]
    assert found.facts.deltas > 0
    assert [one.code for one in found.findings] == [Code.TRIMMED]


# ---- an embedded run's folder ----------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "run"
    settings = federation(
        boundaries=boundaries(4, 4), budget={"commits": COMMITS}, retention={"windows": KEPT}
    )
    prepare_folder(settings, out, resume=False)
    run_virtual(Watched(settings, out, recorder_for(settings)).run)
    return out


def command(*arguments: object) -> tuple[int, str]:
    found = CliRunner().invoke(app, [str(one) for one in arguments])
    return found.exit_code, found.output


def keys(out: Path) -> tuple[RunManifest, Roster]:
    return signed_terms(out / "state" / MANIFEST_FILE, out / "state" / "keys" / "a" / "roster.bin")


def firsts(out: Path) -> dict[str, int]:
    async def ask() -> dict[str, int]:
        async with await open_bus(sqlite_url(out / "brokers" / "a.sqlite"), read_only=True) as bus:
            return {topic: await bus.first_offset(TopicPartition(topic)) for topic in await bus.topics()}

    return asyncio.run(ask())


async def history(out: Path, bus: Bus) -> History:
    """What an aggregator without a state derives from the topics."""
    manifest, roster = keys(out)
    settings = federation()
    aggregator: Aggregator = make_aggregator(
        Place(bus, StateStore(None, b"x"), Services()),
        manifest,
        manifest_digest((out / "state" / MANIFEST_FILE).read_bytes()),
        roster,
        key=aggregator_key(out),
        window=settings.window,
    )
    return await aggregator._history()


def aggregator_key(out: Path) -> bytes:
    from echelon.provision.identities import Identities

    settings = federation(boundaries=boundaries(4, 4))
    return Identities.load(out / "state" / "keys", settings).boundaries["a"].aggregator


def on_broker(out: Path, ask: Callable[[Bus], Awaitable[T]]) -> T:
    async def main() -> T:
        async with await open_bus(sqlite_url(out / "brokers" / "a.sqlite")) as bus:
            return await ask(bus)

    return asyncio.run(main())


def told(one: History) -> object:
    ledger = one.ledger
    return (
        one.window, one.version, one.versioned, one.opened, one.bases, one.served, one.closed, one.refused,
        [delta.seq for delta in one.unsent], ledger.commit, ledger.next_seq, ledger.theta().tobytes(),
        ledger.remainder.tobytes(), sorted(ledger.pending),
    )  # fmt: skip


def test_the_command_shows_first_deletes_then_and_what_is_left_is_gone_on_from(folder: Path) -> None:
    whole = on_broker(folder, lambda bus: history(folder, bus))
    code, shown = command("topics", "trim", "--run", folder)
    assert code == 0
    assert "would be deleted" in shown
    assert not any(firsts(folder).values()), "nothing was deleted without --yes"
    code, said = command("topics", "trim", "--run", folder, "--yes", "--json")
    assert code == 0
    one = json.loads(said)[0]
    begins = firsts(folder)
    assert {cut["topic"]: cut["before"] for cut in one["cuts"]} == {
        t: first for t, first in begins.items() if first
    }
    assert {"handshake", "masked", "snapshots"} == {topic for topic, first in begins.items() if first}
    assert one["windows_before"] + KEPT <= whole.window
    code, again = command("topics", "trim", "--run", folder, "--yes")
    assert code == 0
    assert "nothing to trim" in again

    assert told(on_broker(folder, lambda bus: history(folder, bus))) == told(whole)

    code, verified = command("audit", "verify", folder, "--boundary", folder, "--json")
    report = json.loads(verified)
    assert code == 0, report["findings"]
    assert [found["code"] for found in report["findings"]].count("trimmed") == 2
    assert report["boundaries"][0]["trimmed"] == one["windows_before"]
    code, words = command("audit", "verify", folder, "--boundary", folder)
    assert code == 0
    assert "VERIFIED" in words
    assert "not all of it was seen" in words

    copy = folder.parent / "copy"
    code, output = command("audit", "export", folder / "brokers" / "a.sqlite", copy, "--boundary")
    assert code == 0, output
    code, verified = command("audit", "verify", folder, "--boundary", copy, "--json")
    assert code == 0
    assert json.loads(verified)["boundaries"][0]["trimmed"] == one["windows_before"]


@pytest.mark.parametrize("topic", INPUTS[:2])
def test_a_rebuild_behind_a_cut_that_no_snapshot_allows_ends_in_one_sentence(
    folder: Path, topic: str
) -> None:
    async def cut(bus: Bus) -> None:
        await bus.trim(TopicPartition(topic), 5)

    on_broker(folder, cut)
    with closing(sqlite3.connect(folder / "brokers" / "a.sqlite")) as file, file:
        file.execute("DELETE FROM records WHERE topic = 'snapshots'")
    with pytest.raises(LogLost, match=f"{topic} begins at offset .* no snapshot of the gate lets go"):
        on_broker(folder, lambda bus: history(folder, bus))
    code, verified = command("audit", "verify", folder, "--boundary", folder, "--json")
    assert code == 1
    assert any(
        found["severity"] == "error" and found["topic"] == f"a/{topic}"
        for found in json.loads(verified)["findings"]
    )


def test_a_gate_without_a_state_goes_on_from_its_snapshot(folder: Path) -> None:
    command("topics", "trim", "--run", folder, "--yes")
    manifest, roster = keys(folder)
    from echelon.provision.identities import Identities

    own = Identities.load(folder / "state" / "keys", federation(boundaries=boundaries(4, 4))).boundaries["a"]

    async def recover(bus: Bus) -> tuple[int, dict[TopicPartition, int]]:
        async with await open_bus(sqlite_url(folder / "brokers" / "exchange.sqlite")) as exchange:
            gate: Gate = make_gate(
                Place(bus, StateStore(None, b"x"), Services()),
                manifest,
                manifest_digest((folder / "state" / MANIFEST_FILE).read_bytes()),
                roster,
                key=own.gate,
                exchange=exchange,
                exchange_key=own.exchange,
                witness_key=own.witness,
            )
            await gate.recover()
            return gate._log.window, dict(gate._positions)

    window, positions = on_broker(folder, recover)
    begins = firsts(folder)
    assert window > 0
    assert all(positions[TopicPartition(topic)] >= begins[topic] for topic in INPUTS)


# ---- what is refused ----------------------------------------


def test_a_run_that_keeps_all_windows_is_refused_in_a_sentence(tmp_path: Path) -> None:
    done = run(federation(budget={"commits": 1}))

    async def main() -> None:
        async with await open_bus("sqlite://") as bus:
            roster = done.assembly.identities.boundaries["a"].roster
            with pytest.raises(ConfigError, match="keeps the inputs of all windows"):
                await plan(bus, done.assembly.manifest, roster)

    asyncio.run(main())


def test_the_exchange_and_other_brokers_are_refused(tmp_path: Path) -> None:
    scope = tmp_path / "topics.yaml"
    scope.write_text("broker: {url: 'kafka://nowhere:1'}\nplane: exchange\nboundaries: [a, b]\n")
    code, said = command("topics", "trim", "--config", scope)
    assert code == 2
    assert "nothing on the exchange is trimmed" in said
    code, said = command("topics", "trim")
    assert code == 2
    assert "one of them" in said


# ---- killed, trimmed, rebuilt ----------------------------------------


def started(out: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(out), "12", "2"], env=environment, cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def lines_of(process: subprocess.Popen[str], metrics: Path) -> Iterator[str]:
    end = time.monotonic() + 240
    while True:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < end, "the child did not get there in four minutes"
        yield metrics.read_text() if metrics.exists() else ""
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_kind_of_actor_is_rebuilt_behind_what_was_trimmed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(out)
    try:
        next(text for text in lines_of(process, out / "metrics.jsonl") if text.count('"kind": "commit"') >= 5)
    finally:
        process.kill()
        process.communicate()
    code, said = command("topics", "trim", "--run", out, "--yes")
    assert code == 0, said
    assert firsts(out)["masked"] > 0, said
    for name in ("a.aggregator", "a.gate", "a-0"):
        for file in (out / "state").glob(f"{name}.db*"):
            file.unlink()
    process = started(out)
    output, wrong = process.communicate(timeout=400)
    assert process.returncode == 0, wrong[-3000:]
    assert "a.aggregator: no state file; rebuilding" in wrong
    assert "a.gate: inputs of windows before" in wrong
    assert json.loads(output)["commits"] == 12
    code, verified = command("audit", "verify", out, "--boundary", out, "--json")
    report = json.loads(verified)
    assert code == 0, [one for one in report["findings"] if one["severity"] == "error"]
    assert report["boundaries"][0]["deltas_derived"] > 0
