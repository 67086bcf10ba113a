"""The sizing table of the deployment page, held against what a run has written."""

from __future__ import annotations

import asyncio
import re
from functools import cache
from pathlib import Path

import pytest

from echelon.bus import Record, open_bus
from echelon.run.assembly import Assembly
from echelon.topics import load_catalogue
from tests.run.runs import Outcome, boundaries, federation, run
from tests.run.test_trimming import trimmed
from tools.fleet.outcome import manifests

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text()
DISKS = PAGE.partition("\n## Disks\n")[2].partition("\n## ")[0]
D, C, COMMITS = 3000, 4, 2


def rows() -> list[list[str]]:
    table = DISKS.partition("| topics | where |")[2].partition("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


@cache
def outcome() -> Outcome:
    return run(
        federation(
            boundaries=boundaries(C, C),
            learner={"kind": "quadratic", "dim": D},
            budget={"commits": COMMITS},
            sync={"windows": 2, "codec": "int32"},
        )
    )


def size(records: list[Record]) -> int:
    return sum(
        len(record.key or b"")
        + len(record.value)
        + sum(len(name) + len(value) for name, value in record.headers)
        for record in records
    )


@pytest.mark.slow
@pytest.mark.parametrize("row", rows(), ids=lambda row: f"{row[0]} {row[1]}")
def test_a_run_writes_what_the_table_says(row: list[str]) -> None:
    done = outcome()
    assert done.summary["commits"] == COMMITS
    windows = sum(envelope.type == "window" for envelope in done.envelopes("a", "control"))
    deltas = len(manifests(done.records("exchange", "delta.a")))
    topics = [name.replace("{boundary}", "a") for name in re.findall(r"`([^`]+)`", row[0])]
    found = sum(size(done.records("a" if row[1] == "boundary" else row[1], topic)) for topic in topics)
    names = {"C": C, "d": D, "w": 4}
    each = [eval(cell.strip("`"), {"__builtins__": {}}, names) for cell in row[2:]]
    said = sum(count * one for count, one in zip((windows, deltas, COMMITS), each, strict=True))
    # Genesis and the boundary's first adapter come once: no row counts them.
    once = 4 * D + 8000 if {"global", "model"} & {*topics} else 0
    assert 0.75 * said <= found <= said + once, (found, said, once)


def test_every_topic_whose_records_are_dropped_is_named_with_its_time() -> None:
    kept = {"a minute": 60, "a week": 604_800, "a day": 86_400}
    said = {"split.up": "a minute", "split.down": "a minute", "behaviour": "a week", "leases": "a day"}
    catalogue = load_catalogue()
    assert {topic.name: topic.retention for topic in catalogue.boundary.topics if topic.transient} == {
        topic: kept[time] for topic, time in said.items()
    }
    for topic in said:
        assert f"`{topic}`" in DISKS.partition("|")[0]
    named = {*re.findall(r"`([^`]+)`", DISKS.partition("Bytes that a run adds")[0])}
    assert {topic.name for topic in catalogue.boundary.topics} <= named


def test_a_trimmed_run_keeps_what_the_table_says_and_another_one_more() -> None:
    kept, windows, pending = 2, 2, 1
    table = DISKS.partition("| topic | stays |")[2].partition("\n\n")[0]
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]

    async def meddle(assembly: Assembly) -> None:
        roster = assembly.identities.boundaries["a"].roster
        async with await open_bus(assembly.url("a")) as bus:
            while True:
                await asyncio.sleep(1.0)
                await trimmed(bus, assembly.manifest, roster)

    settings = federation(
        boundaries=boundaries(C, C),
        learner={"kind": "quadratic", "dim": D},
        budget={"commits": 8},
        sync={"windows": windows},
        retention={"windows": kept},
    )
    whole, less = run(settings), run(settings, meddle)
    names = {"N": kept, "R": windows, "P": pending, "C": C, "d": D}
    names["W"] = sum(envelope.type == "window" for envelope in whole.envelopes("a", "control"))
    for topic, stays, without in lines:
        most = eval(stays, {"__builtins__": {}}, names)
        assert 0.25 * most <= size(less.records("a", topic)) <= most, topic
        if topic == "masked":
            assert 0.75 * eval(without, {"__builtins__": {}}, names) <= size(whole.records("a", topic))
            assert size(less.records("a", topic)) < 0.6 * size(whole.records("a", topic))
