"""The independent verifier: every claim of an exchange, checked from the records of its topics alone.

`global` is read once from front to back; its commits and refusals say how far each delta log has to be read
next. What cannot be verified is a finding, and a finding of severity `error` fails the run. Once a commit
cannot be derived again, later adapters are not either, and the report says so once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from echelon.audit.announcements import Announced, note_announcements, report_unexpected, take_announcements
from echelon.audit.causes import CutLogs
from echelon.audit.checkpoints import check_checkpoints, given_checkpoints
from echelon.audit.closing import close_faults, file_faults, parent_faults
from echelon.audit.cosigned import AnnouncementProof, Witnessed
from echelon.audit.derived_adapter import DerivedAdapter, digest_known_of, is_encoded
from echelon.audit.findings import Code, Finding, RefusalFacts, Report, Severity, TopicFacts, VerifiedCommit
from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.interlock import Interlock, Sighting
from echelon.audit.log import Entry, FaultCode, LogFault, TopicLog
from echelon.audit.log_reading import LogReading
from echelon.audit.owed import NO_ENTRY, OwedRefusals
from echelon.audit.policy import Policy
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.sightings import sightings_of
from echelon.errors import AuditError, EchelonError
from echelon.laws.hashing import Sha256
from echelon.laws.keys import Keys
from echelon.laws.lengths import delta_length
from echelon.laws.rules import Allowed, RuleRefused
from echelon.messages.exchange import Close, Commit, Delta, Genesis, LogHead, Refusal
from echelon.messages.keys import KeyEnd, KeyNext, KeyRole
from echelon.messages.manifest import RunManifest
from echelon.rounds.controller.core import ControllerCore
from echelon.rounds.controller.drafts import CommitMismatch


class Verifier:
    """One pass over an exchange: `run` yields every adapter as it is derived, then `report` is complete."""

    def __init__(
        self,
        topics: Mapping[str, Iterable[LogRecord | Damaged]],
        *,
        genesis: bytes | None = None,
        checkpoints: Iterable[bytes] = (),
        allow_open: bool = False,
        adapter: Mapping[str, bytes] | None = None,
        rules: Allowed | None = None,
        findings: Iterable[Finding] = (),
        policy: Policy | None = None,
        sightings: Iterable[Sighting] = (),
        sha256: Sha256 | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            topics: every topic of the exchange with its records in offset order; each is iterated once, at
            most.
            genesis: the pinned SHA-256 of the genesis record's envelope (32 bytes); None: the report says
            `unpinned`.
            checkpoints: signed notes over logs of this run, from wherever the auditor got them.
            allow_open: a run without a close record is a warning, not an error.
            adapter: files of the exported adapter by name, to be compared byte for byte; None: not compared.
            rules: users' own classes that the auditor allows, by name. No log can make code run: a run that
                names others is not derived again, which is an error.
            findings: what whoever opened the source found in it besides its records; they stand first.
            policy: how many witnesses must have cosigned each log; None: as many as have.
            sightings: what witnesses saw of the delta logs, and when.
            sha256: who computes digests meanwhile; None: everything in this thread. The report is the same.
        """
        self.report = Report()
        self._topics = dict(topics)
        self._pinned = genesis
        self._notes = tuple(checkpoints)
        self._allow_open = allow_open
        self._files = adapter
        self._rules = rules
        self._policy = policy
        self._witnessed: Witnessed | None = None
        for finding in findings:
            self._find(finding.code, finding.severity, finding.topic, finding.offset, finding.detail)
        self._sightings = tuple(sightings)
        self._sha256 = sha256
        self._core: ControllerCore | None = None
        self._interlock: Interlock | None = None
        self._manifest: RunManifest | None = None
        self._deltas: list[LogReading] = []
        self._owed = OwedRefusals()
        self._closed: Close | None = None
        self._heads: tuple[LogHead, ...] = ()
        self._cut = CutLogs()
        self._marks: dict[str, dict[int, bytes]] = {}
        """Of each log, its root at every size."""

    # ---- flow ----------------------------------------

    def run(self) -> Iterator[DerivedAdapter]:
        """Verify everything, yielding each adapter once its record has been checked against it."""
        notes = given_checkpoints(self._notes, self.report)
        heads = take_announcements(self._topics)
        main = self._begin()
        while (record := main.take()) is not None:
            closed = self._closed is not None
            entry = self._read(main, record)
            if entry is None:
                continue
            if closed:
                self._error(Code.AFTER_CLOSE, GLOBAL, entry.offset, "a manifest after the run's close record")
            elif isinstance(entry.message, Genesis):
                yield from self._genesis(entry, main.log)
            elif isinstance(entry.message, Commit):
                yield from self._commit(entry, entry.message)
            elif isinstance(entry.message, Refusal):
                self._refusal(entry.offset, entry.message)
            elif isinstance(entry.message, Close):
                self._close(entry.offset, entry.message)
            elif isinstance(entry.message, KeyNext | KeyEnd):
                self._rekeyed(entry.offset, entry.message, main.log.keys)
            if self._interlock is not None:
                self._interlock.wrote(entry, main.log.tree.root())
        self._reached(main)
        self._finish(main)
        if self._manifest is not None and self._witnessed is not None:
            check_checkpoints(notes, self._manifest, self._marks, self._witnessed, self.report)
        self._check_witnesses(main, heads)
        self._check_interlock()
        self._check_files()
        self._cut.name_causes(self.report)

    def _begin(self) -> LogReading:
        """Where reading begins: `global` from its first record."""
        return self._source(GLOBAL, TopicLog(GLOBAL, resync=True, hash_commits=False))

    def _reached(self, main: LogReading) -> None:
        """`global` was read to its end. What follows depends on where it ends, what was before does not."""

    def _source(self, topic: str, log: TopicLog) -> LogReading:
        facts = self.report.topics.setdefault(topic, TopicFacts())
        reading = LogReading(topic, iter(self._topics.pop(topic, ())), log, facts)
        if self._sha256 is not None:
            reading.hash_ahead(self._sha256, len(self.report.boundaries) or 1)
        return reading

    def _read(self, source: LogReading, record: LogRecord | Damaged) -> Entry | None:
        facts, topic = source.facts, source.topic
        facts.records += 1
        if isinstance(record, Damaged):
            self._error(Code.UNREADABLE, topic, record.offset, record.detail)
            self._cut.damaged(record)
            source.last = max(source.last, record.offset)
            return None
        facts.size += len(record.key) + len(record.value) + sum(len(n) + len(v) for n, v in record.headers)
        if record.topic != topic or record.offset <= source.last:
            detail = (
                f"the record says {record.topic[:80]}@{record.offset}, and offset {source.last} was before it"
            )
            self._error(Code.OFFSET_ORDER, topic, record.offset, detail)
        source.last = max(source.last, record.offset)
        after_close = self._closed is not None and topic == GLOBAL
        step = source.log.read(record, source.begun)
        self._cut.began(self.report, topic, step)
        for fault in step.faults:
            self._fault(topic, fault)
        repeated = any(fault.code is FaultCode.REPEAT for fault in step.faults)
        facts.repeats += repeated
        if after_close and not repeated and step.entry is None:
            self._error(Code.AFTER_CLOSE, topic, record.offset, "a record after the run's close record")
        if step.entry is not None:
            facts.manifests += 1
            facts.root = source.log.tree.root()
            self._marks.setdefault(topic, {})[source.log.tree.size] = facts.root
        return step.entry

    def _fault(self, topic: str, fault: LogFault) -> None:
        self.report.add(Finding.of_fault(topic, fault))

    def _find(self, code: Code, severity: Severity, topic: str, offset: int | None, detail: str) -> None:
        self.report.add(Finding(code, severity, topic, offset, detail))

    def _error(self, code: Code, topic: str, offset: int | None, detail: str) -> None:
        self._find(code, Severity.ERROR, topic, offset, detail)

    def _stop(self, offset: int, detail: str) -> None:
        if self._core is not None:
            self._error(Code.DERIVATION, GLOBAL, offset, f"{detail}; no later adapter was derived")
            self._core = None

    # ---- global ----------------------------------------

    def _genesis(self, entry: Entry, log: TopicLog) -> Iterator[DerivedAdapter]:
        if log.manifest is None or log.initial is None or not isinstance(entry.message, Genesis):
            raise AuditError(
                "a genesis entry without its manifest"
            )  # the log makes none of one that does not hold
        manifest = self._manifest = log.manifest
        self._witnessed = Witnessed(manifest, self._find, self._policy)
        self._interlock = Interlock(self._find, manifest, allow_open=self._allow_open)
        report = self.report
        report.run, report.genesis_sha256 = manifest.run_id, entry.sha256
        report.boundaries = tuple(terms.name for terms in manifest.boundaries)
        report.parent = manifest.parent
        initial = entry.message.adapter_sha256  # of `log.initial`: the log compared it
        for detail in parent_faults(manifest, initial):
            self._error(Code.PARENT, GLOBAL, entry.offset, detail)
        if self._pinned is not None and entry.sha256 != self._pinned:
            detail = f"genesis has SHA-256 {entry.sha256.hex()}, pinned is {self._pinned.hex()}: another run"
            self._error(Code.GENESIS, GLOBAL, entry.offset, detail)
        for index, terms in enumerate(manifest.boundaries):
            topic = DELTA_PREFIX + terms.name
            public = bytes.fromhex(terms.gate_public)
            reading = TopicLog(
                topic, public=public, run=manifest.run_id, boundary=index, resync=True,
                largest=delta_length(manifest, len(log.initial)),
            )  # fmt: skip
            self._deltas.append(self._source(topic, reading))
        try:
            self._core = ControllerCore(manifest, log.initial, rules=self._rules, sha256=self._sha256)
        except RuleRefused as error:
            self._error(Code.RULE, GLOBAL, entry.offset, str(error))
            return
        except EchelonError as error:
            self._error(Code.GENESIS, GLOBAL, entry.offset, f"no run can start from this genesis: {error}")
            return
        self._core.transcript = self._interlock.transcript
        report.adapter_sha256 = initial
        yield DerivedAdapter(
            0,
            log.initial,
            report.adapter_sha256,
            manifest,
            manifest.pace,
            genesis_sha256=report.genesis_sha256,
        )

    def _commit(self, entry: Entry, commit: Commit) -> Iterator[DerivedAdapter]:
        self._check_heads(entry.offset, commit.heads)
        core = self._core
        if core is None:
            return
        if entry.payload is None and not commit.relayed:
            self._stop(entry.offset, "the commit's adapter is not whole")
            return
        try:
            dropped = core.apply(commit, digest_known_of(entry.payload, entry.digest))
        except CommitMismatch as error:
            self._stop(entry.offset, str(error))
            return
        except EchelonError as error:
            self._stop(entry.offset, f"commit {commit.commit} cannot be derived: {error}")
            return
        if entry.payload is not None and not is_encoded(core.adapter, entry.payload):
            self._stop(
                entry.offset, f"the adapter of commit {commit.commit} is not the one that its deltas give"
            )
            return
        for item in dropped:
            self._owed.owed[item.boundary, item.seq] = (item.offset, item.reason)
        self.report.adapter_sha256 = commit.adapter_sha256
        self.report.commits.append(
            VerifiedCommit(
                commit=commit.commit,
                offset=entry.offset,
                merged=commit.merged,
                tokens=commit.tokens,
                pace=commit.pace,
                adapter_sha256=commit.adapter_sha256,
            )
        )
        yield DerivedAdapter(
            commit.commit,
            core.adapter,
            commit.adapter_sha256,
            core.manifest,
            core.pace,
            decision=core.decision,
            genesis_sha256=self.report.genesis_sha256,
        )

    def _refusal(self, offset: int, refusal: Refusal) -> None:
        if refusal.boundary >= len(self._deltas):
            detail = f"it names boundary {refusal.boundary}, which the run does not have"
            self._error(Code.REFUSAL, GLOBAL, offset, detail)
            return
        if refusal.reason in NO_ENTRY:
            self._advance(refusal.boundary, offset, upto=refusal.offset)
        else:
            self._advance(refusal.boundary, offset, size=refusal.seq + 1)
        if self._core is None:
            return
        wrong = False
        for severity, detail in self._owed.settle(refusal, self._deltas[refusal.boundary].topic):
            self._find(Code.REFUSAL, severity, GLOBAL, offset, detail)
            wrong = wrong or severity is Severity.ERROR
        if wrong:
            return
        self.report.refusals.append(RefusalFacts(refusal.boundary, refusal.seq, refusal.reason))

    def _close(self, offset: int, close: Close) -> None:
        self._closed = close
        self.report.close = close.reason
        self._check_heads(offset, close.heads)
        core = self._core
        if core is None:
            return
        for detail in close_faults(close, core, self.report.adapter_sha256):
            self._error(Code.CLOSE, GLOBAL, offset, detail)
        for (boundary, seq), (where, reason) in sorted(self._owed.owed.items()):
            topic = self._deltas[boundary].topic
            self._error(Code.REFUSAL, topic, where, f"delta {seq} is {reason.value}, and no refusal names it")

    def _check_heads(self, offset: int, heads: tuple[LogHead, ...]) -> None:
        if [head.boundary for head in heads] != list(range(len(self._deltas))):
            self._error(Code.HEADS, GLOBAL, offset, "its heads do not name every boundary once, in order")
            return
        for head in heads:
            self._check_head(offset, head)
        self._heads = heads

    def _check_head(self, offset: int, head: LogHead) -> None:
        source = self._deltas[head.boundary]
        if head.size < source.log.tree.size:
            detail = f"it has read {head.size} of {source.topic}, and {source.log.tree.size} before"
            self._error(Code.HEADS, GLOBAL, offset, detail)
            return
        self._advance(head.boundary, offset, size=head.size)
        tree = source.log.tree
        if tree.size < head.size:
            detail = f"{GLOBAL}@{offset} has read {head.size} manifests, here are {tree.size}: cut off"
            self._cut.short(self.report, source.topic)
            self._error(Code.MISSING, source.topic, max(source.last, 0), detail)
        elif tree.root() != head.root:
            detail = f"the first {head.size} manifests of {source.topic} have another root than it has read"
            self._error(Code.HEADS, GLOBAL, offset, detail)

    def _rekeyed(self, offset: int, change: KeyNext | KeyEnd, keys: Keys | None) -> None:
        """Another key of somebody counts from here on: of a gate's, its log is read as far as the controller had."""
        actor = change.statement.actor
        if actor[0] is KeyRole.GATE and keys is not None:
            self._check_head(offset, LogHead(boundary=actor[1], size=change.read, root=change.root))
            self._deltas[actor[1]].log.follow(keys.line(actor))

    # ---- deltas ----------------------------------------

    def _advance(
        self, boundary: int, reader: int, *, size: int | None = None, upto: int | None = None
    ) -> None:
        """Read a delta log until it has `size` manifests, or past offset `upto`, as the record of `global` at offset
        `reader` has."""
        source = self._deltas[boundary]
        while (record := source.peek()) is not None:
            if size is not None and source.log.tree.size >= size:
                return
            if upto is not None and record.offset > upto:
                return
            source.take()
            entry = self._read(source, record)
            if entry is None:
                self._owed.faulty.add((boundary, record.offset))
            elif isinstance(entry.message, Delta):
                self._hold(boundary, entry, entry.message, reader)
                self._offer(boundary, entry, entry.message)

    def _hold(self, boundary: int, entry: Entry, delta: Delta, reader: int | None) -> None:
        if self._interlock is not None:
            self._interlock.hold(boundary, entry, delta, reader)

    def _offer(self, boundary: int, entry: Entry, delta: Delta) -> None:
        if self._core is None:
            return
        digest = delta.payload.sha256 if entry.payload is not None else None
        try:
            reason = self._core.offer(
                delta, entry.payload or b"", entry.offset, payload_sha256=digest, fault=entry.refusal
            )
        except EchelonError as error:
            self._error(Code.DERIVATION, self._deltas[boundary].topic, entry.offset, str(error))
            return
        if reason is not None:
            self._owed.owed[boundary, delta.seq] = (entry.offset, reason)

    # ---- end ----------------------------------------

    def _finish(self, main: LogReading) -> None:
        report = self.report
        if self._manifest is None:
            self._error(Code.GENESIS, GLOBAL, None, "no genesis that holds: nothing here can be verified")
        elif self._closed is None:
            severity = Severity.WARNING if self._allow_open else Severity.ERROR
            detail = "the run has no close record; its newest records may have been cut off"
            self._find(Code.OPEN, severity, GLOBAL, None, detail)
        if self._pinned is None:
            detail = (
                "no genesis digest was pinned: this shows that the run is consistent, not which run it is"
            )
            self._find(Code.UNPINNED, Severity.WARNING, GLOBAL, None, detail)
        for boundary, source in enumerate(self._deltas):
            self._drain(boundary, source)
        if self._witnessed is not None:
            self._witnessed.follow(main.log.keys, [one.log.signers.first_places for one in self._deltas])
        report.pending = len(self._core.pending) if self._core is not None else 0
        for source in (main, *self._deltas):
            if source.log.open_transfers:
                first = source.log.first_open_offset
                detail = (
                    f"{source.log.open_transfers} transfers without a manifest: a writer stopped half-way"
                )
                self._find(Code.VOID, Severity.INFO, source.topic, first, detail)
        report_unexpected(self._topics, self.report, known=self._manifest is not None)
        best = self._core.best() if self._core is not None else None
        report.best_commit = best.commit if best is not None else None

    def _drain(self, boundary: int, source: LogReading) -> None:
        while (record := source.take()) is not None:
            entry = self._read(source, record)
            if entry is None:
                continue
            if isinstance(entry.message, Delta):
                self._hold(boundary, entry, entry.message, None)
            if self._closed is None and isinstance(entry.message, Delta):
                self._offer(boundary, entry, entry.message)
            elif self._closed is not None:
                detail = (
                    f"delta {entry.number} came after the controller had closed the run; it is not part of it"
                )
                self._find(Code.LATE, Severity.INFO, source.topic, entry.offset, detail)

    # ---- witnesses ----------------------------------------

    def _check_witnesses(self, main: LogReading, heads: Announced) -> None:
        witnessed = self._witnessed
        if witnessed is None:
            return
        note_announcements(heads, witnessed, self.report)
        ends = {source.topic: source.log.tree.size for source in (main, *self._deltas)}
        if self._closed is not None:
            ends |= {self._deltas[head.boundary].topic: head.size for head in self._heads}
        witnessed.check(self._marks, ends, self._closed is not None)
        self.report.cosigned = witnessed.cosigned_sizes(self._marks)

    def _check_interlock(self) -> None:
        """What was withheld, by what deltas say of themselves and by what witnesses had found."""
        interlock, witnessed = self._interlock, self._witnessed
        if interlock is None:
            return
        sightings = list(self._sightings)
        if witnessed is not None:
            sightings += sightings_of(witnessed, interlock, self._marks, self.report.topics[GLOBAL].manifests)
        interlock.finish(sightings)

    def evidence(self) -> tuple[AnnouncementProof, ...]:
        """What witnesses' cosignatures prove about when deltas stood on their logs; complete once `run` has ended."""
        return () if self._witnessed is None else self._witnessed.evidence(self._marks)

    def _check_files(self) -> None:
        if self._files is not None and self._manifest is not None:
            for detail in file_faults(self._files, self._core, self.report.adapter_sha256):
                self._error(Code.ADAPTER_FILE, "", None, detail)


def verify(
    topics: Mapping[str, Iterable[LogRecord | Damaged]],
    *,
    genesis: bytes | None = None,
    checkpoints: Iterable[bytes] = (),
    allow_open: bool = False,
    adapter: Mapping[str, bytes] | None = None,
    rules: Allowed | None = None,
    policy: Policy | None = None,
    sightings: Iterable[Sighting] = (),
    sha256: Sha256 | None = None,
) -> Report:
    """Check a whole exchange. Never raises for what stands in a record.

    Args:
        topics: every topic with its records in offset order.
        genesis: the pinned SHA-256 of the genesis record's envelope.
        checkpoints: signed notes over logs of this run.
        allow_open: a run without a close record is a warning, not an error.
        adapter: files of the exported adapter by name.
        rules: users' own classes that the auditor allows, by name.
        policy: how many witnesses must have cosigned each log.
        sightings: what witnesses saw of the delta logs, and when.
        sha256: who computes digests meanwhile, as of `Verifier`.
    """
    verifier = Verifier(
        topics,
        genesis=genesis,
        checkpoints=checkpoints,
        allow_open=allow_open,
        adapter=adapter,
        rules=rules,
        policy=policy,
        sightings=sightings,
        sha256=sha256,
    )
    for _ in verifier.run():
        pass
    return verifier.report
