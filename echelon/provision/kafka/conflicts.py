"""Topics that hold another run: found by the genesis that stands on them, where one may read it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from echelon.audit.records import read_manifest
from echelon.bus import Bus, Record, TopicPartition, open_bus
from echelon.bus.chunks import is_chunk
from echelon.config.broker import BrokerSettings
from echelon.errors import BusDenied, BusError
from echelon.messages.exchange import SOURCE_HEADER, Close, Genesis
from echelon.messages.wire import Message, Refused
from echelon.provision.kafka.drift import Kind, Remedy, TopicDrift
from echelon.provision.kafka.scope import Scope

GLOBAL = TopicPartition("global")
MAX_RECORDS = 16_384
"""Records before genesis that are looked at: chunks of its adapter, 512 KiB each."""
SECONDS = 20.0


def conflicts(scope: Scope) -> list[TopicDrift]:
    """A finding if the topics hold another run than the one that the file is for; none where that cannot be told.

    Raises:
        BusError: the broker does not answer.
    """
    if scope.manifest_sha256 is None or not scope.broker.url.startswith("kafka://"):
        return []
    found = asyncio.run(manifest_on(scope.broker))
    if found is None or found == scope.manifest_sha256:
        return []
    return [
        TopicDrift(
            kind=Kind.OTHER_RUN,
            subject="global",
            wanted=f"the run of manifest {scope.manifest_sha256[:16]}",
            found=f"that of manifest {found[:16]}; give this run a name of its own (`echelon deploy --run NAME`), or "
            "end and purge the other (`echelon runs`)",
            remedy=Remedy.BY_HAND,
        )
    ]


async def manifest_on(broker: BrokerSettings) -> str | None:
    """The SHA-256 of the run manifest that genesis names; None if there is none, or it may not be read."""
    async with await open_bus(broker.url, security=broker.security, read_only=True) as bus:
        try:
            if GLOBAL.topic not in await bus.topics():
                return None
            return await _genesis(bus)
        except BusDenied:
            return None


async def _genesis(bus: Bus) -> str | None:
    first, end = await bus.first_offset(GLOBAL), await bus.end_offset(GLOBAL)
    async with bus.reader({GLOBAL: first}) as reader:
        while reader.position(GLOBAL) < min(end, first + MAX_RECORDS):
            records = await reader.next(timeout=SECONDS)
            if not records:
                raise BusError(f"global: no record at offset {reader.position(GLOBAL)} within {SECONDS:g} s")
            for record in records:
                if is_chunk(record):
                    continue
                message = _message(record)
                return message.manifest_sha256.hex() if isinstance(message, Genesis) else None
    return None


def _message(record: Record) -> Message | None:
    """What a record of `global`, or of its mirror, says; None for what no run writes there."""
    headers = tuple(header for header in record.headers if header[0] != SOURCE_HEADER)
    try:
        return read_manifest(replace(record, headers=headers))[1]
    except Refused:
        return None


async def closed_on(bus: Bus) -> bool | None:
    """Whether the run whose topics these are was closed; None if nothing stands there yet.

    Args:
        bus: one run's part of a broker.

    Raises:
        BusDenied: this principal may not read `global`.
        BusError: the broker does not answer, or does not give its last record.
    """
    end = await bus.end_offset(GLOBAL)
    if not end:
        return None
    async with bus.reader({GLOBAL: max(await bus.first_offset(GLOBAL), end - 1)}) as reader:
        records = await reader.next(timeout=SECONDS)
    return bool(records) and not is_chunk(records[-1]) and isinstance(_message(records[-1]), Close)
