"""A broker that comes back under another address: old connections stay silent for ever, and nobody waits for them."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest
from aiokafka.client import AIOKafkaClient

from echelon.bus import Outgoing, TopicPartition, open_bus
from echelon.bus.kafka_link import BULK_S, GAP_S, KafkaLink
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.pki import BREAK_GLASS
from tools.fleet.links import lead
from tools.fleet.proxy import Proxy
from tools.kafka.stack import Stack

AT = TopicPartition("reconnects")
LIMIT_S = 2 * GAP_S
"""Seconds from one attempt to the next, and from the broker's return to the next record.

A limit in seconds is needed: what is tested is that nobody waits for a request to run out (30 s), and then for a
connection (30 s more). The bound itself is tested on the virtual clock (tests/bus/test_kafka_link.py); on a busy
machine a pause may last longer than it says, so this one is twice as long, and still less than a request has.
"""
assert LIMIT_S < BULK_S


@pytest.mark.timeout(600)
async def test_a_broker_that_is_away_and_comes_back_elsewhere_is_found_soon(
    clean_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = clean_stack[EXCHANGE]
    settings = broker.settings(BREAK_GLASS)
    begun: list[float] = []
    connect = KafkaLink.connect

    async def counted(link: KafkaLink, request_s: float) -> AIOKafkaClient:
        if request_s == BULK_S:
            begun.append(time.monotonic())  # the reader's
        return await connect(link, request_s)

    monkeypatch.setattr(KafkaLink, "connect", lambda link, request_s=10.0: counted(link, request_s))
    with Proxy(broker.ports.client) as proxy:
        monkeypatch.setattr(asyncio.BaseEventLoop, "create_connection", lead(broker.ports.client, proxy.port))
        async with await open_bus(settings.url + "?timeout=600", security=settings.security) as bus:
            await bus.create_topic(AT.topic)
            async with bus.reader({AT: 0}) as reader:
                await bus.publish(Outgoing(AT.topic, b"before"))
                assert [one.value for one in await reader.next(timeout=60)] == [b"before"]

                proxy.lose()
                before = len(begun)
                writing = asyncio.create_task(bus.publish(Outgoing(AT.topic, b"behind")))
                await asyncio.to_thread(broker.kill)
                await asyncio.to_thread(clean_stack.start, EXCHANGE)
                async with asyncio.timeout(240):
                    while len(begun) < before + 4:  # noqa: ASYNC110 - what is waited for tells nobody
                        await asyncio.sleep(0.05)
                gaps = [after - former for former, after in pairwise(begun[before:])]
                assert max(gaps) <= LIMIT_S, gaps
                assert not bus.connected
                assert not writing.done()

                proxy.find()
                async with asyncio.timeout(LIMIT_S):
                    await writing
                    records = await reader.next()
                assert [one.value for one in records] == [b"behind"], "sent again, and yet there once"
                assert bus.connected
