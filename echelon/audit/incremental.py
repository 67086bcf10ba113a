"""Verifying what is new: the verifier that goes on where an earlier verification stopped.

What a verification says is a function of its topics, and nothing that it has said before the end of `global` depends on
where that end was. So the state there (`AuditProgress`) and the records behind it give the same report as all records.
Three things keep that true. A state is kept only of what verified without an error. It is not kept if `global` names
records of a delta log that were not there yet. And before going on, the verified part is held against what the source
shows now: that nothing of it is gone, that genesis is the same, and that its newest records are, or all on request.
What differs is the finding `rewritten`, and then everything is verified from the start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from echelon.audit.cosigned import Witnessed
from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.interlock import Interlock
from echelon.audit.log import Entry, TopicLog
from echelon.audit.log_reading import LogReading
from echelon.audit.merkle import Tree, leaf_hash
from echelon.audit.prefix import record_digest
from echelon.audit.progress import AuditProgress, Journal, TopicProgress
from echelon.audit.records import Damaged, LogRecord, read_manifest
from echelon.audit.verify import Verifier
from echelon.errors import StateError
from echelon.laws.rules import RuleRefused
from echelon.messages.exchange import Genesis
from echelon.messages.manifest import RunManifest
from echelon.messages.stored import stored
from echelon.messages.wire import Refused
from echelon.rounds.controller.core import ControllerCore

Records = Iterable[LogRecord | Damaged]
OpenFrom = Callable[[str, int], Records]
"""Reads a topic from an offset on, to its end."""

COMPARED_RECORDS = 1024
"""Of the verified part of each topic, so many of the newest records are read again and compared,"""
COMPARED_BYTES = 16 << 20
"""as far as they have together at most so many bytes: a fraction of a second for a run's logs."""


class ResumableVerifier(Verifier):
    """A verifier that keeps its state at the end of `global` in `kept`, and may begin with such a state.

    Args:
        topics: as of `Verifier`; those that the state names from behind its last record.
        progress: the state to go on from.
        reader: the version of this verifier, written into what is kept.
        options: the other arguments of `Verifier`.

    Raises:
        RuleRefused: the run needs a user's class that is not allowed here.
        StateError: the state contradicts itself.
    """

    def __init__(
        self,
        topics: Mapping[str, Records],
        *,
        reader: str,
        progress: AuditProgress | None = None,
        **options: Any,
    ) -> None:
        super().__init__(topics, **options)
        self.kept: AuditProgress | None = None
        """The state at the end of `global`, once that was read; None: there is none, `why_not` says why."""
        self.why_not = "the log was not read"
        self._reader = reader
        self._progress = progress
        self._journals: dict[str, Journal] = {}
        self._sealed = b""
        self._short = ""
        self._before = (0, 0, 0)
        """Findings, errors and findings left out that are about what was given with this verification alone."""
        if progress is not None:
            manifest = RunManifest.open(progress.manifest)
            self._interlock = Interlock(self._find, manifest, allow_open=self._allow_open)
            with stored("the audit's state"):
                self._interlock.restore(progress.interlock)
            self._resumed = ControllerCore.restore(
                manifest,
                progress.core,
                rules=self._rules,
                transcript=self._interlock.transcript,
                sha256=self._sha256,
            )

    # ---- the verifier's flow ----------------------------------------

    def _begin(self) -> LogReading:
        self._before = (len(self.report.findings), self.report.errors, self.report.left_out)
        if self._progress is None:
            return super()._begin()
        return self._resume(self._progress)

    def _read(self, source: LogReading, record: LogRecord | Damaged) -> Entry | None:
        known, manifests, size = len(source.log.chain), source.facts.manifests, source.facts.size
        entry = super()._read(source, record)
        if not isinstance(record, Damaged):
            digest = source.log.chain.newest if len(source.log.chain) > known else record_digest(record)
            leaf = leaf_hash(record.value) if source.facts.manifests > manifests else None
            journal = self._journals.setdefault(source.topic, Journal())
            journal.add(max(record.offset, 0), source.facts.size - size, digest, leaf)
        return entry

    def _genesis(self, entry: Entry, log: TopicLog) -> Iterator[DerivedAdapter]:
        if isinstance(entry.message, Genesis) and entry.payload is not None:
            self._sealed = bytes(entry.payload[: entry.message.manifest_length])
        yield from super()._genesis(entry, log)

    def _advance(
        self, boundary: int, reader: int, *, size: int | None = None, upto: int | None = None
    ) -> None:
        super()._advance(boundary, reader, size=size, upto=upto)
        source = self._deltas[boundary]
        behind = (size is not None and source.log.tree.size < size) or (
            upto is not None and source.last < upto
        )
        if behind and not self._short:
            self._short = f"{GLOBAL} names records of {source.topic} that are not there"

    def _reached(self, main: LogReading) -> None:
        self.kept = self._keep(main)

    # ---- keeping ----------------------------------------

    def _keep(self, main: LogReading) -> AuditProgress | None:
        report, core, manifest, interlock = self.report, self._core, self._manifest, self._interlock
        findings, errors, left_out = self._before
        if report.errors > errors:
            self.why_not = "what was verified holds an error"
            return None
        if core is None or manifest is None or interlock is None:
            self.why_not = "the log has no genesis yet"
            return None
        if self._short:
            self.why_not = self._short
            return None
        return AuditProgress(
            reader=self._reader,
            run=report.run,
            genesis_sha256=report.genesis_sha256,
            manifest=self._sealed,
            core=core.snapshot(),
            interlock=interlock.snapshot(),
            adapter_sha256=report.adapter_sha256,
            close=self._closed,
            findings=report.findings[findings:],
            left_out=report.left_out - left_out,
            commits=list(report.commits),
            packed=b"" if self._progress is None else self._progress.packed,
            packed_count=0 if self._progress is None else self._progress.packed_count,
            refusals=list(report.refusals),
            owed=[(b, seq, offset, reason) for (b, seq), (offset, reason) in self._owed.owed.items()],
            topics={
                source.topic: TopicProgress(
                    source.log.snapshot(),
                    source.last,
                    (source.facts.records, source.facts.size, source.facts.manifests, source.facts.repeats),
                    self._copy(source.topic),
                    tuple(sorted(offset for b, offset in self._owed.faulty if b == boundary)),
                )
                for boundary, source in enumerate((main, *self._deltas), -1)
            },
        )

    def _copy(self, topic: str) -> Journal:
        """The journal as it is now: reading goes on behind it."""
        return Journal.of(self._journals.setdefault(topic, Journal()).plain())

    # ---- going on ----------------------------------------

    def _resume(self, progress: AuditProgress) -> LogReading:
        report, core = self.report, self._resumed
        manifest = core.manifest
        self._core, self._manifest, self._sealed = core, manifest, progress.manifest
        report.run, report.genesis_sha256 = progress.run, progress.genesis_sha256
        report.boundaries = tuple(terms.name for terms in manifest.boundaries)
        report.parent = manifest.parent
        report.adapter_sha256 = progress.adapter_sha256
        report.findings += progress.findings
        report.left_out += progress.left_out
        report.commits += progress.commits
        report.refusals += progress.refusals
        self._owed.owed = {(b, seq): (offset, reason) for b, seq, offset, reason in progress.owed}
        self._closed = progress.close
        self._witnessed = Witnessed(manifest, self._find, self._policy)
        if progress.close is not None:
            report.close, self._heads = progress.close.reason, progress.close.heads
        main = self._restored(GLOBAL, TopicLog(GLOBAL, resync=True, hash_commits=False), progress)
        main.log.manifest = manifest
        for index, terms in enumerate(manifest.boundaries):
            topic = DELTA_PREFIX + terms.name
            public = bytes.fromhex(terms.gate_public)
            log = TopicLog(topic, public=public, run=manifest.run_id, boundary=index, resync=True)
            self._deltas.append(self._restored(topic, log, progress))
            self._owed.faulty |= {(index, offset) for offset in progress.topics[topic].faulty}
        return main

    def _restored(self, topic: str, log: TopicLog, progress: AuditProgress) -> LogReading:
        known = progress.topics.get(topic)
        if known is None:
            raise StateError(
                f"the audit's state has nothing of {topic}: verify from the start, without the file"
            )
        log.restore(known.log)
        source = self._source(topic, log)
        source.last = known.last
        facts = source.facts
        facts.records, facts.size, facts.manifests, facts.repeats = known.counts
        if log.tree.size:
            facts.root = log.tree.root()
        # Noted further on what was read before: what is kept next covers both.
        self._journals[topic] = known.journal
        if log.tree.size:
            self._marks[topic] = _Roots(known.journal, log.tree.size, facts.root)
        return source


class _Roots(dict[int, bytes]):
    """Roots of a log by its size; those of the part that was verified before are made when they are asked for."""

    def __init__(self, journal: Journal, size: int, root: bytes) -> None:
        super().__init__({size: root})
        self._journal, self._size = journal, size
        self._tree: Tree | None = None

    def get(self, size: int, default: Any = None) -> Any:
        """The root, 32 bytes, of the first `size` manifests."""
        if size in self or not 0 < size <= self._size:
            return super().get(size, default)
        if self._tree is None:
            self._tree = Tree()
            for leaf in self._journal.leaf_hashes(self._size):
                self._tree.append_hash(leaf)
        return self._tree.root(size)


@dataclass(frozen=True, slots=True)
class IncrementalOutcome:
    """What an incremental verification gives.

    Attributes:
        report: the same as a full verification's, and findings `rewritten` where what was verified is not there now.
        progress: the state to keep; None: keep the one that there is, if any.
        why_not: why there is none.
        began: how many records were verified before; 0: everything was read.
    """

    report: Report
    progress: AuditProgress | None
    why_not: str
    began: int


def verify_new(
    names: Iterable[str],
    open_from: OpenFrom,
    progress: AuditProgress | None,
    *,
    reader: str,
    compare_all: bool = False,
    genesis: bytes | None = None,
    **options: Any,
) -> IncrementalOutcome:
    """Verify an exchange from where an earlier verification stopped.

    Args:
        names: its topics.
        open_from: reads one of them from an offset on.
        progress: the state of the earlier verification; None: from the start.
        reader: the version of this verifier.
        compare_all: read all of the verified part again and compare it, not only its newest records.
        genesis: the pinned SHA-256 of the genesis record's envelope.
        options: the other arguments of `Verifier`.

    Raises:
        StateError: the state is of another run than the source, or than the pinned one.
    """
    names = list(names)
    changed: list[Finding] = []
    if progress is not None:
        if genesis is not None and progress.genesis_sha256 != genesis:
            raise StateError(
                f"it is of the run whose genesis has SHA-256 {progress.genesis_sha256.hex()}, and {genesis.hex()} is "
                f"pinned: name another file for this run"
            )
        topics, changed = _held(names, open_from, progress, compare_all)
        if not changed:
            try:
                verifier = ResumableVerifier(
                    topics, reader=reader, progress=progress, genesis=genesis, **options
                )
            except RuleRefused:
                pass  # the full verification says which rule is missing
            else:
                began = sum(len(one.journal) for one in progress.topics.values())
                return _outcome(verifier, [], began)
    whole = {name: open_from(name, 0) for name in names}
    return _outcome(ResumableVerifier(whole, reader=reader, genesis=genesis, **options), changed, 0)


def _outcome(verifier: ResumableVerifier, changed: list[Finding], began: int) -> IncrementalOutcome:
    for _ in verifier.run():
        pass
    report = verifier.report
    report.findings += changed
    report.errors += len(changed)
    if changed:
        return IncrementalOutcome(
            report, None, "what was verified before is not what stands there now", began
        )
    return IncrementalOutcome(report, verifier.kept, verifier.why_not, began)


# ---- the verified part against the source ----------------------------------------


def _held(
    names: list[str], open_from: OpenFrom, progress: AuditProgress, compare_all: bool
) -> tuple[dict[str, Records], list[Finding]]:
    """The topics from behind the verified part on, and what of that part is not there any more."""
    genesis = _same_run(open_from, progress)
    topics: dict[str, Records] = {name: open_from(name, 0) for name in names if name not in progress.topics}
    changed = [] if genesis is None else [genesis]
    for name, known in progress.topics.items():
        journal = known.journal
        if name not in names:
            if len(journal):
                changed.append(
                    _rewritten(name, 0, f"the topic is gone; {len(journal)} records of it were verified")
                )
            continue
        first = 0 if compare_all else journal.tail(COMPARED_RECORDS, COMPARED_BYTES)
        if first == len(journal):
            first = max(0, first - 1)  # the newest one in any case: a log that was cut back does not have it
        start = journal.offsets[first] if first else 0
        records = iter(open_from(name, start))
        name_of_changed = _compared(name, journal, first, records)
        if name_of_changed is not None and name_of_changed not in changed:
            changed.append(name_of_changed)
        topics[name] = records
    return topics, changed


def _same_run(open_from: OpenFrom, progress: AuditProgress) -> Finding | None:
    """What is wrong with the genesis record that the source shows; raises `StateError` if it is another run's."""
    journal = progress.topics[GLOBAL].journal
    record = next(iter(open_from(GLOBAL, journal.offsets[journal.first_leaf])), None)
    if record is not None and not isinstance(record, Damaged):
        try:
            _, message = read_manifest(record)
        except Refused:
            message = None
        run = getattr(message, "run", progress.run)
        if run != progress.run:
            raise StateError(
                f"it is of run {progress.run.hex()}, and the source holds run {run.hex()}: name another file"
            )
    return _compared(GLOBAL, journal, journal.first_leaf, iter([] if record is None else [record]), 1)


def _compared(
    topic: str, journal: Journal, first: int, records: Iterator[LogRecord | Damaged], count: int | None = None
) -> Finding | None:
    """The first of `count` verified records from index `first` on, or all, that the source does not show as it was."""
    for index in range(first, len(journal) if count is None else first + count):
        offset = journal.offsets[index]
        record = next(records, None)
        if record is None:
            last = journal.offsets[-1]
            return _rewritten(
                topic, offset, f"the log ends before it; it was verified as far as offset {last}"
            )
        if isinstance(record, Damaged):
            return _rewritten(topic, record.offset, f"it was verified, and now: {record.detail}")
        if record.offset != offset:
            detail = (
                f"the next record after that of the offset before is at {record.offset}; it was at {offset}"
            )
            return _rewritten(topic, offset, detail)
        if record_digest(record) != journal.digest(index):
            return _rewritten(topic, offset, "another record stands here than the one that was verified")
    return None


def _rewritten(topic: str, offset: int, detail: str) -> Finding:
    return Finding(Code.REWRITTEN, Severity.ERROR, topic, offset, detail)


__all__ = ["IncrementalOutcome", "OpenFrom", "ResumableVerifier", "verify_new"]
