"""The two sides of the interlock, as an auditor holds them together: what gates had read, and what the controller read.

A delta that contradicts `global` is an error that names both records and both keys: one of the two signatures lies. A
delta that the controller left unread for too many commits is `withheld`; what shows that depends on who saw it when.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

import msgpack

from echelon.audit.findings import Code, Find, Severity
from echelon.audit.heads import DELTA_PREFIX, GLOBAL
from echelon.audit.log import Entry
from echelon.audit.times import KEPT, Times
from echelon.laws.timing import CONTROLLER
from echelon.laws.transcript import Clash, Contradiction, Transcript
from echelon.messages.envelope import key_id
from echelon.messages.exchange import Close, Commit, Delta
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import pack


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one look of a witness shows of a delta log.

    A witness reads a delta log's announced head first and asks for the end of `global` after that, look by look.

    Attributes:
        witness: its name.
        topic: the delta log.
        size: manifests that it found there.
        before: `global` had at most so many manifests when they stood there.
        after: `global` had at least so many manifests when no more than these stood there; 0: not known.
    """

    witness: str
    topic: str
    size: int
    before: int
    after: int = 0


@dataclass(frozen=True, slots=True)
class _Late:
    """A delta that commits left unread: `seen` commits its gate had read, `read` were there when it was read (None:
    it never was)."""

    boundary: int
    seq: int
    offset: int
    seen: int
    read: int | None


class Interlock:
    """Holds delta logs and `global` against each other, record by record.

    Args:
        find: where findings go.
        manifest: the run's terms.
        allow_open: whether `global` may be a copy that is older than those of the delta logs.
    """

    def __init__(self, find: Find, manifest: RunManifest, *, allow_open: bool = False) -> None:
        self.transcript = Transcript()
        self.times = Times()
        self._find, self._manifest, self._allow_open = find, manifest, allow_open
        self._within = manifest.exchange.deadline_commits
        self._topics = [DELTA_PREFIX + terms.name for terms in manifest.boundaries]
        count = len(self._topics)
        self._offsets: list[int] = []
        """Of the manifests of `global`, by index."""
        self._closed: int | None = None
        """Index of the close record."""
        self._seen = [(0, -1)] * count
        """What each boundary's newest delta had read, and where that delta stands."""
        self._stated: dict[tuple[int, int], tuple[int, int, int]] = {}
        """Of deltas that no commit has merged: commits that the gate had read, and the two times that it states."""
        self._merged: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        """Of each boundary's newest merged deltas: the commit, and how many the gate had read when it signed."""
        self._heads: list[tuple[list[int], list[int]]] = [([], []) for _ in range(count)]
        """Of each boundary: commits whose head differs from the one before, and the sizes from there on."""
        self._commits: list[int] = []
        """Index of each commit's record, from commit 1."""
        self._late: list[_Late] = []
        self._roots: dict[tuple[int, bytes], set[int]] = {}
        """(size, root) that gates state and that are not of `global`, and the boundaries of those gates."""

    # ---- `global` --------------------------------------------------------------------------------

    def wrote(self, entry: Entry, root: bytes) -> None:
        """Take a manifest of `global`, after the deltas that it has read."""
        message = entry.message
        if isinstance(message, Commit):
            self._commits.append(self.transcript.size)
            self._settle(message)
        if isinstance(message, Close) and self._closed is None:
            self._closed = self.transcript.size
        self.transcript.append(message, entry.sha256, root)
        self._offsets.append(entry.offset)

    def _settle(self, commit: Commit) -> None:
        number = len(self._commits)
        for head in commit.heads:
            if head.boundary < len(self._heads):
                commits, sizes = self._heads[head.boundary]
                if not sizes or sizes[-1] != head.size:
                    commits.append(number)
                    sizes.append(head.size)
        if commit.measured and commit.measured[0] > 0:
            self.times.report(CONTROLLER, number, commit.measured[0])
        for merged in commit.merged:
            stated = self._stated.pop((merged.boundary, merged.seq), None)
            if stated is None:
                continue
            seen, spacing_us, sync_us = stated
            if spacing_us:
                self.times.report(merged.boundary, seen, spacing_us)
            self._time_sync(merged.boundary, seen, sync_us)
            self._merged[merged.boundary] = [*self._merged[merged.boundary], (number, seen)][-KEPT:]

    def _time_sync(self, boundary: int, seen: int, sync_us: int) -> None:
        """A gate states the sync of its newest delta that was merged as far as it had read."""
        known = [found for found in self._merged[boundary] if found[0] <= seen]
        if sync_us and known:
            merged, before = known[-1]
            self.times.sync(boundary, sync_us, before, merged)

    # ---- deltas ----------------------------------------------------------------------------------

    def hold(self, boundary: int, entry: Entry, delta: Delta, reader: int | None) -> None:
        """Hold a delta against what is written.

        Args:
            boundary: its index.
            entry: its record.
            delta: what it says.
            reader: offset of the record of `global` that has read it; None: none has.
        """
        before, _ = self._seen[boundary]
        contradiction = self.transcript.contradiction(delta, before)
        if contradiction is not None:
            self._contradicts(boundary, entry, delta, contradiction, reader)
            return
        topic = self._topics[boundary]
        self._seen[boundary] = (delta.seen_size, entry.offset)
        seen, made = self.transcript.commits(delta.seen_size), len(self._commits)
        if self._closed is not None and delta.seen_size > self._closed:
            detail = (
                f"delta {entry.number}, signed by {self._gate(boundary)}, says that its gate had read the close record "
                f"{GLOBAL}@{self._offsets[self._closed]}: nothing may follow that"
            )
            self._find(Code.AFTER_CLOSE, Severity.ERROR, topic, entry.offset, detail)
        if reader is not None:
            self._stated[boundary, entry.number] = (seen, delta.spacing_us, delta.sync_us)
        if made - seen >= self._within:
            read = None if reader is None else made
            self._late.append(_Late(boundary, entry.number, entry.offset, seen, read))

    def _contradicts(
        self, boundary: int, entry: Entry, delta: Delta, contradiction: Contradiction, reader: int | None
    ) -> None:
        topic = self._topics[boundary]
        older = contradiction.clash is Clash.BEYOND and reader is None and self._open
        if contradiction.clash in (Clash.ROOT, Clash.BEYOND) and not older:
            self._roots.setdefault((delta.seen_size, delta.seen_root), set()).add(boundary)
        signed = f"delta {entry.number}, signed by {self._gate(boundary)}, contradicts"
        if contradiction.clash is Clash.BACK:
            detail = f"{signed} {topic}@{self._seen[boundary][1]}, signed with the same key: {contradiction.detail}"
        elif contradiction.place is not None:
            record = f"{GLOBAL}@{self._offsets[contradiction.place]}"
            detail = f"{signed} {record}, signed by {self._controller}: {contradiction.detail}"
            if contradiction.clash is Clash.ROOT:
                detail += f"; the first record that differs is {record} or one before it"
        elif reader is not None:
            detail = (
                f"{signed} {GLOBAL}@{reader}, signed by {self._controller}, which has read it: "
                f"{contradiction.detail}"
            )
            if contradiction.clash is Clash.BEYOND:
                detail += " before that record, so it was signed later"
        else:
            last = f"{GLOBAL}@{self._offsets[-1]}" if self._offsets else GLOBAL
            detail = f"{signed} {last}, the last record, signed by {self._controller}: {contradiction.detail}"
        if contradiction.clash is not Clash.BACK:
            detail += ". Either the controller wrote another log than it had shown to this gate, or the gate made it up"
        severity = Severity.ERROR
        if older:
            severity = Severity.WARNING
            detail += "; or this copy of `global` is older than that of the delta log: read both again"
        self._find(Code.INTERLOCK, severity, topic, entry.offset, detail)

    # ---- storage ---------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        """Everything that was read, without findings; canonical."""
        return pack(
            [
                self.transcript.encode(),
                self.times.facts(),
                self._offsets,
                self._closed,
                self._seen,
                sorted([*key, *value] for key, value in self._stated.items()),
                self._merged,
                self._heads,
                self._commits,
                [[late.boundary, late.seq, late.offset, late.seen, late.read] for late in self._late],
                sorted([size, root, sorted(gates)] for (size, root), gates in self._roots.items()),
            ]
        )

    def restore(self, data: bytes) -> None:
        """Take a snapshot over.

        Raises:
            CodecError, ValueError, TypeError: it is none.
        """
        (
            transcript,
            times,
            offsets,
            self._closed,
            seen,
            stated,
            merged,
            heads,
            commits,
            late,
            roots,
        ) = msgpack.unpackb(data, raw=False, use_list=False, max_bin_len=len(data), max_array_len=len(data))
        self.transcript = Transcript.decode(transcript)
        self.times = Times.of(times)
        self._offsets, self._commits = list(offsets), list(commits)
        self._seen = [(size, offset) for size, offset in seen]
        self._stated = {(one[0], one[1]): (one[2], one[3], one[4]) for one in stated}
        self._merged = [[(commit, read) for commit, read in one] for one in merged]
        self._heads = [(list(at), list(sizes)) for at, sizes in heads]
        self._late = [_Late(*one) for one in late]
        self._roots = {(size, root): set(gates) for size, root, gates in roots}

    # ---- end -------------------------------------------------------------------------------------

    def behind(self, size: int) -> int:
        """A size of `global` that surely held when somebody had found `size` manifests announced: one commit more.

        What was announced may be one step of the controller's behind what stands on the log.
        """
        place = bisect_left(self._commits, size)
        return self._commits[place] + 1 if place < len(self._commits) else len(self._offsets) + 1

    def finish(self, sightings: Iterable[Sighting] = ()) -> None:
        """Say what was withheld, by what witnesses saw and deltas say of themselves; and whose clock is wrong."""
        seen = [sighting for sighting in sightings if sighting.topic in self._topics]
        for sighting in seen:
            self._prove(sighting)
        for late in self._late:
            self._doubt(late, seen)
        self._agreed()
        self._clocks()

    def _prove(self, sighting: Sighting) -> None:
        """A delta stood on the exchange, a witness cosigned that, and too many commits left it unread."""
        boundary = self._topics.index(sighting.topic)
        by = self.transcript.commits(sighting.before) + self._within
        if by > len(self._commits) or self._head(boundary, by) >= sighting.size:
            return
        place = self._offsets[self._commits[by - 1]]
        detail = (
            f"commit {by}, signed by {self._controller}, has read {self._head(boundary, by)} manifests of "
            f"{sighting.topic}; witness {sighting.witness} had found {sighting.size} there when `global` had at most "
            f"{sighting.before} manifests, {self._within} commits before"
        )
        self._find(Code.WITHHELD, Severity.ERROR, GLOBAL, place, detail)

    def _head(self, boundary: int, commit: int) -> int:
        """How far a commit has read a boundary's log."""
        commits, sizes = self._heads[boundary]
        place = bisect_left(commits, commit + 1) - 1
        return sizes[place] if place >= 0 else 0

    def _doubt(self, late: _Late, sightings: list[Sighting]) -> None:
        topic, made = self._topics[late.boundary], len(self._commits) if late.read is None else late.read
        absent = [s for s in sightings if s.topic == topic and s.size <= late.seq]
        there = max([late.seen, *(self.transcript.commits(s.after) for s in absent)])
        detail = (
            f"delta {late.seq}, signed by {self._gate(late.boundary)} when its gate had read {late.seen} commits, was "
            f"{'never read' if late.read is None else f'read after {made} commits'}; the terms allow {self._within} "
            f"commits without it"
        )
        if made - there < self._within:
            names = ", ".join(sorted({s.witness for s in absent}))
            detail += (
                f". It came late to the exchange: {names} had not found it there when commit {there} was made"
            )
            self._find(Code.WITHHELD, Severity.INFO, topic, late.offset, detail)
            return
        detail += (
            f". Either {self._controller} withheld it, or it came late to the exchange: these logs cannot show which, "
            "a witness's cosignatures would"
        )
        lost = late.read is None and self._closed is not None
        self._find(Code.WITHHELD, Severity.ERROR if lost else Severity.WARNING, topic, late.offset, detail)

    def _agreed(self) -> None:
        """Gates that state one and the same other log had it from somebody: say so once, of the longest one."""
        agreed = [(size, root) for (size, root), gates in self._roots.items() if len(gates) > 1]
        if not agreed:
            return
        size, root = max(agreed)
        gates = self._roots[size, root]
        names = ", ".join(self._gate(boundary) for boundary in sorted(gates))
        detail = (
            f"{names}: these {len(gates)} gates had read one and the same log of {size} manifests, and not this one. "
            f"{self._controller} wrote two logs, or all of these gates lie together"
        )
        self._find(Code.INTERLOCK, Severity.ERROR, GLOBAL, None, detail)

    @property
    def _open(self) -> bool:
        """Whether this may be a copy of `global` that was taken before those of the delta logs."""
        return self._closed is None and self._allow_open

    def _clocks(self) -> None:
        for doubt in self.times.doubts():
            names = " and ".join(
                self._controller if reporter == CONTROLLER else self._gate(reporter)
                for reporter in doubt.reporters
            )
            topic = GLOBAL if CONTROLLER in doubt.reporters else self._topics[doubt.reporters[0]]
            self._find(Code.MEASURED, Severity.WARNING, topic, None, f"{names}: {doubt.detail}")

    # ---- names -----------------------------------------------------------------------------------

    def _gate(self, boundary: int) -> str:
        terms = self._manifest.boundaries[boundary]
        return f"the gate of {terms.name} (key {key_id(bytes.fromhex(terms.gate_public))})"

    @property
    def _controller(self) -> str:
        return f"the controller (key {key_id(bytes.fromhex(self._manifest.controller_public))})"
