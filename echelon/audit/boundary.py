"""The audit of a boundary from within: what crossed, derived again from the boundary's own topics.

An auditor outside reads the sums of a window as attested. A boundary's own auditor need not: from the records that
devices, edges and aggregator signed, the gate's own derivation gives every sum, weight, count and roster root again,
and the adapter versions that devices trained from. Each delta that crossed is held against what was derived.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from echelon.audit.boundary_facts import BoundaryFacts, ExchangeFacts, Opened, Unopened
from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.findings import MAX_FINDINGS, Code, Finding, Severity
from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.openings import WindowRoster
from echelon.audit.prefix import record_digest
from echelon.audit.records import Damaged, LogRecord, StoredRecord
from echelon.audit.relayed import RelayedInside
from echelon.audit.trimmed import SNAPSHOTS, TrimmedInputs, differs, state_of
from echelon.errors import CodecError, ProtocolError
from echelon.laws.relay import relayed_commit
from echelon.messages.adapter import F32
from echelon.messages.boundary import (
    INPUTS,
    Adopt,
    Cohort,
    Derived,
    Model,
    SealedDelta,
    Sealing,
    Version,
    Void,
    Window,
)
from echelon.messages.exchange import SOURCE_HEADER, Delta, RefusalReason, WindowSummary
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.derivation import BoundaryLog
from echelon.rounds.gate.facts import CommitFacts
from echelon.secagg.faults import InputRefused
from echelon.secagg.roster import Roster, WindowLeaf, roster_root

CONTROL = "control"
TOPICS = (CONTROL, *INPUTS, "delta", "versions", SNAPSHOTS, "model", GLOBAL)
"""What a boundary's auditor reads. Not `inbox` (sealed to one device), nor `split.*`, nor `behaviour`."""


@dataclass(frozen=True, slots=True)
class _Derived:
    """What is compared of a delta: base commit, windows, codec, exponent, SHA-256 of the payload."""

    values: tuple[object, ...]
    windows: tuple[WindowSummary, ...]


class BoundaryAudit:
    """One pass over a boundary's topics; `facts` and `findings` are complete after `run`.

    Args:
        facts: what the exchange says of the boundary.
        roster: the signed roster, already held against the manifest.
        adapters: every global adapter, ascending by commit, as it is derived from the exchange; it is read no further
            than the boundary went.
        trimmed: what of the boundary's inputs is gone, and what stands for it.
    """

    def __init__(
        self,
        facts: ExchangeFacts,
        roster: Roster,
        adapters: Iterator[DerivedAdapter],
        trimmed: TrimmedInputs | None = None,
    ) -> None:
        self.boundary = roster.boundary
        self.facts = BoundaryFacts(roster.boundary, crossed=len(facts.deltas))
        self.findings: list[Finding] = []
        self.errors = 0
        self._exchange = facts
        self._adapters = adapters
        self._commits: dict[int, bytes] = {}
        self._log = BoundaryLog(facts.manifest, roster, facts.manifest.adapter_layout().dim)
        for one in facts.decided:
            if isinstance(one, CommitFacts):
                self._log.learn(one, None)  # its adapter is asked for when it is wanted
            else:
                self._log.refuse(one.seq, one.reason is RefusalReason.STALE)
        self._rosters = WindowRoster()
        self._leaves: dict[int, list[WindowLeaf]] = {}
        self._derived: dict[int, _Derived] = {}
        self._versions: dict[int, tuple[int, bytes]] = {}
        """Commit and digest of each version of the boundary's adapter, derived."""
        self._trimmed = trimmed or TrimmedInputs()
        self._unseen = {one.state: one for one in self._trimmed.snapshots}
        """Snapshots of states that the derivation has not come to."""
        self._sealings: dict[int, bytes] = {}
        self._ended = 0
        """The window after the newest that ended on `control`."""
        self._stopped = False
        self._due: Incoming | None = None
        """The decision that is being derived; it is what an input of it contradicts."""

    def run(self, topics: Mapping[str, Iterator[Opened]], mirror: Iterable[LogRecord | Damaged] = ()) -> None:
        """Derive everything, and compare.

        Args:
            topics: the opened records of each of `TOPICS` but `global`, in order.
            mirror: the records of the boundary's `global`.
        """
        inputs = {name: topics[name] for name in INPUTS if name in topics}
        said = list(topics.get("versions", iter(())))
        self._go_on_behind(said)
        for item in topics.get(CONTROL, iter(())):
            if isinstance(item, Unopened):
                self._unopened(item)
            elif not self._stopped:
                self._decision(item, inputs)
        for items in inputs.values():
            for item in items:  # what no decision has asked for; it may still hold records of nobody
                if isinstance(item, Unopened):
                    self._unopened(item)
        self._compare_trimmed()
        self._compare_crossed()
        self._compare_proposed(topics.get("delta", iter(())))
        self._compare_derived(said)
        self._compare_models(topics.get("model", iter(())))
        self._compare_mirror(mirror)

    # ---- findings ----------------------------------------

    def _find(self, code: Code, severity: Severity, topic: str, offset: int | None, detail: str) -> None:
        self.errors += severity is Severity.ERROR
        if sum(1 for found in self.findings if found.severity is severity) < MAX_FINDINGS:
            self.findings.append(Finding(code, severity, topic, offset, detail))

    def _error(self, topic: str, offset: int | None, detail: str) -> None:
        self._find(Code.BOUNDARY, Severity.ERROR, f"{self.boundary}/{topic}", offset, detail)

    def _unopened(self, item: Unopened) -> None:
        if item.damaged:
            self._find(
                Code.UNREADABLE, Severity.ERROR, f"{self.boundary}/{item.topic}", item.offset, item.detail
            )
            return
        self.facts.refused += 1
        self._find(
            Code.REFUSED_RECORD, Severity.INFO, f"{self.boundary}/{item.topic}", item.offset, item.detail
        )

    def _stop(self, incoming: Incoming, detail: str) -> None:
        self._stopped = True
        self._error(incoming.topic, incoming.offset, f"{detail}; nothing after it was derived")

    def refuse(self, item: Opened) -> None:
        """Tell of a record that is no snapshot of the gate."""
        if isinstance(item, Unopened):
            self._unopened(item)

    def begins_late(self, topic: str, first: int) -> None:
        """Tell that a topic which is never trimmed begins at offset `first`."""
        self._error(
            topic, first, f"it begins at offset {first}, and it is never trimmed: records were deleted"
        )

    # ---- what was trimmed ----------------------------------------

    def _go_on_behind(self, said: Iterable[Opened]) -> None:
        """Begin with the snapshot that stands for what was trimmed; versions before it are the gate's word."""
        start = self._trimmed.start
        if start is None:
            # The cut is named at the end; windows whose inputs are gone are not searched for.
            self._stopped = bool(self._trimmed.firsts)
            return
        del self._unseen[start.state]
        try:
            self._log.restore(self._trimmed.payload)
        except (CodecError, ValueError) as error:
            self._error(SNAPSHOTS, start.offset, f"it is no snapshot of this boundary: {error}")
            self._stopped = True
            return
        self._unseen = {state: one for state, one in self._unseen.items() if state[0] > start.message.window}
        commit, anchor = self._log.ledger.commit, hashlib.sha256(self._log.ledger.anchor.data).digest()
        for adapter in self._adapters:
            self._commits[adapter.commit] = adapter.sha256
            if adapter.commit == commit:
                break
        if state_of(self._log) != start.state or self._commits.get(commit) != anchor:
            self._error(SNAPSHOTS, start.offset, "it stands on another adapter, or state, than it says")
        for item in said:
            if isinstance(item, Incoming) and isinstance(item.message, Derived):
                message = item.message
                if message.version < start.message.version:
                    self._versions.setdefault(message.version, (message.commit, message.sha256))
        current = self._log.current()
        if current is not None:
            self._versions[current.version] = current.commit, current.sha256

    def _compare_named(self, message: Version) -> None:
        """The version that a snapshot begins with must be the one that the aggregator named there."""
        start = self._trimmed.start
        if start is None or message.version != start.message.version:
            return
        if (message.commit, message.sha256) != self._versions.get(message.version):
            detail = f"it gives another adapter than version {message.version} was named with"
            self._error(SNAPSHOTS, start.offset, detail)

    def _compare_snapshot(self) -> None:
        """A snapshot of the state that was come to."""
        one = self._unseen.get(state_of(self._log)) if self._log.current() is not None else None
        if one is None:
            return
        del self._unseen[one.state]
        if differs(one, self._log):
            self._error(SNAPSHOTS, one.offset, "it is not what the boundary's records lead to")
        else:
            self.facts.snapshots += 1

    def _compare_trimmed(self) -> None:
        """Whether what is gone may be gone, and whether every snapshot is of a state that was."""
        manifest, start = self._exchange.manifest, self._trimmed.start
        fault = self._trimmed.fault(manifest, self._ended)
        if fault is not None:
            self._error(*fault)
        elif start is not None:
            self.facts.trimmed = start.message.window
            where = f"{self.boundary}/{SNAPSHOTS}"
            self._find(Code.TRIMMED, Severity.WARNING, where, start.offset, self._trimmed.told(manifest))
        for one in () if self._stopped else self._unseen.values():
            self._error(SNAPSHOTS, one.offset, "the boundary's records lead to no such state")

    # ---- the derivation ----------------------------------------

    def _decision(self, incoming: Incoming, inputs: Mapping[str, Iterator[Opened]]) -> None:
        """Apply a decision, reading as many inputs as it rests on."""
        message, self._due = incoming.message, incoming
        if isinstance(message, Window | Void):
            self._ended = max(self._ended, message.window + 1)
        elif isinstance(message, Sealing):
            self._sealings.setdefault(message.seq, message.payload_sha256)
        elif isinstance(message, Version):
            self._compare_named(message)
        elif isinstance(message, Cohort):
            self._check_bases(incoming, message)
        leaves = self._rosters.take(message)
        window = self._log.window
        if not self._feed(incoming):
            return
        if isinstance(message, Window):
            self._read_to(dict(zip(INPUTS, message.inputs, strict=False)), inputs)
        elif isinstance(message, Adopt) and self._log.blocked:
            self._stop(
                incoming, f"it takes over commit {message.commit}, and the exchange has not decided that"
            )
            return
        live = dict(inputs)
        while self._log.blocked and live and not self._stopped:
            for name, items in list(live.items()):
                if not self._pull(items):
                    del live[name]
        if self._stopped:
            return
        if self._log.blocked:
            self._stop(incoming, f"this {message.kind} rests on records that are not on the topics")
            return
        if isinstance(message, Window) and self._log.window > window:
            self._closed(incoming, message, leaves)
        for seq, sealed in list(self._log.sealed.items()):
            digest = hashlib.sha256(sealed.payload).digest()
            values = (sealed.base_commit, sealed.windows, sealed.codec, sealed.exponent, digest)
            self._derived[seq] = _Derived(values, sealed.windows)
            del self._log.sealed[seq]
        self._compare_snapshot()

    def _feed(self, incoming: Incoming) -> bool:
        try:
            try:
                self._log.feed(incoming)
            except InputRefused as refused:
                self._unopened(Unopened(incoming.topic, incoming.offset, str(refused)))
            self._settle()
        except ProtocolError as error:
            self._stop(self._due or incoming, str(error))
            return False
        return True

    def _settle(self) -> None:
        """Collect what was derived, and give the derivation the adapters that it wants.

        Raises:
            ProtocolError: the history contradicts itself; said again here if it was said while versions waited.
        """
        while True:
            for version in self._log.versions:
                self._versions[version.version] = version.commit, version.sha256
            self._log.versions = []
            wanted = self._log.wanted
            if wanted is not None:
                self._log.take_adapter(wanted.commit, self._adapter(wanted))
            self._log.progress()
            if not self._log.versions and self._log.wanted is None:
                return

    def _adapter(self, wanted: CommitFacts) -> F32:
        """The global adapter of a commit, float32[d]."""
        for adapter in self._adapters:
            self._commits[adapter.commit] = adapter.sha256
            if adapter.commit == wanted.commit and adapter.sha256 == wanted.adapter_sha256:
                return adapter.adapter
        raise ProtocolError(
            f"the exchange does not give the adapter of commit {wanted.commit}: see audit verify"
        )

    def _pull(self, items: Iterator[Opened]) -> bool:
        """Take the next record of a topic; False at its end."""
        item = next(items, None)
        if isinstance(item, Unopened):
            self._unopened(item)
        elif item is not None:
            self._feed(item)
        return item is not None

    def _read_to(self, ends: Mapping[str, int], inputs: Mapping[str, Iterator[Opened]]) -> None:
        """Read as far as the aggregator says that it had; more is read where that is not enough."""
        for name, end in ends.items():
            items = inputs.get(name)
            while items is not None and self._log.blocked and not self._stopped:
                item = next(items, None)
                if item is None:
                    break
                if isinstance(item, Unopened):
                    self._unopened(item)
                else:
                    self._feed(item)
                if item.offset + 1 >= end:
                    break

    def _closed(self, incoming: Incoming, message: Window, leaves: list[WindowLeaf] | None) -> None:
        """Open the roster root of a window that was derived."""
        if leaves is None or roster_root(leaves) != message.summary.roster_root:
            self._error(
                CONTROL,
                incoming.offset,
                f"the roster root of window {message.window} is not over its devices",
            )
        else:
            self._leaves[message.window] = leaves

    def _check_bases(self, incoming: Incoming, cohort: Cohort) -> None:
        """Devices train from, and mask for, the versions of a cohort: they must be those of the boundary's history."""
        for base in cohort.bases:
            _, derived = self._versions.get(base.version, (0, b""))
            if derived != base.sha256:
                what = f"it has SHA-256 {derived.hex()}" if derived else "there is none"
                self._error(
                    CONTROL,
                    incoming.offset,
                    f"the cohort of window {cohort.window} names version {base.version} with SHA-256 "
                    f"{base.sha256.hex()}; by the boundary's history {what}",
                )

    # ---- comparisons ----------------------------------------

    def _compare_crossed(self) -> None:
        topic = DELTA_PREFIX + self.boundary
        known = set()
        for offset, delta in self._exchange.deltas:
            known.add(delta.seq)
            if self._is_vouched(delta):
                self._compare_vouched(offset, delta)
                continue
            derived = self._derived.get(delta.seq)
            values = (delta.base_commit, delta.windows, delta.codec, delta.exponent, delta.payload.sha256)
            if derived is None:
                detail = f"delta {delta.seq} crossed, and the boundary's topics do not give it"
                self._find(Code.BOUNDARY, Severity.ERROR, topic, offset, detail)
            elif derived.values != values:
                what = _differing(derived.values, values)
                detail = f"delta {delta.seq} is not what the boundary's topics give: {what}"
                self._find(Code.BOUNDARY, Severity.ERROR, topic, offset, detail)
            else:
                self.facts.deltas += 1
                self.facts.windows += [one for one in delta.windows if one.window in self._leaves]
        for seq in sorted(set(self._derived) - known):
            detail = f"delta {seq} was sealed in the boundary and did not cross"
            self._find(Code.BOUNDARY, Severity.WARNING, topic, None, detail)

    def _is_vouched(self, delta: Delta | SealedDelta) -> bool:
        start = self._trimmed.start
        return start is not None and delta.seq < start.message.next_seq

    def _compare_vouched(self, offset: int, delta: Delta) -> None:
        """A delta of windows that are trimmed: what crossed must at least be what was sealed."""
        if self._sealings.get(delta.seq) != delta.payload.sha256:
            detail = f"delta {delta.seq}, of windows that are trimmed, is not the one that was sealed"
            self._find(Code.BOUNDARY, Severity.ERROR, DELTA_PREFIX + self.boundary, offset, detail)
        else:
            self.facts.vouched += 1

    def _compare_proposed(self, items: Iterator[Opened]) -> None:
        for item in items:
            if isinstance(item, Unopened):
                self._unopened(item)
            elif isinstance(item.message, SealedDelta) and not self._stopped:
                delta = item.message
                if self._is_vouched(delta):
                    continue
                derived = self._derived.get(delta.seq)
                values = (delta.base_commit, delta.windows, delta.codec, delta.exponent, delta.payload.sha256)
                if derived is None or derived.values != values:
                    self._error(
                        "delta",
                        item.offset,
                        f"the aggregator proposed a delta {delta.seq} that is not derived",
                    )

    def _compare_derived(self, items: Iterable[Opened]) -> None:
        """What the gate said that it derived: devices train from, and mask for, nothing else."""
        for item in items:
            if isinstance(item, Unopened):
                self._unopened(item)
            elif isinstance(item.message, Derived):
                message = item.message
                derived = self._versions.get(message.version)
                if derived != (message.commit, message.sha256) and not (derived is None and self._stopped):
                    detail = f"the gate says that version {message.version} is another adapter than the history gives"
                    self._error("versions", item.offset, detail)

    def _compare_models(self, items: Iterator[Opened]) -> None:
        size = 4 * self._exchange.manifest.adapter_layout().dim
        for item in items:
            if isinstance(item, Unopened):
                self._unopened(item)
            elif isinstance(item.message, Model):
                self._compare_model(item, item.message, item.payload or b"", size)

    def _compare_model(self, item: Incoming, model: Model, payload: bytes, size: int) -> None:
        derived = self._versions.get(model.version)
        if derived is None and self._stopped:
            return  # said once, where the derivation ended
        if (
            derived != (model.commit, model.sha256)
            or hashlib.sha256(payload[:size]).digest() != model.sha256
            or (len(payload) > size) != model.anchored
        ):
            detail = (
                f"version {model.version} was published as another adapter than the boundary's history gives"
            )
            self._error("model", item.offset, detail)
        elif model.anchored and hashlib.sha256(payload[size:]).digest() != self._commits.get(model.commit):
            self._error(
                "model", item.offset, f"it carries another adapter of commit {model.commit} than the exchange"
            )
        elif model.anchored and hashlib.sha256(model.signed).digest() != self._exchange.envelopes.get(
            model.commit
        ):
            self._error(
                "model", item.offset, f"it carries another record of commit {model.commit} than the exchange"
            )
        else:
            self.facts.versions += 1

    def _compare_mirror(self, records: Iterable[LogRecord | Damaged]) -> None:
        """What the gate mirrored inward against what stands outside, and the adapters that it derived."""
        relayed = RelayedInside(self._exchange.relayed)
        for record in records:
            if isinstance(record, Damaged):
                self._unopened(Unopened(GLOBAL, record.offset, record.detail, damaged=True))
                continue
            commit = relayed_commit(record.headers)
            if commit is not None:
                bare = StoredRecord(GLOBAL, record.offset, record.key, record.value, record.headers[:-1])
                if detail := relayed.take(commit, bare):
                    self._error(GLOBAL, record.offset, detail)
                continue
            *headers, source = record.headers or (("", b""),)
            if source[0] != SOURCE_HEADER:
                self._error(
                    GLOBAL, record.offset, "a record that does not say where it stood on the exchange"
                )
                continue
            offset = int.from_bytes(source[1], "big")
            inside = StoredRecord(GLOBAL, offset, record.key, record.value, tuple(headers))
            if self._exchange.records.get(offset) != record_digest(inside):
                self._error(
                    GLOBAL, record.offset, f"it is not the record that stands at {GLOBAL}@{offset} outside"
                )
            elif relayed.lacks(self._exchange.places.get(offset, 0)):
                detail = f"commit {self._exchange.places[offset]} was relayed, and stands inside without its adapter"
                self._error(GLOBAL, record.offset, detail)
            else:
                self.facts.mirrored += 1


def _differing(derived: tuple[object, ...], crossed: tuple[object, ...]) -> str:
    names = ("base commit", "windows", "codec", "exponent", "payload")
    return ", ".join(name for name, a, b in zip(names, derived, crossed, strict=True) if a != b)
