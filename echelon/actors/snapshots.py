"""Going on behind windows whose inputs were trimmed: which of the gate's snapshots an actor takes over."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from echelon.actors.kept_logs import first_of
from echelon.actors.runtime import read_to_end
from echelon.actors.taken_records import TakenRecords
from echelon.actors.verified_records import Membership, RecordOpener
from echelon.bus.assembler import Assembler, open_cost
from echelon.bus.base import Bus, TopicPartition
from echelon.bus.chunks import ChunkError
from echelon.errors import LogLost
from echelon.laws.lengths import snapshot_length
from echelon.laws.retention import input_offsets, lets_go
from echelon.messages.boundary import INPUTS, Snapshot
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Refused
from echelon.topics import Catalogue

SNAPSHOTS = TopicPartition("snapshots")

log = logging.getLogger("echelon")


def snapshot_opener(manifest: RunManifest, membership: Membership, catalogue: Catalogue) -> RecordOpener:
    """What opens records of `snapshots`, one transfer at a time.

    Args:
        manifest: of the run, for the longest snapshot.
        membership: who belongs to the boundary.
        catalogue: who may write what.
    """
    length = snapshot_length(manifest, manifest.adapter_layout().dim)
    room = Assembler(
        max_open_bytes_per_sender=open_cost(length),
        max_open_transfers_per_sender=1,
        max_open_bytes_total=open_cost(length),
        largest={SNAPSHOTS.topic: length},
    )
    return RecordOpener(membership, catalogue, room, repeated=TakenRecords().again)


async def kept_from(bus: Bus, name: str) -> dict[str, int]:
    """By topic of `INPUTS` that does not begin with its first record: the first offset that is kept.

    Args:
        bus: the boundary's broker.
        name: of the actor, for its waits.
    """
    firsts = {topic: await first_of(bus, TopicPartition(topic), name) for topic in INPUTS}
    return {topic: first for topic, first in firsts.items() if first}


async def find_snapshot(
    bus: Bus, opener: RecordOpener, firsts: Mapping[str, int], name: str
) -> tuple[Snapshot, bytes]:
    """The oldest snapshot behind which everything is kept, with its payload.

    Args:
        bus: the boundary's broker.
        opener: of `snapshot_opener`.
        firsts: as `kept_from` has them.
        name: of the actor, for its log and its waits.

    Raises:
        LogLost: no snapshot of the gate lets go of what is missing.
    """
    if SNAPSHOTS.topic in await bus.topics():
        start = await first_of(bus, SNAPSHOTS, name)
        async for record in read_to_end(bus, SNAPSHOTS, start, name):
            try:
                incoming = opener.open(record)
            except (Refused, ChunkError) as error:
                log.warning("%s passes over %s@%d: %s", name, record.topic, record.offset, error)
                continue
            if incoming is None or not isinstance(incoming.message, Snapshot):
                continue
            if lets_go(incoming.message, firsts):
                log.warning(
                    "%s: inputs of windows before %d are trimmed; it goes on from the gate's snapshot %s@%d",
                    name, incoming.message.window, record.topic, record.offset,
                )  # fmt: skip
                return incoming.message, incoming.payload or b""
    where = ", ".join(f"{topic} begins at offset {first}" for topic, first in sorted(firsts.items()))
    raise LogLost(f"{where}, and no snapshot of the gate lets go of what stood before")


def starts(snapshot: Snapshot) -> dict[TopicPartition, int]:
    """Where inputs are read from behind a snapshot."""
    return {TopicPartition(topic): offset for topic, offset in input_offsets(snapshot).items()}
