"""The schedule of attempts to reach a broker that is away, on the virtual clock: the longest gap has a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import NoReturn

import aiokafka.errors as kafka
import pytest
from aiokafka.client import AIOKafkaClient

from echelon.bus.base import Meter, TopicPartition
from echelon.bus.kafka_link import ATTEMPT_S, BACKOFF_S, GAP_S, HANG_UP_S, KafkaLink, cut, hasten
from echelon.bus.kafka_reader import KafkaReader
from echelon.errors import BusDenied, ConnectionLost
from echelon.virtual_loop import run_virtual

HOUR = 3600.0
Silence = Callable[[], Awaitable[object]]


async def silent(*_: object, **__: object) -> NoReturn:
    """As an address that nobody has any more: no answer, and no refusal."""
    await asyncio.Event().wait()
    raise AssertionError("an hour is over")


async def refused(*_: object, **__: object) -> NoReturn:
    """As a host on which nothing listens."""
    raise kafka.KafkaConnectionError("refused")


async def late(*_: object, **__: object) -> NoReturn:
    """As a host that hangs up when the longest attempt is nearly over."""
    await asyncio.sleep(ATTEMPT_S[1] - 0.1)
    raise kafka.KafkaConnectionError("hung up")


WAYS: dict[str, tuple[Silence, Silence]] = {
    "nothing answers": (silent, silent),
    "it refuses, and says so": (refused, refused),
    "it refuses, and then nothing answers": (refused, silent),
    "it hangs up late, and then nothing answers": (late, silent),
}
"""How connecting fails, and how the look for the reason does."""


def link() -> KafkaLink:
    return KafkaLink((("127.0.0.1", 9),), None, HOUR)


@pytest.fixture(params=WAYS)
def attempts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When each attempt of this process began, in seconds of the virtual clock."""
    begun: list[float] = []
    connecting, looking = WAYS[request.param]

    async def bootstrap(*_: object) -> None:
        begun.append(asyncio.get_running_loop().time())
        await connecting()

    async def probe(*_: object) -> None:
        await looking()

    monkeypatch.setattr(AIOKafkaClient, "bootstrap", bootstrap)
    monkeypatch.setattr(KafkaLink, "_probe", probe)
    return begun


def check(begun: list[float]) -> None:
    gaps = [after - before for before, after in pairwise(begun)]
    assert len(gaps) > HOUR / GAP_S - 2
    assert max(gaps) <= GAP_S + 1e-6
    assert GAP_S <= 15.0, "what operators are told"


def test_questions_are_tried_again_within_the_gap(attempts: list[float]) -> None:
    async def work() -> None:
        with pytest.raises(ConnectionLost):
            await link().ask(silent)

    run_virtual(work)
    check(attempts)


def test_readers_connect_again_within_the_gap(attempts: list[float]) -> None:
    async def work() -> None:
        reader = KafkaReader(link(), Meter(), {TopicPartition("t"): 0}, 1 << 20, lambda _: None)
        with pytest.raises(ConnectionLost):
            await reader.next(timeout=HOUR)
        await reader.aclose()
        await reader.ended()

    run_virtual(work)
    check(attempts)


def test_an_attempt_without_any_answer_gets_longer_and_an_answer_makes_it_short_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers: list[bool] = [False, False, False, True, False]

    async def bootstrap(_: AIOKafkaClient) -> None:
        if not answers.pop(0):
            await silent()

    monkeypatch.setattr(AIOKafkaClient, "bootstrap", bootstrap)

    async def work() -> list[float]:
        one, took = link(), []
        loop = asyncio.get_running_loop()
        while answers:
            begun = loop.time()
            try:
                await (await one.connect()).close()
            except ConnectionLost:
                took.append(loop.time() - begun)
        assert one.losses == 2, "each time that it was found to be away counts once"
        return took

    took = run_virtual(work)
    assert took == pytest.approx([ATTEMPT_S[0], ATTEMPT_S[1], ATTEMPT_S[1], ATTEMPT_S[0]], abs=HANG_UP_S)


def test_a_refusal_ends_the_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def denied(*_: object) -> NoReturn:
        raise BusDenied("not you")

    monkeypatch.setattr(AIOKafkaClient, "bootstrap", refused)
    monkeypatch.setattr(KafkaLink, "_diagnosis", denied)

    async def work() -> None:
        with pytest.raises(BusDenied):
            await link().ask(silent)

    run_virtual(work)


def test_a_client_that_is_hastened_gives_up_a_node_and_a_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    """aiokafka itself would wait for as long as a request may take."""
    monkeypatch.setattr(AIOKafkaClient, "bootstrap", silent)
    monkeypatch.setattr(AIOKafkaClient, "_get_conn", silent)
    monkeypatch.setattr(AIOKafkaClient, "force_metadata_update", lambda _: None)

    async def work() -> None:
        client = AIOKafkaClient(bootstrap_servers=["127.0.0.1:9"], request_timeout_ms=int(1000 * HOUR))
        hasten(client, lambda: 7.0)
        loop = asyncio.get_running_loop()
        with pytest.raises(kafka.KafkaConnectionError):
            await client.bootstrap()
        assert loop.time() == pytest.approx(7.0)
        assert not await client.ready(0)
        assert loop.time() == pytest.approx(14.0)

    run_virtual(work)


def test_what_waits_on_a_connection_that_is_cut_fails_at_once() -> None:
    closed: list[object] = []

    class Connection:
        def close(self, reason: object) -> None:
            closed.append(reason)

    async def work() -> None:
        client = AIOKafkaClient(bootstrap_servers=["127.0.0.1:9"])
        client._conns[0, 0] = Connection()
        cut(client)
        client._conns.clear()

    run_virtual(work)
    assert len(closed) == 1


def test_the_gap_is_made_of_its_parts() -> None:
    assert ATTEMPT_S[1] + HANG_UP_S + BACKOFF_S[1] == GAP_S
