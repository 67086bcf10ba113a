"""Whole federations with the quadratic learner: settings, runs to watch and to meddle with, and their topics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from echelon.actors.device import Interceptor
from echelon.bus import Record, TopicPartition, open_bus
from echelon.bus.chunks import is_chunk
from echelon.config.run import RunSettings, parse
from echelon.messages.boundary import BOUNDARY, Adopt, Cohort, Masked, SealedDelta, Window
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import Payload, Refusal
from echelon.messages.wire import Message
from echelon.run.assembly import Assembly
from echelon.run.federation import Federation, Result
from echelon.run.recorder import Recorder
from echelon.sim.signature_cache import remembering
from echelon.virtual_loop import run_virtual
from tools.fleet.outcome import manifests

M = TypeVar("M", bound=Message)
Meddler = Callable[[Assembly], Awaitable[None]]


def federation(**changes: Any) -> RunSettings:
    """Two boundaries of four quadratic devices on the virtual clock; any field of the run file may be changed."""
    fields: dict[str, Any] = {
        "name": "test",
        "clock": "virtual",
        "seed": 1,
        "boundaries": boundaries(4, 4),
        "budget": {"commits": 3},
        "learner": {"kind": "quadratic", "dim": 24},
        "sync": {"windows": 2},
        "window": {"deadline": 5, "round_timeout": 2, "patience": 2.0},
    }
    return parse(fields | changes, "test")


def boundaries(*devices: int, slow: str | None = None) -> list[dict[str, Any]]:
    """Boundaries a, b, ... with so many devices each; one of all may be three times slower."""
    found = []
    for place, count in enumerate(devices):
        name = chr(ord("a") + place)
        listed = [
            {"id": f"{name}-{number}", "speed": 1 / 3 if f"{name}-{number}" == slow else 1.0}
            for number in range(count)
        ]
        found.append({"name": name, "devices": listed, "data": {"source": "text:unused"}})
    return found


@dataclass
class Outcome:
    """A finished run: its result and every record that stands on its brokers (exchange, a, b, ...)."""

    result: Result
    assembly: Assembly
    topics: dict[str, dict[str, list[Record]]]

    @property
    def summary(self) -> dict[str, Any]:
        return self.result.summary

    @property
    def adapter(self) -> str:
        return str(self.summary["adapter_sha256"])

    @property
    def drop(self) -> float:
        """How much the loss fell over all boundaries."""
        return float(self.summary["base_loss"]["overall"] - self.summary["final_loss"]["overall"])

    def records(self, boundary: str, topic: str) -> list[Record]:
        return self.topics[boundary][topic]

    def envelopes(self, boundary: str, topic: str) -> Iterator[Envelope]:
        """The readable envelopes of a boundary topic, in order."""
        return envelopes(self.topics[boundary][topic])

    def messages(self, boundary: str, topic: str, kind: type[M]) -> list[M]:
        return messages(self.topics[boundary][topic], kind)


def envelopes(records: list[Record]) -> Iterator[Envelope]:
    for record in records:
        if not is_chunk(record):
            yield Envelope.open(record.value)


def messages(records: list[Record], kind: type[M]) -> list[M]:
    """Every message of a kind, each distinct record once: delivery is at least once."""
    found: dict[bytes, M] = {}
    for envelope in envelopes(records):
        if envelope.type == kind.kind:
            found[envelope.signature] = kind.decode(envelope.body)
    return list(found.values())


@dataclass
class Watched(Federation):
    """A federation that keeps its assembly, lets a coroutine meddle with its brokers, and reads them at the end."""

    meddler: Meddler | None = None
    assembly: Assembly | None = field(default=None, init=False)
    topics: dict[str, dict[str, list[Record]]] = field(default_factory=dict, init=False)

    async def _actors(self, assembly: Assembly) -> tuple[Any, float]:
        self.assembly = assembly
        meddling = None if self.meddler is None else asyncio.ensure_future(self.meddler(assembly))
        try:
            found = await super()._actors(assembly)
        finally:
            if meddling is not None:
                if meddling.done():
                    meddling.result()
                meddling.cancel()
                await asyncio.gather(meddling, return_exceptions=True)
        for broker in ("exchange", *(boundary.name for boundary in self.settings.boundaries)):
            self.topics[broker] = await read_broker(assembly.url(broker))
        return found


async def read_broker(url: str) -> dict[str, list[Record]]:
    """Every record of a broker, by topic; the partitions of one topic one after another."""
    found: dict[str, list[Record]] = {}
    async with await open_bus(url) as bus:
        for topic, partitions in (await bus.topics()).items():
            records: list[Record] = []
            for partition in range(partitions):
                at = TopicPartition(topic, partition)
                end = await bus.end_offset(at)
                async with bus.reader({at: await bus.first_offset(at)}) as reader:
                    while reader.position(at) < end:
                        records += await reader.next(timeout=5.0)
            found[topic] = records
    return found


def recorder_for(settings: RunSettings) -> Recorder:
    return Recorder({boundary.name: len(boundary.device_list()) for boundary in settings.boundaries})


def run(
    settings: RunSettings,
    meddler: Meddler | None = None,
    interceptor: Interceptor | None = None,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> Outcome:
    """Run on the virtual clock, with everything in memory; a listener is told every line of metrics.

    All actors are in this process: each verifies every signature, and the same one is computed once.
    """
    recorder = recorder_for(settings)
    if listener is not None:
        recorder.listeners.append(listener)
    watched = Watched(settings, None, recorder, meddler=meddler, interceptor=interceptor)
    with remembering():
        result = run_virtual(watched.run)
    assert watched.assembly is not None
    return Outcome(result, watched.assembly, watched.topics)


# ---- what must hold of every run -------------------------------------------------------------------------


def check_offers(control: list[Record]) -> None:
    """No (device, offer) is in two sums."""
    members = {
        (cohort.window, member.device): member.offer
        for cohort in messages(control, Cohort)
        for member in cohort.members
    }
    summed = [
        (device, members[window.window, device])
        for window in messages(control, Window)
        for device in window.included
    ]
    assert summed
    assert len(set(summed)) == len(summed)


def not_refused(topics: dict[str, dict[str, list[Record]]], boundary: str) -> list[SealedDelta]:
    """A boundary's deltas without those that the exchange refused; boundaries are in the order of their names.

    In real time a boundary may be left so far behind that a delta of it is too old. It takes the windows back then,
    once, and they count with a later delta.
    """
    place = sorted(name for name in topics if name != "exchange").index(boundary)
    refused = {
        said.seq
        for said in manifests(topics["exchange"]["global"])
        if isinstance(said, Refusal) and said.boundary == place
    }
    returned = [seq for said in messages(topics[boundary]["control"], Adopt) for seq in said.returned]
    assert len(set(returned)) == len(returned)
    assert set(returned) <= refused
    return [delta for delta in messages(topics[boundary]["delta"], SealedDelta) if delta.seq not in refused]


def check_windows(control: list[Record], merged: list[SealedDelta]) -> None:
    """Every closed window has one record, and is in at most one of these deltas."""
    closed = [window.window for window in messages(control, Window)]
    assert len(set(closed)) == len(closed)
    covered = [summary.window for delta in merged for summary in delta.windows]
    assert covered
    assert len(set(covered)) == len(covered)
    assert set(covered) <= set(closed)


def check_bodies(topic: str, records: list[Record], number: str) -> None:
    """One body for each (sender, type, number): a writer never says two different things under one number."""
    said: dict[tuple[str, str, int], set[bytes]] = {}
    for envelope in envelopes(records):
        message = BOUNDARY.find(envelope.type, envelope.type_version).decode(envelope.body)
        value = getattr(message, number, None)
        if value is not None:
            said.setdefault((envelope.sender, envelope.type, value), set()).add(envelope.body)
    assert said
    forks = {key: len(bodies) for key, bodies in said.items() if len(bodies) > 1}
    assert forks == {}, topic


def payload_of(message: Message) -> Payload:
    assert isinstance(message, Masked | SealedDelta)
    return message.payload


def float_bytes(vector: np.ndarray) -> bytes:
    return np.ascontiguousarray(vector, "<f4").tobytes()
