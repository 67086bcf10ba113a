"""How a gate gets the adapters of relayed commits: it reads the deltas that were merged on the exchange.

Logs are read as far as a commit says that the controller had, and not before a commit merges a delta of theirs: what a
gate keeps in memory is bounded by the deltas that may wait. Its own deltas it keeps when they cross, and reads them
only after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import aclosing

from echelon.actors.exchange import reportable_faults
from echelon.actors.runtime import STEP_COST, Services, read_to_end
from echelon.audit.log import Step, TopicLog
from echelon.audit.records import is_chunk
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.bus.chunks import Transfer, TransferId, to_chunks
from echelon.errors import LogLost, ProtocolError, StateError
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.lengths import delta_length
from echelon.messages.adapter import F32
from echelon.messages.exchange import RELAYED_HEADER, Commit, Delta, LogHead
from echelon.messages.manifest import RunManifest
from echelon.rounds.effects import note
from echelon.rounds.gate.relayed import RelayedAdapters


class Relay:
    """The deltas of all boundaries as a gate reads them, and the adapters that they give.

    Args:
        name: of the gate.
        manifest: the run's terms.
        dim: numbers of the adapter.
        own: index of the gate's boundary, in the manifest.
        exchange: the exchange's broker.
        services: what every actor gets.
    """

    def __init__(
        self, name: str, *, manifest: RunManifest, dim: int, own: int, exchange: Bus, services: Services
    ) -> None:
        self.name, self._exchange, self._services = name, exchange, services
        self.terms = manifest.exchange
        self.core = RelayedAdapters(manifest, dim, own)
        self._logs = [
            TopicLog(
                f"delta.{terms.name}",
                public=bytes.fromhex(terms.gate_public),
                run=manifest.run_id,
                boundary=index,
                largest=delta_length(manifest, dim),
            )
            for index, terms in enumerate(manifest.boundaries)
        ]
        self._positions = [0] * len(self._logs)

    async def derive(self, commit: Commit, keys: Keys) -> F32:
        """Read what a commit merged, and derive its adapter, float32[d].

        Args:
            commit: verified; the one behind the newest that was derived.
            keys: everybody's, as far as `global` was read.

        Raises:
            LogLost: a delta log is shorter than the commit says.
            StateError: the commit is not what its deltas give.
        """
        try:
            lacking = {boundary for boundary, _ in self.core.lacking(commit)}
            for head in commit.heads:
                if head.boundary in lacking:
                    await self._read(head, commit.commit, keys)
            return await self._services.offload(self.core.derive, commit, cost=STEP_COST)
        except ProtocolError as error:
            raise StateError(
                f"{self.name} does not mirror commit {commit.commit}: {error}. It was relayed without its adapter, and "
                f"the boundary does not go on from another: have the exchange audited"
            ) from error

    async def _read(self, head: LogHead, commit: int, keys: Keys) -> None:
        """Read a delta log as far as a commit says that the controller had."""
        log = self._logs[head.boundary]
        log.follow(keys.line(gate_of_place(head.boundary)))
        start = self._positions[head.boundary]
        records = read_to_end(self._exchange, TopicPartition(log.topic), start, self.name)
        async with aclosing(records):
            while log.tree.size < head.size and (record := await anext(records, None)) is not None:
                self._positions[head.boundary] = record.next_offset
                self._count(record)
                self._take(log.read(record), record)
        if log.tree.size < head.size:
            raise LogLost(
                f"commit {commit} has read {head.size} manifests of {log.topic}, and {log.tree.size} stand there"
            )
        if log.tree.root() != head.root:
            raise ProtocolError(
                f"it has read {head.size} manifests of {log.topic} with another root than those that stand there"
            )

    def _take(self, step: Step, record: Record) -> None:
        for fault in reportable_faults(step):
            self._services.log.warning(
                "%s does not believe %s@%d: %s", self.name, record.topic, record.offset, fault.detail
            )
        entry = step.entry
        if (
            entry is not None
            and isinstance(entry.message, Delta)
            and entry.payload is not None
            and entry.refusal is None
        ):
            self.core.offer(entry.message, entry.payload)

    def _count(self, record: Record) -> None:
        """Tell the metrics what came in."""
        kind = "delta.chunk" if is_chunk(record) else "delta.manifest"
        fact = note("bytes", direction="in", type=kind, bytes=record.size, records=1)
        self._services.sink(self.name, asyncio.get_running_loop().time(), fact)


def relayed_chunks(commit: Commit, adapter: F32) -> Iterator[Outgoing]:
    """The chunks that a gate puts in front of a relayed commit inside its boundary, each marked with the commit.

    Args:
        commit: the commit.
        adapter: float32[d], which has the digest in it.
    """
    described = commit.payload
    transfer = Transfer(TransferId(described.transfer), described.length, described.sha256)
    mark = (RELAYED_HEADER, commit.commit.to_bytes(8, "big"))
    payload = adapter.astype("<f4", copy=False).data.cast("B")
    for record in to_chunks(payload, transfer, topic="global", key=b"chunk"):
        yield Outgoing(record.topic, record.value, record.key, (*record.headers, mark))
