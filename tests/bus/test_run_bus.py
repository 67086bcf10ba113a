"""Runs that share a broker do not see each other; the suite of `test_contract.py` runs on one run's part, too."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from echelon.bus import Bus, Outgoing, TopicPartition, open_bus
from echelon.bus.kafka_url import run_of, url_of
from echelon.bus.run_bus import RunBus
from echelon.bus.run_names import parted, with_run
from echelon.errors import ConfigError
from echelon.topics import Boundary, load_catalogue


@pytest.fixture
async def shared() -> AsyncIterator[Bus]:
    async with await open_bus("memory://shared-by-runs") as bus:
        yield bus


async def test_two_runs_and_one_without_a_name_share_a_broker(shared: Bus) -> None:
    one, other = RunBus(shared, "one"), RunBus(shared, "the-other")
    for bus in (one, other, shared):
        await bus.create_topic("global")
    await one.publish(Outgoing("global", b"of one"))
    await other.publish(Outgoing("global", b"of the other"))
    await shared.publish(Outgoing("global", b"of no name"))
    assert await one.topics() == {"global": 1}
    assert set(await shared.topics()) == {"global", "one_global", "the-other_global"}
    for bus, value in ((one, b"of one"), (other, b"of the other"), (shared, b"of no name")):
        async with bus.reader({TopicPartition("global"): 0}) as reader:
            (record,) = await reader.next(timeout=5.0)
        assert (record.topic, record.value) == ("global", value)
    assert one.traffic()["global", "out"].records == 1 or shared.traffic()


def test_no_topic_of_the_catalogue_looks_like_one_of_a_named_run() -> None:
    catalogue = load_catalogue()
    names = [*catalogue.boundary_topics(3), *catalogue.exchange_topics([Boundary("a-b")], ["w"])]
    assert all(parted(name) == ("", name) for name in names)
    assert all(parted(with_run("night-7", name)) == ("night-7", name) for name in names)
    assert all(with_run("", name) == name for name in names)
    assert [parted(name) for name in ("__consumer_offsets", "_x", "x_", "X_global")] == [
        ("", "__consumer_offsets"), ("", "_x"), ("", "x_"), ("", "X_global"),
    ]  # fmt: skip


@pytest.mark.parametrize("run", ["", "a_b", "A", "-a", "a-", "a.b", "x" * 33, "a b"])
async def test_other_names_are_refused(shared: Bus, run: str) -> None:
    with pytest.raises(ConfigError, match="lower-case letters"):
        RunBus(shared, run)


def test_a_url_names_a_run() -> None:
    assert run_of("kafka://h:1,g:2") == ""
    assert run_of("kafka://h:1,g:2?run=night-7&timeout=5") == "night-7"
    named = url_of("kafka://h:1,g:2?timeout=5", "night-7")
    assert named == "kafka://h:1,g:2?timeout=5&run=night-7"
    assert url_of(url_of(named, "other"), "") == "kafka://h:1,g:2?timeout=5"
    assert url_of("kafka://h:1?run=x", "") == "kafka://h:1"
    with pytest.raises(ConfigError, match="'A_'"):
        run_of("kafka://h:1?run=A_")
