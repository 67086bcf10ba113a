"""What a verification reports: findings with an enumerated code, and facts that a person reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from echelon.audit.log import FaultCode, LogFault
from echelon.messages.exchange import CloseReason, Merged, Pace, RefusalReason
from echelon.messages.manifest import ParentTerms

MAX_FINDINGS = 1_000
"""Most errors, and most other findings, that a report keeps; the rest is counted."""


class Severity(StrEnum):
    """`ERROR` fails the verification; `WARNING` says what it could not know; `INFO` is harmless and worth
    telling."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Code(StrEnum):
    """What was found. Closed: scripts may rely on these."""

    MALFORMED = "malformed"
    OVERSIZED = "oversized"
    CORRUPT_CHUNK = "corrupt-chunk"
    CHUNK_ORDER = "chunk-order"
    WRONG_TYPE = "wrong-type"
    WRONG_RUN = "wrong-run"
    BAD_SIGNATURE = "bad-signature"
    ENDED_KEY = "ended-key"
    """Signed with a key of the topic's writer that did not count there: no part of the log."""
    FORK = "fork"
    GAP = "gap"
    PREFIX = "prefix"
    PAYLOAD = "payload"
    GENESIS = "genesis"
    REPEAT = "repeat"
    VOID = "void"
    UNEXPECTED_TOPIC = "unexpected-topic"
    """A topic that the run does not declare: in the log, or beside an export's index."""
    UNEXPECTED_PARTITION = "unexpected-partition"
    """A topic of the exchange has one partition; this one has more, or records in others."""
    UNEXPECTED_FILE = "unexpected-file"
    """Something lies with the exported adapter or the checkpoints that no run writes: a pickle, a link, a folder."""
    OFFSET_ORDER = "offset-order"
    HEADS = "heads"
    MISSING = "missing"
    DERIVATION = "derivation"
    REFUSAL = "refusal"
    AFTER_CLOSE = "after-close"
    LATE = "late"
    CLOSE = "close"
    OPEN = "open"
    ADAPTER_FILE = "adapter-file"
    CHECKPOINT = "checkpoint"
    WITNESS = "witness"
    """A record where heads are announced or witnesses write that is neither."""
    COSIGNATURES = "cosignatures"
    """Fewer witnesses have cosigned a log than the auditor's policy asks for."""
    UNPINNED = "unpinned"
    STALE = "stale"
    UNREADABLE = "unreadable"
    INTERLOCK = "interlock"
    """A delta and `global` contradict each other, or two deltas of one gate do."""
    WITHHELD = "withheld"
    """A delta that stood on the exchange was left unread for more commits than the terms allow."""
    MEASURED = "measured"
    """Times that somebody states are not those that the others state."""
    RULE = "rule"
    """Commits rest on a user's code that was not allowed here, or is another version than the run's."""
    REWRITTEN = "rewritten"
    """What was verified before is not what stands there now."""
    PARENT = "parent"
    """The run does not start from what its terms name as its parent."""
    BOUNDARY = "boundary"
    """A boundary's own topics contradict each other, or give something else than crossed."""
    TRIMMED = "trimmed"
    """Inputs of a boundary's old windows are gone, as its run allows: their sums were not derived."""
    REFUSED_RECORD = "refused-record"
    """A record of a boundary's topic that its gate refuses, too: it is no part of anything."""


MEANING: dict[Code, str] = {
    Code.INTERLOCK: "A delta and `global` contradict each other: a gate had read another log than this one.",
    Code.WITHHELD: "The controller left a delta unread for more commits than the terms allow.",
    Code.MEASURED: "A party states times that those of the others contradict.",
    Code.MALFORMED: "A record is not the canonical form of any message that may stand on its topic.",
    Code.OVERSIZED: "A record, or its manifest, is larger than may stand on the exchange.",
    Code.CORRUPT_CHUNK: "A chunk does not have the SHA-256 in its headers: a byte of its record was changed.",
    Code.CHUNK_ORDER: "Chunks of a transfer do not follow each other as they must.",
    Code.WRONG_TYPE: "A message stands on a topic on which its type may not.",
    Code.WRONG_RUN: "A message is of another run, or of another boundary than its topic.",
    Code.BAD_SIGNATURE: "A manifest is not signed by the writer of its topic.",
    Code.ENDED_KEY: "A record or head is signed with a key of its writer that did not count there: no part of the log.",
    Code.FORK: "Two manifests stand under one number.",
    Code.GAP: "A number of a log is missing.",
    Code.PREFIX: "A manifest states another history than stands before it: records were lost, added or changed.",
    Code.PAYLOAD: "A manifest's payload is missing, incomplete or another one.",
    Code.GENESIS: "There is no genesis that holds, or it is another one than the pinned.",
    Code.REPEAT: "A record stands twice, byte for byte; delivery is at least once.",
    Code.VOID: "Chunks without a manifest: a writer stopped half-way.",
    Code.UNEXPECTED_TOPIC: "Records stand on a topic that the run does not have.",
    Code.UNEXPECTED_PARTITION: "A topic of the exchange has more than one partition, or records in others.",
    Code.UNEXPECTED_FILE: "Something lies with the exported adapter or the checkpoints that no run writes.",
    Code.OFFSET_ORDER: "Offsets of a topic do not ascend, or a record names another topic.",
    Code.HEADS: "A commit, or the close record, states another head of a delta log than the log has.",
    Code.MISSING: "A log has fewer manifests than the controller has read.",
    Code.DERIVATION: "A commit is not what its inputs give; no later adapter was derived.",
    Code.REFUSAL: "A refusal, or the lack of one, is not what the log gives.",
    Code.AFTER_CLOSE: "A record stands behind the run's close record.",
    Code.LATE: "A delta came after the run was closed; it is not part of it.",
    Code.CLOSE: "The close record states something else than the log gives.",
    Code.OPEN: "The run has no close record; its newest records may have been cut off.",
    Code.ADAPTER_FILE: "An exported adapter is not the final adapter of the log.",
    Code.CHECKPOINT: "A given checkpoint cannot be read, is not the writer's, or contradicts the log.",
    Code.WITNESS: "A record where heads are announced or witnesses write that is neither, or contradicts the log.",
    Code.COSIGNATURES: "Fewer witnesses have cosigned a log than the auditor's policy asks for.",
    Code.UNPINNED: "No genesis digest was pinned: the run is consistent, which run it is was not shown.",
    Code.STALE: "A given checkpoint covers fewer manifests than the log has.",
    Code.UNREADABLE: "Something stands where a record should be and cannot be read.",
    Code.RULE: "Commits rest on a user's code that was not allowed here, or is another version than the run's.",
    Code.PARENT: "The run does not start from the adapter that its terms name as its parent, or the parent fails.",
    Code.BOUNDARY: "A boundary's own topics contradict each other, or give something else than crossed.",
    Code.TRIMMED: "Inputs of a boundary's old windows were trimmed as its run allows; their sums were not derived.",
    Code.REFUSED_RECORD: "A record of a boundary's topic is no record of a member; its gate refuses it, too.",
    Code.REWRITTEN: "What an earlier verification has verified is not what stands there now.",
}
"""What each code says, in one sentence; every code has one."""

FAULTS = {
    FaultCode.REPEAT: Severity.INFO,
    FaultCode.VOID: Severity.INFO,
    FaultCode.ENDED_KEY: Severity.WARNING,
}
"""How serious faults of a record are; those that are not listed are errors."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; `topic` and `offset` name the record, where it is about one."""

    code: Code
    severity: Severity
    topic: str
    offset: int | None
    detail: str

    @classmethod
    def of_fault(cls, topic: str, fault: LogFault) -> Finding:
        """What a fault of a record means."""
        severity = FAULTS.get(fault.code, Severity.ERROR)
        return cls(Code(fault.code.value), severity, topic, fault.offset, fault.detail)

    def __str__(self) -> str:
        where = self.topic if self.offset is None else f"{self.topic}@{self.offset}"
        return f"{self.severity.value}: {where or 'run'}: {self.code.value}: {self.detail}"


Find = Callable[[Code, Severity, str, int | None, str], None]
"""Takes a finding: its code, its severity, the topic, the offset and the detail."""


@dataclass(slots=True)
class TopicFacts:
    """Counts of one topic; `size` is in bytes, over keys, headers and values."""

    records: int = 0
    size: int = 0
    manifests: int = 0
    repeats: int = 0
    root: bytes = b""


@dataclass(frozen=True, slots=True)
class VerifiedCommit:
    """One commit that was derived again, bit for bit."""

    commit: int
    offset: int
    merged: tuple[Merged, ...]
    tokens: int
    pace: Pace
    adapter_sha256: bytes


@dataclass(frozen=True, slots=True)
class RefusalFacts:
    """One refusal that was reproduced."""

    boundary: int
    seq: int
    reason: RefusalReason


@dataclass(frozen=True, slots=True)
class ParentFacts:
    """One earlier run of a chain, which was verified, too.

    Attributes:
        source: where it was read.
        genesis_sha256: of its genesis; empty for an adapter of which no run is known.
        commit: the commit whose adapter the next run starts from; None where that is not known.
        commits: how many it has.
    """

    source: str
    genesis_sha256: bytes
    commit: int | None
    commits: int


@dataclass(slots=True)
class Report:
    """The result of a verification. `ok` is its verdict."""

    findings: list[Finding] = field(default_factory=list)
    left_out: int = 0
    """Findings beyond the limits, which were counted and not kept."""
    errors: int = 0
    run: bytes = b""
    genesis_sha256: bytes = b""
    boundaries: tuple[str, ...] = ()
    topics: dict[str, TopicFacts] = field(default_factory=dict)
    commits: list[VerifiedCommit] = field(default_factory=list)
    refusals: list[RefusalFacts] = field(default_factory=list)
    pending: int = 0
    """Deltas that no commit took and no refusal names."""
    adapter_sha256: bytes = b""
    """Of the newest adapter that was derived again."""
    cosigned: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each log: how many of its manifests each witness has cosigned."""
    best_commit: int | None = None
    """Of the losses that crossed with the deltas; a run folder knows more, the last commit's for one."""
    close: CloseReason | None = None
    parent: ParentTerms | None = None
    """What the signed terms say that the run starts from."""
    chain: list[ParentFacts] = field(default_factory=list)
    """The earlier runs that were given and verified, from the parent on."""

    @property
    def ok(self) -> bool:
        """No error."""
        return self.errors == 0

    def add(self, finding: Finding) -> None:
        """Count a finding, and keep it if there is room."""
        others = len(self.findings) - min(self.errors, MAX_FINDINGS)
        kept = self.errors if finding.severity is Severity.ERROR else others
        self.errors += finding.severity is Severity.ERROR
        if kept >= MAX_FINDINGS:
            self.left_out += 1
        else:
            self.findings.append(finding)
