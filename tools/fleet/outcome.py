"""What a finished federation left on its brokers: read it all, count it, and say what is not as it must be."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from echelon.audit.heads import is_log
from echelon.audit.records import read_manifest
from echelon.audit.verify import verify
from echelon.bus import Record, TopicPartition, open_bus
from echelon.bus.chunks import is_chunk
from echelon.config.broker import BrokerSettings
from echelon.errors import BusError
from echelon.messages.boundary import BOUNDARY, Adopt, Cohort, SealedDelta, Void, Window
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import Close, Commit, Delta, Genesis, Refusal
from echelon.messages.keys import KeyChange
from echelon.messages.wire import Message
from echelon.sim.invariants.crossing import origin_of

Topics = Mapping[str, list[Record]]
M = TypeVar("M", bound=Message)
SILENCE = 30.0
"""Seconds after which a record that a broker promised counts as lost."""


async def read_broker(broker: BrokerSettings, topics: Iterable[str] | None = None) -> dict[str, list[Record]]:
    """Every record of a broker, by topic; the partitions of one topic one after another.

    Args:
        broker: how to reach it, as somebody who may read.
        topics: which; None for all that this principal sees.

    Raises:
        BusError: a topic may not be read, or a record that was promised does not come.
    """
    async with await open_bus(broker.url, security=broker.security, read_only=True) as bus:
        counts = await bus.topics()
        chosen = list(counts if topics is None else topics)
        places = [TopicPartition(topic, number) for topic in chosen for number in range(counts.get(topic, 1))]
        ends = dict(zip(places, await asyncio.gather(*(bus.end_offset(at) for at in places)), strict=True))
        starts = dict(
            zip(places, await asyncio.gather(*(bus.first_offset(at) for at in places)), strict=True)
        )
        open_ones = {at: starts[at] for at in places if starts[at] < ends[at]}
        records: dict[TopicPartition, list[Record]] = {at: [] for at in places}
        if open_ones:
            async with bus.reader(open_ones) as reader:
                while short := [at for at in open_ones if reader.position(at) < ends[at]]:
                    some = await reader.next(timeout=SILENCE)
                    if not some:
                        at = short[0]
                        raise BusError(
                            f"{at.topic}/{at.partition}: offset {reader.position(at)} of {ends[at]} does not arrive"
                        )
                    for record in some:
                        records[record.at].append(record)
    return {
        topic: [record for at in places if at.topic == topic for record in records[at]] for topic in chosen
    }


def envelopes(records: Iterable[Record]) -> Iterator[Envelope]:
    """The signed records of a boundary topic, in order, repeats included."""
    for record in records:
        if not is_chunk(record):
            yield Envelope.open(record.value)


def messages(records: Iterable[Record], kind: type[M]) -> list[M]:
    """Every message of a kind, each distinct record once: delivery is at least once."""
    by_signature: dict[bytes, M] = {}
    for envelope in envelopes(records):
        if envelope.type == kind.kind:
            by_signature[envelope.signature] = kind.decode(envelope.body)
    return list(by_signature.values())


def manifests(records: Iterable[Record]) -> list[Message]:
    """Every manifest of an exchange topic, each distinct one once."""
    by_record = {record.value: read_manifest(record)[1] for record in records if not is_chunk(record)}
    return list(by_record.values())


@dataclass(frozen=True)
class Tally:
    """What one boundary did, counted from its decisions."""

    windows: int
    void: int
    tokens: int
    dropouts: int

    @classmethod
    def of(cls, control: Iterable[Record]) -> Tally:
        """Count the records of `control`."""
        records = list(control)
        closed = messages(records, Window)
        members = {cohort.window: len(cohort.members) for cohort in messages(records, Cohort)}
        return cls(
            windows=len(closed),
            void=len(messages(records, Void)),
            tokens=sum(window.summary.tokens for window in closed),
            dropouts=sum(members[window.window] - len(window.included) for window in closed),
        )


# ---- what must hold ------------------------------------------------------------------------------------------------


def faults_of_exchange(topics: Topics, boundaries: Iterable[str], genesis: bytes | None = None) -> list[str]:
    """What is wrong on the exchange of a closed run; nothing if it is as it must be.

    Besides the audit, which derives every adapter again: no writer says two things under one number, no delta is
    applied twice, and each is merged or refused only after it was sent.
    """
    faults = []
    report = verify({name: list(records) for name, records in topics.items()}, genesis=genesis)
    if not report.ok:
        faults += [f"audit: {finding}" for finding in report.findings]
    for topic, records in topics.items():
        if is_log(topic):
            faults += _numbered_once(topic, records)
    said = manifests(topics["global"])
    closes = [message for message in said if isinstance(message, Close)]
    if len(closes) != 1:
        faults.append(f"global: the run was closed {len(closes)} times")
    elif closes[0].adapter_sha256 != report.adapter_sha256:
        faults.append("global: close names another adapter than the one derived again")
    applied = Counter(
        (merged.boundary, merged.seq)
        for message in said
        if isinstance(message, Commit)
        for merged in message.merged
    )
    sent = {
        (message.boundary, message.seq)
        for name in boundaries
        for message in manifests(topics[f"delta.{name}"])
        if isinstance(message, Delta)
    }
    faults += [
        f"global: delta {key} was applied {times} times" for key, times in applied.items() if times > 1
    ]
    faults += [f"global: delta {key} was applied and never sent" for key in applied if key not in sent]
    return faults


def _numbered_once(topic: str, records: Iterable[Record]) -> list[str]:
    bodies: dict[int, set[bytes]] = {}
    for record in records:
        if not is_chunk(record):
            _, message = read_manifest(record)
            if isinstance(message, Delta):
                number = message.seq
            elif isinstance(message, Genesis | Commit | Refusal | KeyChange | Close):
                number = message.index
            else:
                continue
            bodies.setdefault(number, set()).add(record.value)
    faults = [
        f"{topic}: two records with number {number}" for number, said in bodies.items() if len(said) > 1
    ]
    if sorted(bodies) != list(range(len(bodies))):
        faults.append(f"{topic}: its numbers are not 0 to {len(bodies) - 1}")
    return faults


def faults_of_boundary(name: str, topics: Topics, exchange: Topics) -> list[str]:
    """What is wrong on a boundary's broker after a closed run; nothing if it is as it must be.

    Every window ended once and is in at most one delta that counts, every update is in at most one sum, no two members
    of a window were trained on one shard, nobody said two things under one number, every delta that crossed is the one
    that was sealed, and `global` holds the exchange's records, all of them and in order.
    """
    control = topics["control"]
    return [
        f"{name}: {fault}"
        for fault in (
            *_windows(control, messages(topics["delta"], SealedDelta)),
            *_updates(control),
            *_said_once(topics),
            *_crossed(name, topics["delta"], exchange),
            *_mirrored(topics["global"], exchange["global"]),
        )
    ]


def _windows(control: list[Record], sealed: list[SealedDelta]) -> Iterator[str]:
    closed = [window.window for window in messages(control, Window)]
    ended = sorted(closed + [void.window for void in messages(control, Void)])
    if ended != list(range(len(ended))):
        yield f"windows did not end once each: {ended}"
    # A delta that was refused as too stale gives its windows back, and a later one has them again.
    returned = {seq for adopt in messages(control, Adopt) for seq in adopt.returned}
    covered = Counter(
        summary.window for delta in sealed if delta.seq not in returned for summary in delta.windows
    )
    yield from (f"window {window} is in {times} deltas" for window, times in covered.items() if times > 1)
    if not set(covered) <= set(closed):
        yield f"deltas hold windows that never closed: {sorted(set(covered) - set(closed))}"
    if not covered:
        yield "no delta was sealed"
    versions = Counter(adopt.version for adopt in messages(control, Adopt))
    yield from (
        f"version {version} was adopted {times} times" for version, times in versions.items() if times > 1
    )


def _updates(control: list[Record]) -> Iterator[str]:
    members = {
        (cohort.window, member.device): member
        for cohort in messages(control, Cohort)
        for member in cohort.members
    }
    summed: Counter[tuple[str, int]] = Counter()
    for window in messages(control, Window):
        shards: Counter[int] = Counter()
        for device in window.included:
            member = members[window.window, device]
            summed[device, member.offer] += 1
            shards.update(member.shards)
        yield from (
            f"window {window.window}: shard {shard} is in {times} updates"
            for shard, times in shards.items()
            if times > 1
        )
    yield from (f"update {key} is in {times} sums" for key, times in summed.items() if times > 1)


_NUMBERS = {
    "control": ("window", "seq"),
    "model": ("version",),
    "masked": ("window",),
    "handshake": ("window",),
    "delta": ("seq",),
}


def _said_once(topics: Topics) -> Iterator[str]:
    for topic, names in _NUMBERS.items():
        for name in names:
            said: dict[tuple[str, str, int], set[bytes]] = {}
            for envelope in envelopes(topics.get(topic, ())):
                message = BOUNDARY.find(envelope.type, envelope.type_version).decode(envelope.body)
                value = getattr(message, name, None)
                if value is not None:
                    said.setdefault((envelope.sender, envelope.type, value), set()).add(envelope.body)
            for (sender, kind, value), bodies in said.items():
                if len(bodies) > 1:
                    yield f"{topic}: {sender} said {len(bodies)} different {kind} for {name} {value}"


def _crossed(name: str, proposed: list[Record], exchange: Topics) -> Iterator[str]:
    sealed = {delta.seq: delta for delta in messages(proposed, SealedDelta)}
    for message in manifests(exchange[f"delta.{name}"]):
        if isinstance(message, Delta):
            delta = sealed.get(message.seq)
            if delta is None:
                yield f"delta {message.seq} crossed and was never sealed"
            elif (delta.payload.sha256, delta.windows) != (message.payload.sha256, message.windows):
                yield f"delta {message.seq} crossed otherwise than it was sealed"


def _mirrored(inside: list[Record], outside: list[Record]) -> Iterator[str]:
    """Each record of the exchange once or more, in order, byte for byte; a crash may repeat a stretch."""
    by_offset = {record.offset: record for record in outside}
    due = iter(sorted(by_offset))
    following = next(due, None)
    seen: set[int] = set()
    for record in inside:
        origin = origin_of(record, by_offset)
        if origin is None:
            yield f"global@{record.offset} is no record of the exchange"
            continue
        if origin.offset == following:
            following = next(due, None)
        elif origin.offset not in seen:
            yield f"global@{record.offset} was mirrored before what stands ahead of it"
        seen.add(origin.offset)
    if seen != set(by_offset):
        yield f"{len(set(by_offset) - seen)} records of the exchange's global are missing inside"
