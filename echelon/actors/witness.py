"""The witness as a service: it reads announced heads, cosigns what continues, and publishes both that and conflicts.

It reads a few hundred bytes for each manifest and never a payload. State, positions and the final bytes of what it
publishes are stored in one transaction before anything is sent. On start it also reads its own topic: so neither a
lost state file nor an old copy of one makes it cosign a history beside one that it cosigned before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from echelon.actors.runtime import STEP_COST, Publisher, Services, end_of, pass_over, read_to_end
from echelon.actors.state import StateStore, Waiting
from echelon.audit.heads import (
    CONFLICT,
    COSIGNATURE,
    DELTA_PREFIX,
    GLOBAL,
    HEAD_PREFIX,
    LAST,
    WITNESS_PREFIX,
    headers_of,
    kind_of,
    watched_by,
)
from echelon.audit.records import is_chunk, read_manifest
from echelon.audit.witness import HeadRefusal, RefusedBecause, WitnessCore
from echelon.backoff import Backoff
from echelon.bus.base import Bus, Outgoing, Reader, Record, RecordDamaged, TopicPartition
from echelon.clock import wall_seconds
from echelon.errors import ConnectionLost, LogLost, OffsetOutOfRange, StateError
from echelon.laws.keys import CONTROLLER, Keys
from echelon.messages.exchange import Close
from echelon.messages.keys import KeyEnd, KeyNext, KeyRole
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Refused, pack, unpack
from echelon.rounds.effects import note

SPACING = 1.0
"""Least seconds between two rounds: times of cosignatures are whole seconds, and each round needs a later one."""
LAST_LOOK = 0.2
"""Seconds between two looks for the last heads once the run is closed."""
FINAL_SECONDS = 10.0
"""Seconds that a witness waits after the close for heads that are part of the run and are not announced yet."""
MAX_STATE_BYTES = 2 << 20


class Witness:
    """The shell around `WitnessCore`.

    Args:
        name: the actor's name.
        witness: the witness's name, which its topic carries.
        bus: the exchange's broker.
        store: its state file; a gate shares its own.
        core: what it knows and decides.
        manifest: the run's terms.
        every: seconds after which it looks for new heads of delta logs although `global` stands still.
    """

    def __init__(
        self,
        name: str,
        *,
        witness: str,
        bus: Bus,
        store: StateStore,
        services: Services,
        core: WitnessCore,
        manifest: RunManifest,
        every: float,
    ) -> None:
        self.name, self.bus, self.store, self.services, self.core = name, bus, store, services, core
        self.topic = WITNESS_PREFIX + witness
        self._every, self._manifest = every, manifest
        heads = {TopicPartition(log.head_topic): log.topic for log in core.logs}
        self._logs = heads
        self._of_global = next(at for at, topic in heads.items() if topic == GLOBAL)
        self._of_deltas = [at for at in heads if at != self._of_global]
        self._positions = dict.fromkeys(heads, 0)
        self._readers: dict[TopicPartition, Reader] = {}
        self.publisher = Publisher(
            name, bus, store, services, owns=lambda topic: topic == self.topic, ends_on_loss=False
        )
        self._backoff = Backoff(f"{name} witness")
        self._conflicts: list[Outgoing] = []
        self._not_before = 0.0
        self._last_seen = False
        self._keys = Keys.of(manifest)
        self._keys_read = 0
        """Offset of `global` before which no change of a key is unknown."""
        self._actor = (
            KeyRole.WITNESS,
            next(place for place, one in enumerate(manifest.witnesses) if one.name == witness),
        )
        self._witness = witness
        self._close: Close | None = None
        self._closing_since = 0.0
        self.running = False
        """Whether it has recovered and cosigns."""
        self.halted = False

    # ---- the loop --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Cosign until the run is closed and its last heads are cosigned, or until halted.

        Raises:
            BusError: the broker failed it; it can be started again.
            StateError: its topic and its state contradict each other, or a topic lost records.
        """
        await self.publisher.reconcile()
        pump = asyncio.create_task(self.publisher.run(), name=f"{self.name} witness publisher")
        try:
            await self._recover()
            one = self.bus.reader({self._of_global: self._positions[self._of_global]})
            self._readers[self._of_global] = one
            if self._of_deltas:
                other = self.bus.reader({at: self._positions[at] for at in self._of_deltas})
                self._readers |= dict.fromkeys(self._of_deltas, other)
            self.running = True
            while not self.halted:
                await self._round()
                if pump.done():
                    pump.result()
                if self._finished():
                    break
                await self._wait()
            await self.publisher.flush(pump, lambda: self.halted)
        finally:
            self.running = False
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            for reader in set(self._readers.values()):
                await reader.aclose()
            self._readers.clear()

    def halt(self) -> None:
        """Leave the loop within seconds; a restart goes on from what is stored."""
        self.halted = True

    async def _wait(self) -> None:
        """Until `global` moves, or some time has passed; never shorter than rounds have to be apart."""
        loop = asyncio.get_running_loop()
        await self._read(self._of_global, LAST_LOOK if self._last_seen else self._every)
        while not self._last_seen and not self.halted and (left := self._not_before - loop.time()) > 0:
            await self._read(self._of_global, left)

    def _finished(self) -> bool:
        if self._close is None:
            return False
        sizes = {GLOBAL: self._close.index + 1}
        for head in self._close.heads:
            sizes[DELTA_PREFIX + self._manifest.boundaries[head.boundary].name] = head.size
        if self.core.has(sizes):
            return True
        late = asyncio.get_running_loop().time() - self._closing_since > FINAL_SECONDS
        if late:
            self.services.log.warning(
                "%s: the run is closed, and not all of its heads were announced", self.name
            )
        return late

    # ---- a round ---------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Read delta heads to their end, then ask how far `global` is announced, read up to there, and cosign.

        The order is the point: what `echelon.audit.cosigned.evidence` shows rests on it.
        """
        await self._read_all(self._of_deltas)
        await self._read_all([self._of_global])
        if self._last_seen and self._close is None:
            await self._look_for_close()
        notes = self.core.round(wall_seconds())
        publish = [*self._conflicts]
        for topic, cosigned in notes:
            publish.append(Outgoing(self.topic, cosigned.encode(), topic.encode(), headers_of(COSIGNATURE)))
        if not publish:
            return
        self._not_before = asyncio.get_running_loop().time() + SPACING
        snapshot = self._snapshot()

        def persist() -> list[Waiting]:
            return self.store.commit(witness=snapshot, publish=publish)

        rows = await self.services.offload(persist, cost=STEP_COST)
        self._conflicts.clear()
        self.publisher.put(rows)
        size = sum(record.size for record in publish)
        now = asyncio.get_running_loop().time()
        self.services.sink(self.name, now, note("cosigned", logs=len(notes), bytes=size))

    async def _read_all(self, topics: Iterable[TopicPartition]) -> None:
        """Read up to the ends as they are now."""
        ends = {at: await end_of(self.bus, at, self.name) for at in topics}
        for at, end in ends.items():
            while self._readers[at].position(at) < end and not self.halted:
                await self._read(at, self._every)

    async def _read(self, at: TopicPartition, timeout: float) -> None:
        """Take what the reader of a head topic has, waiting for at most so long."""
        reader = self._readers[at]
        try:
            records = await reader.next(timeout=timeout)
        except ConnectionLost:
            await self._backoff.wait()
            return
        except OffsetOutOfRange as error:
            raise LogLost(str(error)) from error
        except RecordDamaged as damaged:
            pass_over(reader, damaged, self.name)
            return
        self._backoff.reset()
        for record in records:
            await self._take(record)

    async def _take(self, record: Record) -> None:
        self._positions[record.at] = record.next_offset
        topic = self._logs[record.at]
        refusal = self.core.take(topic, record.value)
        if refusal is not None and refusal.reason is RefusedBecause.UNSIGNED and await self._learn_keys():
            refusal = self.core.take(topic, record.value)
        if refusal is None:
            self._last_seen = self._last_seen or (topic == GLOBAL and record.key == LAST)
            return
        self._say_refused(record, topic, refusal)

    def _say_refused(self, record: Record, topic: str, refusal: HeadRefusal) -> None:
        if refusal.reason is RefusedBecause.ENDED:
            self.services.log.warning(
                "%s passes %s@%d over: %s", self.name, record.topic, record.offset, refusal.detail
            )
        elif refusal.reason is not RefusedBecause.BEHIND:
            self.services.log.error(
                "%s does not cosign %s@%d (%s): %s", self.name, record.topic, record.offset, refusal.reason.value,
                refusal.detail,
            )  # fmt: skip
            now = asyncio.get_running_loop().time()
            self.services.sink(
                self.name, now, note("refused", topic=record.topic, reason=refusal.reason.value)
            )
        if refusal.conflict is not None:
            value = refusal.conflict.encode()
            self._conflicts.append(Outgoing(self.topic, value, topic.encode(), headers_of(CONFLICT)))

    async def _take_again(self, logs: Iterable[str]) -> None:
        """Take the heads of logs again, as far as they were read, of which it knew what does not count any more."""
        for log in logs:
            at = TopicPartition(HEAD_PREFIX + log)
            self.services.log.warning(
                "%s: a key of %s ended before what was announced with it: the heads are read again",
                self.name,
                log,
            )
            async for record in read_to_end(self.bus, at, 0, self.name):
                if record.offset < self._positions[at]:
                    refusal = self.core.take(log, record.value)
                    if refusal is not None:
                        self._say_refused(record, log, refusal)

    async def _look_for_close(self) -> None:
        """The announcement says that `global` has its close record: the last record there must be it."""
        at = TopicPartition(GLOBAL)
        end = await end_of(self.bus, at, self.name)
        async for record in read_to_end(self.bus, at, max(0, end - 1), self.name):
            try:
                envelope, message = read_manifest(record)
            except Refused:
                continue
            if not envelope.verified(self._keys.current(CONTROLLER)):
                await self._learn_keys()
            good = envelope.verified(self._keys.current(CONTROLLER))
            boundaries = range(len(self._manifest.boundaries))
            if (
                good
                and isinstance(message, Close)
                and message.run == self._manifest.run_id
                and all(head.boundary in boundaries for head in message.heads)
            ):
                self._close = message
                self._closing_since = asyncio.get_running_loop().time()

    # ---- start and restart -----------------------------------------------------------------------

    async def _recover(self) -> None:
        # The outbox first: what is sent meanwhile leaves it behind the end of the topic that is read.
        unsent = [row.record for row in self.store.outbox() if row.record.topic == self.topic]
        await self._learn_own_key()
        stored = self.store.witness()
        if stored is not None:
            try:
                self._restore(stored)
            except StateError:
                if not await self._learn_keys():
                    raise
                self._restore(stored)
            await self._take_again(self.core.forget_ended())
        own = [record async for record in read_to_end(self.bus, TopicPartition(self.topic), 0, self.name)]
        cosigned = [record for record in own if kind_of(record) == COSIGNATURE]
        if any(self.core.unsigned(one.key.decode("utf-8", "replace"), one.value) for one in cosigned):
            await self._learn_keys()
        for record in (*own, *(record.at(0, 0) for record in unsent)):
            if kind_of(record) == COSIGNATURE:
                self.core.recall(record.key.decode("utf-8", "replace"), record.value)
        await self._recall_last()

    async def _learn_own_key(self) -> None:
        """Wait until `global` names its key, where the run manifest names another one."""
        own = self.core.signer.public
        while all(span.public != own for span in self._keys.line(self._actor)) and not self.halted:
            if not await self._learn_keys():
                await self._backoff.wait()
        self._backoff.reset()

    async def _learn_keys(self) -> bool:
        """Look for changes of keys on `global`; whether there were any that it had not seen.

        They are rare, and a head or a note that no known key signed is the sign of one: so no witness reads payloads
        all the time.
        """
        at, before = TopicPartition(GLOBAL), self._keys
        async for record in read_to_end(self.bus, at, self._keys_read, self.name):
            self._keys_read = record.next_offset
            if is_chunk(record):
                continue
            try:
                envelope, message = read_manifest(record)
                if not isinstance(message, KeyNext | KeyEnd):
                    continue
                after = self._keys.after(message)
            except Refused:
                continue  # it changes nobody's key
            if envelope.verified(after.current(CONTROLLER)):
                self._keys = after
        if self._keys is before:
            return False
        mine = [span.public for span in self._keys.line(self._actor)]
        former = tuple(public for public in mine if public != self.core.signer.public)
        watched = watched_by(self._manifest, self._witness, self._keys)
        await self._take_again(self.core.follow(watched, former))
        return True

    async def _recall_last(self) -> None:
        """Whether the last announcement of `global` was read already: nothing follows it, so nobody says it again."""
        end = await end_of(self.bus, self._of_global, self.name)
        if end == 0 or self._positions[self._of_global] < end:
            return  # the newest announcement is still to be read
        async for record in read_to_end(self.bus, self._of_global, end - 1, self.name):
            self._last_seen = self._last_seen or record.key == LAST

    def _snapshot(self) -> bytes:
        positions = {at.topic: position for at, position in self._positions.items()}
        return pack([sorted(positions.items()), self.core.snapshot()])

    def _restore(self, data: bytes) -> None:
        try:
            fields: Any = unpack(data, limit=MAX_STATE_BYTES)
            positions, core = fields
            self._positions |= {TopicPartition(topic): int(position) for topic, position in positions}
        except (Refused, TypeError, ValueError) as error:
            raise StateError(
                f"{self.name}: what it knows as a witness is damaged ({error}): move its state file away, and it goes "
                "on from its own topic"
            ) from None
        self.core.restore(core)
