"""The gate: the one process of a boundary that knows two brokers, and all that it does is check, sign and mirror.

Outward it derives every delta again from the boundary's own topics and signs nothing else. Inward it copies the
exchange's `global` topic record by record, and says which versions of the boundary adapter it derived. Only the gate
holds the boundary's signing key. Unless the run's terms leave it out, it is a witness of `global` and of other
boundaries' logs, too, with a key of its own for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from echelon.actors.announcing import Announcer
from echelon.actors.boundary import BoundaryActor, Cross, raise_if_failed
from echelon.actors.exchange import Writer
from echelon.actors.mirror import (
    AdapterRead,
    Learned,
    Mirror,
    ReadAgain,
    Seen,
    bytes_of,
)
from echelon.actors.relay import Relay
from echelon.actors.runtime import DRAIN_SECONDS, Publisher, read_to_end
from echelon.actors.snapshots import SNAPSHOTS, find_snapshot, kept_from, snapshot_opener, starts
from echelon.actors.state import State, Waiting
from echelon.actors.witness import FINAL_SECONDS, Witness
from echelon.audit.log import TopicLog
from echelon.bus.base import Bus, Outgoing, Record, TopicPartition
from echelon.errors import ProtocolError, StateError
from echelon.laws.keys import Keys, gate_of_place
from echelon.laws.ledger import RoundedDelta
from echelon.laws.lengths import delta_length
from echelon.messages.boundary import INPUTS, Derived, SealedDelta, Snapshot
from echelon.messages.envelope import Signer, key_id
from echelon.messages.exchange import (
    Delta,
    Payload,
)
from echelon.messages.stored import stored
from echelon.messages.wire import Refused
from echelon.rounds.effects import Effect, Incoming, Publish, Save, Stop, note
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import DerivedVersion

VERSIONS = TopicPartition("versions")
MAX_PROPOSED = 64
"""Deltas that the aggregator may propose ahead of what is derived: no more of its topic is read before."""


class Gate(BoundaryActor):
    """One boundary's gate.

    Args:
        exchange: the exchange's broker.
        exchange_signer: the boundary's signing key on the exchange.
        log: the derivation of the boundary's history.
        index: the boundary's index in the run manifest.
        manifest_sha256: the pinned digest of the signed run manifest.
        witness: what it is as a witness, over the same state file; None: it is none.
    """

    def __init__(
        self,
        name: str,
        *,
        boundary: str,
        exchange: Bus,
        exchange_signer: Signer,
        log: BoundaryLog,
        index: int,
        manifest_sha256: bytes,
        witness: Witness | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(name, **shared)
        self._exchange, self._log, self._index = exchange, log, index
        self._topic = TopicPartition(f"delta.{boundary}")
        run = log.manifest.run_id
        line = Keys.of(log.manifest).line(gate_of_place(index))
        own = TopicLog(
            self._topic.topic, public=line[0].public, run=run, boundary=index,
            largest=delta_length(log.manifest, log.dim), payloads=False,
        )  # fmt: skip
        self._writer = Writer(own, exchange_signer, run)
        relay: Relay | None = None
        if log.manifest.exchange.full_every is not None:
            relay = Relay(
                name, manifest=log.manifest, dim=log.dim, own=index, exchange=exchange, services=self.services
            )
        self._relay = relay
        self._mirror = Mirror(
            name, index=index, line=line, dim=log.dim, manifest_sha256=manifest_sha256, bus=self.bus, exchange=exchange,
            services=self.services, tell=self._events.put_nowait, relay=relay,
        )  # fmt: skip
        self._said = 0
        """Manifests of `global` that the newest delta on the exchange says it had read, maybe in an earlier life."""
        self._announcer = Announcer(self._writer)
        self._outward = Publisher(
            f"{name} outward",
            exchange,
            self.store,
            self.services,
            owns=self._is_written_outside,
            took=self._announcer.took,
        )
        self._witness = witness
        self._proposed: dict[int, SealedDelta] = {}
        self._clock: Callable[[], float] = lambda: 0.0
        """The loop's clock once it runs; steps are taken in threads, which have no loop of their own."""
        self._snapped = 0
        """The window that was due at the newest snapshot of this life."""
        self._wanted: int | None = None
        """The commit whose adapter is being read again."""

    def inputs(self) -> Iterable[TopicPartition]:
        """Decisions, rounds, masked updates, edges' parts, and the deltas that the aggregator proposes."""
        return tuple(TopicPartition(topic) for topic in ("control", *INPUTS, "delta"))

    def on_demand(self) -> Iterable[TopicPartition]:
        """All of them: a decision at a time, and of the devices' records those that it waits for."""
        return self.inputs()

    def wants(self, at: TopicPartition) -> bool:
        """Whether the derivation can use a record of that topic now."""
        if at.topic == "control":
            return not self._log.blocked
        if at.topic == "delta":
            return len(self._proposed) < MAX_PROPOSED
        return at.topic in self._log.wants

    def owns(self, topic: str) -> bool:
        """Everything but the topics of the exchange."""
        return not self._is_written_outside(topic) and (self._witness is None or topic != self._witness.topic)

    def _is_written_outside(self, topic: str) -> bool:
        return topic in (self._topic.topic, self._announcer.topic)

    def crossing(self, rows: Sequence[Waiting]) -> None:
        """Hand rows to the exchange's publisher."""
        self._outward.put(rows)

    def snapshot(self) -> State:
        """The derivation's state."""
        return self._log.snapshot_parts()

    async def run(self) -> None:
        """Mirror both ways until the run is closed and mirrored inward."""
        self._clock = asyncio.get_running_loop().time
        await self._outward.reconcile()
        tasks = [
            asyncio.create_task(self._outward.run(), name=f"{self.name} outward"),
            asyncio.create_task(self._mirror.run(), name=f"{self.name} inward"),
        ]
        witness: asyncio.Task[None] | None = None
        if self._witness is not None:
            witness = asyncio.create_task(self._witness.run(), name=f"{self.name} witness")
            tasks.append(witness)
        main = asyncio.create_task(super().run(), name=f"{self.name} boundary")
        try:
            while not main.done():
                done, _ = await asyncio.wait(
                    {main, *(task for task in tasks if not task.done())}, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    task.result()
            await self._outward.drained(DRAIN_SECONDS)
            if witness is not None and not self.halted:
                # The last heads of the run are for it to cosign; it waits for them no longer than this.
                await asyncio.wait({witness}, timeout=FINAL_SECONDS + DRAIN_SECONDS)
                if witness.done():
                    witness.result()
        finally:
            for task in (main, *tasks):
                task.cancel()
            await asyncio.gather(main, *tasks, return_exceptions=True)

    def checkpoint(self) -> tuple[str, bytes]:
        """The topic, and the signed head of its log as it stands (a C2SP checkpoint)."""
        return self._writer.log.topic, self._writer.checkpoint()

    # ---- outward ---------------------------------------------------------------------------------

    async def recover(self) -> list[Effect]:
        """Restore the derivation; what was written on the exchange is read there, and in the outbox."""
        snapshot = self.store.snapshot()
        if snapshot is not None:
            with stored(f"{self.name}: its stored state"):
                self._log.restore(snapshot)
        elif firsts := await kept_from(self.bus, self.name):
            opener = snapshot_opener(self._log.manifest, self.membership, self.catalogue)
            found, payload = await find_snapshot(self.bus, opener, firsts, self.name)
            with stored(f"{self.name}: its snapshot of window {found.window}"):
                self._log.restore(payload)
            self._positions |= starts(found)
        await self._mirror.knows_key(self._writer.signer.public)
        self._follow_keys()
        # The outbox first: the publisher is at work, and what it sends meanwhile leaves the outbox behind the end that
        # is read.
        unsent = self.store.outbox()
        standing, announced = await asyncio.gather(self._read_own(), self._announcer.look(self._exchange))
        for row in unsent:
            if row.record.topic == self._topic.topic:
                self._wrote(row.record)
        self._announcer.start(announced, self._outward, standing)
        current, newest = self._log.current(), -1
        async for record in read_to_end(self.bus, VERSIONS, 0, self.name):
            try:
                _, message = self._opener.verified(record)
            except Refused:
                continue  # devices refuse it too: this record says nothing
            if isinstance(message, Derived):
                newest = max(newest, message.version)
        # Said by no life before: it stopped between the step that derived it and the record.
        return [] if current is None or current.version <= newest else [self._say(current)]

    def _follow_keys(self) -> None:
        """Judge its own log by the keys that `global` names.

        Raises:
            StateError: another key than its own is the newest.
        """
        line, own = self._mirror.line, self._writer.signer.public
        self._writer.log.follow(line)
        newest = line[-1]
        if newest.public == own or all(span.public != own for span in line):
            return
        how = "was revoked" if newest.revokes else "was handed on"
        raise StateError(
            f"{self.name}: its key for what crosses {how} by manifest {newest.since} of `global`; put the key that "
            f"follows, {key_id(newest.public)}, into its configuration as `exchange_key`, and start it again"
        )

    async def _read_own(self) -> int:
        """Read what the boundary's log has on the exchange; how many manifests that are."""
        async for record in read_to_end(self._exchange, self._topic, 0, self.name):
            self._wrote(record)
        return len(self._writer.tree)

    def _wrote(self, record: Record | Outgoing) -> None:
        entry = self._writer.wrote(record).entry
        if entry is not None and isinstance(entry.message, Delta):
            self._said = max(self._said, entry.message.seen_size)

    def take(self, event: object) -> list[Any]:
        """Feed the derivation, and sign what it confirms."""
        raise_if_failed(event)
        if isinstance(event, Learned):
            for news in event.news:
                self._mirror.taken(news)
                news.tell(self._log)
            self._follow_keys()
            self._log.progress()
            return [*self._derived(), *self._sign(), *([Stop()] if self._mirror.closed else [])]
        if isinstance(event, AdapterRead):
            self._wanted = None
            self._log.take_adapter(event.commit, event.adapter)
            self._log.progress()
            return [*self._derived(), *self._sign()]
        if not isinstance(event, Incoming):
            raise TypeError(f"{self.name}: {event!r} is not an event of a gate")
        if isinstance(event.message, SealedDelta):
            self._proposed[event.message.seq] = event.message
        elif event.topic == "control" or event.topic in INPUTS:
            self._log.feed(event)
        return [*self._derived(), *self._sign()]  # whatever record was the last that a delta waited for

    def _derived(self) -> list[Any]:
        """Say which versions were derived, and ask for the adapter that the next one needs."""
        versions, self._log.versions = self._log.versions, []
        effects: list[Any] = [self._say(version) for version in versions]
        wanted = self._log.wanted
        if wanted is not None and wanted.commit != self._wanted and wanted.commit in self._mirror.places:
            self._wanted = wanted.commit
            effects.append(ReadAgain(wanted))
        return effects

    def _say(self, version: DerivedVersion) -> Publish:
        said = Derived(
            version=version.version, commit=version.commit, sha256=version.sha256, window=version.window
        )
        return Publish(VERSIONS.topic, said, version.window)

    async def perform(self, effect: object) -> None:
        """Read the adapter of a commit again, beside the loop."""
        if isinstance(effect, ReadAgain):
            self.start_job(partial(self._mirror.adapter_of, effect.facts), "adapter")
        else:
            raise ProtocolError(f"{self.name} cannot carry out {effect!r}")

    def _sign(self) -> list[Any]:
        effects: list[Any] = []
        seen = self._mirror.seen  # the mirror goes on in another thread
        for seq in sorted(self._proposed):
            if seq < self._writer.next_number:
                del self._proposed[seq]  # it crossed in an earlier life, and is read again
                continue
            try:
                derived = self._log.check(self._proposed[seq])
            except ProtocolError:
                if effects:
                    break  # what was signed before it must go out first; the next record finds this one again
                raise
            if derived is None or not self._may_state(seen, derived.base_commit):
                break
            del self._proposed[seq]
            if seq > self._writer.next_number:
                raise StateError(
                    f"{self.name}: delta {seq} is due to cross, and delta {self._writer.next_number} never did; "
                    "if that was signed with a key that was revoked, start the gate with an empty state"
                )
            crossing = self._cross(derived, seen)
            *chunks, manifest = crossing.records
            effects += [
                crossing,
                note(
                    "bytes", direction="out", type="delta.chunk", bytes=bytes_of(chunks), records=len(chunks)
                ),
                note("bytes", direction="out", type="delta.manifest", bytes=bytes_of([manifest]), records=1),
            ]
        if effects or (self._log.quiescent and not self._proposed and self._log.sealed):
            for seq in [seq for seq in self._log.sealed if seq < self._writer.next_number]:
                del self._log.sealed[seq]
        # What was derived and not proposed yet is in no snapshot, and would never be derived again.
        if self._log.quiescent and not self._proposed and not self._log.sealed:
            effects += [*([Save()] if effects else []), *self._snapshot_due()]
        return effects

    def _snapshot_due(self) -> list[Save | Publish]:
        """The snapshot that is said at this quiet point, if the run lets go of old windows and enough have passed.

        It is stored, too: what is trimmed up to a snapshot must not be wanted by a state from before it.
        """
        kept, log = self._log.manifest.kept_windows, self._log
        if kept is None or log.window < self._snapped + kept:
            return []
        self._snapped = log.window
        offsets = self.stored_offsets()
        handshake, masked, parts = (offsets[TopicPartition(topic)] for topic in INPUTS)
        payload = log.snapshot()
        said = Snapshot(
            window=log.window,
            version=log.version,
            commit=log.ledger.commit,
            next_seq=log.ledger.next_seq,
            inputs=(handshake, masked, parts),
            payload=Payload.of(payload, b"snapshot %d %d" % (self._index, log.window)),
        )
        return [Save(), Publish(SNAPSHOTS.topic, said, log.window, payload)]

    def _may_state(self, seen: Seen, base: int) -> bool:
        """Whether a delta may state what was read: its base is in it, it is no less than was stated before (after a
        restart `global` is read anew), and the run is not closed."""
        found, own = self._mirror.bases.get(base), self._writer.signer.public
        span = self._mirror.span_of(own)
        if span is None or span.since >= seen.size or self._mirror.line[-1].public != own:
            return False  # its key does not count yet, or not any more
        return found is not None and found[0] < seen.size and seen.size >= self._said and not seen.closed

    def _cross(self, derived: RoundedDelta, seen: Seen) -> Cross:
        described = Payload.of(derived.payload, b"crossing %d %d" % (self._index, derived.seq))
        chunks = self._writer.chunks(derived.payload, described)
        manifest = Delta(
            run=self._log.manifest.run_id,
            boundary=self._index,
            seq=derived.seq,
            base_commit=derived.base_commit,
            base_sha256=self._mirror.bases[derived.base_commit][1],
            seen_size=seen.size,
            seen_root=seen.root,
            windows=derived.windows,
            codec=derived.codec,
            exponent=derived.exponent,
            sync_us=self._mirror.sync_us,
            spacing_us=seen.spacing_us,
            payload=described,
            prefix=self._writer.prefix,
        )
        self._mirror.signed[derived.seq] = self._clock()
        self._said = seen.size
        if self._relay is not None:
            self._relay.core.offer(manifest, derived.payload)  # so it need not be read on the exchange
        return Cross((*chunks, self._writer.manifest(manifest)))
