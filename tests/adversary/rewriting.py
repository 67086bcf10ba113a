"""A finished exchange, written again by an insider with real keys: what he would put in the place of the true log.

A rewritten `global` is derived by the controller's own core from the delta logs as they stand, by a plan that says how
far each commit reads them. So every record is signed, numbered, chained and derived as it must be: what is wrong with
it is only that it is not what happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from echelon.audit.log import Entry, TopicLog
from echelon.audit.records import LogRecord, StoredRecord, read_manifest
from echelon.laws.rules import Allowed
from echelon.messages.envelope import Signer
from echelon.messages.exchange import Close as CloseRecord
from echelon.messages.exchange import CloseReason, Commit, Delta, Genesis
from echelon.messages.manifest import RunManifest
from echelon.rounds.controller.core import ControllerCore
from tests.audit.synthetic import Exchange, TopicWriter

Topics = dict[str, list[StoredRecord]]


@dataclass(frozen=True)
class Reading:
    """What one commit rests on: manifests of each delta log that it has read, and the times that it states."""

    sizes: tuple[int, ...]
    measured: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """How a `global` comes about: its commits, what its close has read, and why it closes (None: it does not)."""

    commits: tuple[Reading, ...]
    end: tuple[int, ...]
    reason: CloseReason | None

    def cut(self, commits: int) -> Plan:
        """Only the first commits, and a fresh close behind them that has read no more."""
        kept = self.commits[:commits]
        return Plan(kept, kept[-1].sizes if kept else (0,) * len(self.end), CloseReason.STOPPED)

    def without(self, boundary: int) -> Plan:
        """No record of a boundary is ever read."""
        return self._sizes(lambda _, sizes: _put(sizes, boundary, 0))

    def late(self, boundary: int, commits: int, *, since: int = 0) -> Plan:
        """From a commit on, a boundary is read as far as the true log had read it so many commits before."""

        def sizes(place: int, found: tuple[int, ...]) -> tuple[int, ...]:
            if place < since:
                return found
            before = place - commits
            return _put(found, boundary, self.commits[before].sizes[boundary] if before >= 0 else 0)

        return self._sizes(sizes)

    def joined(self, commit: int) -> Plan:
        """Commit number `commit` (from 1) and the one behind it are one."""
        return replace(self, commits=(*self.commits[: commit - 1], *self.commits[commit:]))

    def split(self, commit: int) -> Plan:
        """Commit number `commit` becomes two: the first without the last boundary that it reads anything new of."""
        found = self.commits[commit - 1]
        before = self.commits[commit - 2].sizes if commit > 1 else (0,) * len(found.sizes)
        last = max(index for index, size in enumerate(found.sizes) if size > before[index])
        first = replace(found, sizes=_put(found.sizes, last, before[last]))
        return replace(self, commits=(*self.commits[: commit - 1], first, *self.commits[commit - 1 :]))

    def stating(self, measured: Callable[[int, tuple[int, ...]], tuple[int, ...]]) -> Plan:
        """Other times: `measured` is given each commit's place and what it stated."""
        changed = [replace(r, measured=measured(i, r.measured)) for i, r in enumerate(self.commits)]
        return replace(self, commits=tuple(changed))

    def _sizes(self, sizes: Callable[[int, tuple[int, ...]], tuple[int, ...]]) -> Plan:
        changed = [replace(r, sizes=sizes(i, r.sizes)) for i, r in enumerate(self.commits)]
        return replace(self, commits=tuple(changed), end=sizes(len(changed), self.end))


def _put(sizes: tuple[int, ...], place: int, size: int) -> tuple[int, ...]:
    return (*sizes[:place], size, *sizes[place + 1 :])


def entries(log: TopicLog, records: Iterable[LogRecord]) -> list[Entry]:
    """The manifests of one topic that hold."""
    found = (log.read(record).entry for record in records)
    return [entry for entry in found if entry is not None]


def terms_of(topics: Mapping[str, Iterable[LogRecord]]) -> RunManifest:
    """The run manifest that genesis carries."""
    log = TopicLog("global")
    entries(log, topics["global"])
    assert log.manifest is not None
    return log.manifest


def plan_of(topics: Mapping[str, Iterable[LogRecord]]) -> Plan:
    """How the `global` of these topics came about."""
    commits: list[Reading] = []
    end: tuple[int, ...] = ()
    reason = None
    for entry in entries(TopicLog("global"), topics["global"]):
        message = entry.message
        if isinstance(message, Commit):
            end = tuple(head.size for head in message.heads)
            commits.append(Reading(end, message.measured))
        elif isinstance(message, CloseRecord):
            end, reason = tuple(head.size for head in message.heads), message.reason
    return Plan(tuple(commits), end, reason)


class Rewriting(Exchange):
    """An exchange that goes on from the genesis and the delta logs of another one.

    Args:
        topics: the other one.
        controller: signs what is new on `global`.
        gates: sign what is new on delta logs, by boundary.
        rules: users' own classes that the run's terms name.
    """

    def __init__(
        self,
        topics: Mapping[str, Sequence[StoredRecord]],
        controller: Signer,
        gates: Mapping[int, Signer] | None = None,
        rules: Allowed | None = None,
    ) -> None:
        log, kept = TopicLog("global"), []
        for record in topics["global"]:
            kept.append(record)
            if log.read(record).entry is not None:
                break
        assert log.manifest is not None
        assert log.initial is not None
        self.manifest = log.manifest
        run = self.manifest.run_id
        self.main = TopicWriter("global", controller, run)
        for record in kept:
            self.main.append(record.key, record.headers, record.value)
        self.main.number = 1
        self.main.tree.append(kept[-1].value)
        self.core = ControllerCore(self.manifest, log.initial, rules=rules)
        genesis = read_manifest(kept[-1])[1]
        assert isinstance(genesis, Genesis)
        self.core.transcript.append(genesis, hashlib.sha256(kept[-1].value).digest(), self.main.tree.root())
        self.gates, self.logs, self._entries = [], [], []
        for index, terms in enumerate(self.manifest.boundaries):
            topic, public = f"delta.{terms.name}", bytes.fromhex(terms.gate_public)
            writer = TopicWriter(topic, (gates or {}).get(index, controller), run)
            for record in topics[topic]:
                writer.append(record.key, record.headers, record.value)
            self.gates.append(writer)
            self.logs.append(TopicLog(topic, public=public, run=run, boundary=index))
            found = entries(TopicLog(topic, public=public, run=run, boundary=index), writer.records)
            writer.number = len(found)
            self._entries.append(found)

    def read(self, sizes: Sequence[int]) -> None:
        """Read every delta log until it has so many manifests, and refuse what must be refused."""
        for boundary, size in enumerate(sizes):
            log, records = self.logs[boundary], self.gates[boundary].records
            while log.tree.size < size:
                entry = log.read(records[len(log.chain)]).entry
                if entry is not None:
                    assert isinstance(entry.message, Delta)
                    reason = self.core.offer(
                        entry.message, entry.payload or b"", entry.offset, fault=entry.refusal
                    )
                    if reason is not None:
                        self.refuse(boundary, entry.number, entry.offset, reason)

    def write_again(self, boundary: int, edit: Callable[[Delta], Delta | None]) -> None:
        """A delta log anew, by its gate's key."""
        found, writer = self._entries[boundary], self.gates[boundary]
        fresh = TopicWriter(writer.topic, writer.signer, writer.run)
        for entry in found:
            assert isinstance(entry.message, Delta)
            assert entry.payload is not None
            delta = edit(entry.message)
            if delta is not None:
                fresh.chunks(entry.payload, delta.payload)
                fresh.manifest(delta.model_copy(update={"seq": fresh.number, "prefix": fresh.chain.value}))
        self.gates[boundary] = fresh


def rewritten(
    topics: Mapping[str, Sequence[StoredRecord]],
    plan: Plan,
    controller: Signer,
    *,
    rules: Allowed | None = None,
) -> Topics:
    """The topics with another `global`: the genesis that is pinned, and after it what the plan says.

    A commit for which nothing waits is left out, as there can be none.
    """
    exchange = Rewriting(topics, controller, rules=rules)
    for reading in plan.commits:
        exchange.read(reading.sizes)
        if exchange.core.pending:
            exchange.commit(reading.measured)
    exchange.read(plan.end)
    if plan.reason is not None:
        exchange.close(plan.reason)
    return exchange.topics


def resigned(
    topics: Mapping[str, Sequence[StoredRecord]],
    boundary: int,
    gate: Signer,
    edit: Callable[[Delta], Delta | None],
) -> Topics:
    """The topics with a delta log that its gate wrote again: each delta as `edit` returns it; None leaves it out.

    Numbers and prefixes are made to fit; a `global` that has read the old log does not fit it any more and has to be
    rewritten too.
    """
    exchange = Rewriting(topics, gate, {boundary: gate})
    exchange.write_again(boundary, edit)
    return {**topics, exchange.gates[boundary].topic: list(exchange.gates[boundary].records)}


def genesis_of(topics: Mapping[str, Iterable[LogRecord]]) -> bytes:
    """What is pinned: the SHA-256 of the genesis record's envelope."""
    first = entries(TopicLog("global"), topics["global"])[0]
    assert isinstance(first.message, Genesis)
    return first.sha256
