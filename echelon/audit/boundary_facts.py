"""What a boundary's own auditor holds against each other: what the exchange says, and what the topics give."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.log import Entry, TopicLog
from echelon.audit.prefix import record_digest
from echelon.audit.records import Damaged, LogRecord
from echelon.errors import AuditError
from echelon.laws.keys import gate_of_place
from echelon.messages.exchange import OTHER_RECORD, Commit, Delta, Genesis, Payload, Refusal, WindowSummary
from echelon.messages.manifest import RunManifest
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.facts import CommitFacts


@dataclass(frozen=True, slots=True)
class Unopened:
    """A record that is none of a member's, or cannot be read."""

    topic: str
    offset: int
    detail: str
    damaged: bool = False


Opened = Incoming | Unopened


@dataclass
class ExchangeFacts:
    """What the exchange says of one boundary: the deltas that crossed, with their offsets, and what became of them.

    Attributes:
        decided: what `global` says, in order: commits, and refusals of deltas of the boundary.
        records: digests of the records of `global`, by offset: what the gate mirrors inward.
        envelopes: SHA-256 of the records' envelopes of commits, by number; that of genesis is 0's.
        relayed: what relayed commits say of the adapters that they do not bring, by number.
        places: numbers of commits by the offsets of their records on `global`.
    """

    manifest: RunManifest
    index: int
    deltas: list[tuple[int, Delta]] = field(default_factory=list)
    decided: list[CommitFacts | Refusal] = field(default_factory=list)
    records: dict[int, bytes] = field(default_factory=dict)
    envelopes: dict[int, bytes] = field(default_factory=dict)
    relayed: dict[int, Payload] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    @property
    def genesis_sha256(self) -> bytes:
        """Of the genesis record's envelope, 32 bytes: what is pinned."""
        return self.envelopes[0]

    @classmethod
    def read(cls, topics: Mapping[str, Iterable[LogRecord | Damaged]], boundary: str) -> ExchangeFacts:
        """Read `global` and the boundary's delta log; what does not verify is left to the exchange's verification.

        Raises:
            AuditError: there is no genesis that holds, or the run has no such boundary.
        """
        main = TopicLog(GLOBAL, resync=True, hash_commits=False)
        entries: list[Entry] = []
        digests = {}
        for record in topics.get(GLOBAL, ()):
            if isinstance(record, Damaged):
                continue
            entry = main.read(record).entry
            digests[record.offset] = record_digest(record)
            if entry is not None and entry.refusal is None:
                entries.append(replace(entry, payload=None))
        if main.manifest is None:
            raise AuditError(
                f"{GLOBAL} has no genesis that holds: there is nothing to hold a boundary against"
            )
        names = [terms.name for terms in main.manifest.boundaries]
        if boundary not in names:
            raise AuditError(f"the run has no boundary {boundary}; it has {', '.join(names)}")
        facts = cls(main.manifest, names.index(boundary), records=digests)
        for one in entries:
            facts._decide(one)
        terms = main.manifest.boundaries[facts.index]
        log = TopicLog(
            DELTA_PREFIX + boundary,
            public=bytes.fromhex(terms.gate_public),
            run=main.manifest.run_id,
            boundary=facts.index,
            resync=True,
        )
        if main.keys is not None:
            log.follow(main.keys.line(gate_of_place(facts.index)))
        for record in topics.get(log.topic, ()):
            entry = None if isinstance(record, Damaged) else log.read(record).entry
            if entry is not None and isinstance(entry.message, Delta):
                facts.deltas.append((entry.offset, entry.message))
        return facts

    def _decide(self, entry: Entry) -> None:
        """As the gate learns it."""
        match message := entry.message:
            case Genesis():
                self.envelopes[0] = entry.sha256
                self.decided.append(CommitFacts(0, (), message.adapter_sha256))
            case Commit():
                self.envelopes[message.commit] = entry.sha256
                self.places[entry.offset] = message.commit
                if message.relayed:
                    self.relayed[message.commit] = message.payload
                mine = tuple(merged.seq for merged in message.merged if merged.boundary == self.index)
                self.decided.append(CommitFacts(message.commit, mine, message.adapter_sha256))
            case Refusal() if message.boundary == self.index and message.reason not in OTHER_RECORD:
                self.decided.append(message)
            case _:
                pass


@dataclass
class BoundaryFacts:
    """What was derived, counted; `windows` are those of deltas that crossed and are what the topics give."""

    boundary: str
    windows: list[WindowSummary] = field(default_factory=list)
    deltas: int = 0
    """Deltas that crossed and are, to the bit, what was derived."""
    crossed: int = 0
    versions: int = 0
    """Adapter versions that devices were given and that are what was derived."""
    mirrored: int = 0
    """Records of `global` that stand inside as they stand outside."""
    refused: int = 0
    snapshots: int = 0
    """Snapshots of the gate that are, to the bit, what was derived."""
    trimmed: int = 0
    """Windows whose inputs are gone by the run's rule, from window 0 on: none of them was derived here."""
    vouched: int = 0
    """Deltas of those windows: they are what was sealed, and the gate's snapshot stands for their sums."""
