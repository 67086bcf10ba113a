"""What announced heads and witnesses' records show an auditor: forks, missing cosignatures, and an order in time.

The records are read once. What they claim of a log is held against the log itself when that has been read: a
checkpoint that its writer signed, with another root than the log has, is the proof of a fork.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from echelon.audit.findings import FAULTS, Code, Find, Severity
from echelon.audit.heads import (
    CONFLICT,
    COSIGNATURE,
    DELTA_PREFIX,
    GLOBAL,
    HEAD,
    HEAD_PREFIX,
    MAX_HEAD_BYTES,
    WITNESS_PREFIX,
    Conflict,
    Head,
    WatchedLog,
    key_name,
    kind_of,
    logs_of,
    watched_by,
)
from echelon.audit.log import FaultCode
from echelon.audit.note import Checkpoint, SignedNote
from echelon.audit.policy import Policy
from echelon.audit.records import Damaged, LogRecord
from echelon.errors import CodecError
from echelon.laws.keys import Keys, cosigning_keys
from echelon.messages.keys import KeyRole
from echelon.messages.manifest import RunManifest


@dataclass(frozen=True, slots=True)
class AnnouncementProof:
    """That manifest number `size` - 1 of a delta log was announced when `global` had at most `global_size` manifests.

    Proven by two cosignatures of one witness, at `time` (seconds since the epoch, the witness's clock) at the latest.
    It is worth what the witness is worth: one that lies with the gate's help can make it up.
    """

    witness: str
    topic: str
    size: int
    global_size: int
    time: int


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """Whose cosignatures count: its name, key name, keys (32 bytes each), and topics of the logs it should cosign."""

    name: str
    key: str
    publics: tuple[bytes, ...]
    watches: frozenset[str]

    def cosigned(self, note: SignedNote) -> int | None:
        """When it cosigned a note, with whichever of its keys; None: it did not."""
        times = (note.cosigned(self.key, public) for public in self.publics)
        return next((time for time in times if time is not None), None)


@dataclass(slots=True)
class _Claim:
    """One checkpoint of a log that its writer signed: where it was seen first, and in full."""

    checkpoint: Checkpoint
    note: SignedNote
    topic: str
    offset: int | None


@dataclass(frozen=True, slots=True)
class _Cosigned:
    witness: str
    topic: str
    size: int
    root: bytes
    time: int


@dataclass
class Witnessed:
    """The heads and cosignatures of one run.

    Args:
        manifest: the run's terms.
        find: takes findings.
        policy: whose cosignatures count, if the auditor has one.
    """

    manifest: RunManifest
    find: Find
    policy: Policy | None = None
    _claims: dict[tuple[str, int, bytes], _Claim] = field(default_factory=dict)
    _cosigned: dict[_Cosigned, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.follow(Keys.of(self.manifest), ())

    def follow(self, keys: Keys | None, first_places: Sequence[Sequence[int]]) -> None:
        """Take over whose keys count, once the logs were read; nothing was read of heads and cosignatures before.

        Args:
            keys: everybody's, as `global` leaves them; None: there is no genesis.
            first_places: of each delta log, where each of its gate's keys began.
        """
        keys = keys or Keys.of(self.manifest)
        self.logs = logs_of(self.manifest, keys, first_places)
        self.witnesses = witnesses_of(self.manifest, self.policy, keys)
        self._listed = {
            terms.name: [span.public for span in keys.line((KeyRole.WITNESS, place))]
            for place, terms in enumerate(self.manifest.witnesses)
        }

    def expects(self, topic: str) -> bool:
        """Whether the run has such a topic for heads or cosignatures."""
        if topic.startswith(WITNESS_PREFIX):
            return topic.removeprefix(WITNESS_PREFIX) in self._listed
        return topic.startswith(HEAD_PREFIX) and topic.removeprefix(HEAD_PREFIX) in self.logs

    # ---- reading ----------------------------------------

    def read(self, topic: str, record: LogRecord | Damaged) -> None:
        """Take a record of a topic that is expected. Never raises for what stands in it."""
        if isinstance(record, Damaged):
            self.find(Code.UNREADABLE, Severity.ERROR, topic, record.offset, record.detail)
            return
        try:
            if topic.startswith(HEAD_PREFIX):
                self._head(topic, record)
            else:
                self._witness(topic, record)
        except CodecError as error:
            self.find(Code.WITNESS, Severity.ERROR, topic, record.offset, str(error))

    def _head(self, topic: str, record: LogRecord) -> None:
        if kind_of(record) != HEAD:
            raise CodecError("no announcement of a head")
        note = Head.decode(record.value).note
        log = self.logs[topic.removeprefix(HEAD_PREFIX)]
        self._claim(log, note, topic, record.offset)

    def _witness(self, topic: str, record: LogRecord) -> None:
        kind = kind_of(record)
        if kind == CONFLICT:
            conflict = Conflict.decode(record.value, limit=2 * MAX_HEAD_BYTES)
            for data in (conflict.known, conflict.refused):
                note = SignedNote.decode(data)
                self._claim(self._log_of(note), note, topic, record.offset)
            return
        if kind != COSIGNATURE:
            raise CodecError("neither a cosigned checkpoint nor a conflict")
        note = SignedNote.decode(record.value)
        log = self._log_of(note)
        name = topic.removeprefix(WITNESS_PREFIX)
        if record.key != log.topic.encode():
            raise CodecError(f"its key is not the log {log.topic} that it is about")
        key = key_name(self.manifest, name)
        if all(note.cosigned(key, public) is None for public in self._listed[name]):
            raise CodecError(f"witness {name}, whose topic this is, did not cosign it")
        self._claim(log, note, topic, record.offset)

    def note(self, note: SignedNote) -> None:
        """Take a checkpoint that the auditor has from elsewhere, for the cosignatures on it.

        That its log is of this run and that the log's writer signed it was checked before.
        """
        log = self.logs.get(Checkpoint.parse(note.text).origin.rpartition("/")[2])
        if log is not None and any(one.cosigned(note) is not None for one in self.witnesses):
            self._claim(log, note, "", None)

    def _log_of(self, note: SignedNote) -> WatchedLog:
        checkpoint = Checkpoint.parse(note.text)
        for log in self.logs.values():
            if log.origin == checkpoint.origin:
                return log
        raise CodecError(f"a checkpoint of {checkpoint.origin[:100]}, no log of this run")

    def _claim(self, log: WatchedLog, note: SignedNote, topic: str, offset: int | None) -> None:
        checkpoint = log.signed(note)
        if checkpoint is None and log.ended(note):
            size = Checkpoint.parse(note.text).size
            detail = (
                f"a checkpoint of {log.topic} over {size} manifests by a key that does not count for so many"
            )
            self.find(Code.ENDED_KEY, FAULTS[FaultCode.ENDED_KEY], topic, offset, detail)
            return
        if checkpoint is None:
            raise CodecError(f"no checkpoint of {log.topic} that its writer signed")
        key = (log.topic, checkpoint.size, checkpoint.root)
        self._claims.setdefault(key, _Claim(checkpoint, log.line(note), topic, offset))
        for witness in self.witnesses:
            time = witness.cosigned(note)
            if time is not None:
                self._cosigned[_Cosigned(witness.name, log.topic, checkpoint.size, checkpoint.root, time)] = (
                    None
                )

    # ---- the verdict ----------------------------------------

    def check(self, roots: Mapping[str, Mapping[int, bytes]], ends: Mapping[str, int], closed: bool) -> None:
        """Hold everything against the logs, and count cosignatures.

        Args:
            roots: of every log, the RFC 6962 root (32 bytes) at each size from 1 as it was read.
            ends: of every log, the size that must be cosigned: what is part of the run.
            closed: whether the run was closed; if not, the policy's lag is granted.
        """
        for (topic, size, root), claim in self._claims.items():
            self._hold(topic, size, root, claim, roots.get(topic, {}))
        if self.policy is None:
            return
        for topic in sorted(set(self.policy.logs) - set(self.logs)):
            detail = f"the policy names this log, and the run has {', '.join(sorted(self.logs))}"
            self.find(Code.COSIGNATURES, Severity.ERROR, topic, None, detail)
        for topic in self.logs:
            self._count(topic, roots.get(topic, {}), ends.get(topic, 0), closed)

    def _hold(self, topic: str, size: int, root: bytes, claim: _Claim, roots: Mapping[int, bytes]) -> None:
        if not size:
            return
        here = roots.get(size)
        if here is None:
            detail = f"its writer signed {size} manifests ({_where(claim)}), here are {max(roots, default=0)}: cut off"
            self.find(
                Code.CHECKPOINT, Severity.ERROR, topic, None, f"{detail}; the note: {_quoted(claim.note)}"
            )
            return
        if here == root:
            return
        who = sorted(
            {one.witness for one in self._cosigned if (one.topic, one.size, one.root) == (topic, size, root)}
        )
        other = self._claims.get((topic, size, here))
        shown = (
            _quoted(other.note)
            if other is not None
            else json.dumps(Checkpoint(self.logs[topic].origin, size, here).text())
        )
        seen = f", cosigned by {', '.join(who)}" if who else ""
        detail = (
            f"a fork is proven: its writer signed another root for the first {size} manifests ({_where(claim)}{seen}) "
            f"than they have here; the note: {_quoted(claim.note)}; this log's: {shown}"
        )
        self.find(Code.FORK, Severity.ERROR, topic, None, detail)

    def _count(self, topic: str, roots: Mapping[int, bytes], end: int, closed: bool) -> None:
        assert self.policy is not None
        needed = self.policy.needed(topic)
        least = end if closed else max(0, end - self.policy.lag)
        if not needed or not least:
            return
        newest = self._newest(topic, roots)
        able = [witness.name for witness in self.witnesses if topic in witness.watches]
        enough = [name for name in able if newest.get(name, 0) >= least]
        if len(enough) >= needed:
            return
        missing = [f"{name} (has {newest.get(name, 0)})" for name in able if name not in enough]
        others = "; missing: " + ", ".join(missing) if missing else "; nobody else is named who watches it"
        detail = (
            f"{len(enough)} of {needed} witnesses have cosigned {least} manifests"
            f"{' (' + ', '.join(enough) + ')' if enough else ''}{others}"
        )
        self.find(Code.COSIGNATURES, Severity.ERROR, topic, None, detail)

    def _newest(self, topic: str, roots: Mapping[int, bytes]) -> dict[str, int]:
        """Largest size of a log's own history that each witness cosigned."""
        sizes: dict[str, int] = {}
        for one in self._cosigned:
            if one.topic == topic and roots.get(one.size) == one.root:
                sizes[one.witness] = max(sizes.get(one.witness, 0), one.size)
        return sizes

    def cosigned_sizes(self, roots: Mapping[str, Mapping[int, bytes]]) -> dict[str, dict[str, int]]:
        """For each log: how far each witness has cosigned it, as far as that is the log's own history."""
        return {topic: self._newest(topic, roots.get(topic, {})) for topic in self.logs}

    def evidence(self, roots: Mapping[str, Mapping[int, bytes]]) -> tuple[AnnouncementProof, ...]:
        """What the cosignatures show about when deltas were announced.

        Args:
            roots: as of `check`; cosignatures over other histories count for nothing.

        Returns:
            for each witness, delta topic and cosigned size the smallest size of `global` that is proven, in that order.
        """
        return evidence(self._good(roots))

    def absences(self, roots: Mapping[str, Mapping[int, bytes]]) -> tuple[AnnouncementProof, ...]:
        """What the cosignatures show about when deltas were not announced yet; `roots` as of `evidence`."""
        return absences(self._good(roots))

    def _good(self, roots: Mapping[str, Mapping[int, bytes]]) -> list[tuple[str, str, int, int]]:
        return [
            (one.witness, one.topic, one.size, one.time)
            for one in self._cosigned
            if one.size and roots.get(one.topic, {}).get(one.size) == one.root
        ]


def absences(cosigned: Iterable[tuple[str, str, int, int]]) -> tuple[AnnouncementProof, ...]:
    """What cosignatures show about when deltas were not announced yet.

    A witness cosigns whatever is new of a log in each of its rounds, delta logs before `global`. So until it cosigned
    the next size of a delta log, no more was announced there, and `global` had at least the size that it cosigned
    meanwhile.

    Args:
        cosigned: as of `evidence`.

    Returns:
        for each (witness, delta topic, size, 0 included) the largest such size of `global`, sorted; nothing where there
        is none. `time` is that of the cosignature over `global`. It is worth what the witness is worth.
    """
    of_global: dict[str, list[tuple[int, int]]] = {}
    of_deltas: dict[tuple[str, str], dict[int, int]] = {}
    for witness, topic, size, time in cosigned:
        if topic == GLOBAL:
            of_global.setdefault(witness, []).append((time, size))
        elif topic.startswith(DELTA_PREFIX):
            sizes = of_deltas.setdefault((witness, topic), {})
            sizes[size] = min(time, sizes.get(size, time))
    proofs = []
    for (witness, topic), sizes in sorted(of_deltas.items()):
        steps = [0, *sorted(sizes)]
        for size, following in zip(steps, [*steps[1:], None], strict=True):
            until = None if following is None else sizes[following]
            seen = [(had, at) for at, had in of_global.get(witness, ()) if until is None or at < until]
            if seen:
                had, at = max(seen)
                proofs.append(AnnouncementProof(witness, topic, size, had, at))
    return tuple(proofs)


def evidence(cosigned: Iterable[tuple[str, str, int, int]]) -> tuple[AnnouncementProof, ...]:
    """What cosignatures show about when deltas were announced.

    A witness reads what delta logs announced, then asks how far `global` is announced and reads up to there, and gives
    all that it cosigns the time of that round, later than that of the round before. So a cosignature over `global` with
    the time of one over a delta log, or with a later one, shows that the delta was there when `global` had at most that
    size. Only signed values count: the order in which records stand on a topic is the broker's word.

    Args:
        cosigned: (witness, topic of the log, size, time in seconds) of cosignatures that were verified, in any order.

    Returns:
        for each (witness, delta topic, size) the smallest such size of `global`, sorted; nothing where no cosignature
        over `global` is as late.
    """
    of_global: dict[str, list[tuple[int, int]]] = {}
    of_deltas: dict[tuple[str, str, int], int] = {}
    for witness, topic, size, time in cosigned:
        if topic == GLOBAL:
            of_global.setdefault(witness, []).append((time, size))
        elif topic.startswith(DELTA_PREFIX):
            key = (witness, topic, size)
            of_deltas[key] = min(time, of_deltas.get(key, time))
    for pairs in of_global.values():
        pairs.sort()
    proofs = []
    for (witness, topic, size), time in sorted(of_deltas.items()):
        pairs = of_global.get(witness, [])
        place = bisect_left(pairs, (time, 0))
        if place < len(pairs):
            # An honest witness's sizes never fall; of one whose do, no later and smaller size counts.
            proofs.append(
                AnnouncementProof(
                    witness, topic, size, max(size for at, size in pairs if at == pairs[place][0]), time
                )
            )
    return tuple(proofs)


def witnesses_of(
    manifest: RunManifest, policy: Policy | None = None, keys: Keys | None = None
) -> tuple[PolicyWitness, ...]:
    """Whose cosignatures count: those that the policy names, or else those that the run manifest lists.

    Args:
        manifest: the run's terms.
        policy: the auditor's. A key that it names counts alone, whatever changes of it `global` has.
        keys: everybody's, as far as `global` was read; None: as the manifest names them.
    """
    keys = keys or Keys.of(manifest)
    listed = {
        terms.name: cosigning_keys(keys.line((KeyRole.WITNESS, place)))
        for place, terms in enumerate(manifest.witnesses)
    }
    if policy is None or policy.keys is None:
        named = {name: ("", publics) for name, publics in listed.items()}
    else:
        named = {name: (key, (public,)) for name, (key, public) in policy.keys.items()}
    every = frozenset(logs_of(manifest))
    return tuple(
        PolicyWitness(
            name,
            key or key_name(manifest, name),
            publics,
            frozenset(log.topic for log in watched_by(manifest, name))
            if name in listed and set(publics) <= set(listed[name])
            else every,
        )
        for name, (key, publics) in named.items()
    )


def _where(claim: _Claim) -> str:
    return "in a given checkpoint" if claim.offset is None else f"{claim.topic}@{claim.offset}"


def _quoted(note: SignedNote) -> str:
    """A note in one line: JSON text, from which its bytes can be had again."""
    return json.dumps(note.encode().decode(), ensure_ascii=False)


def roots_until(roots: Sequence[bytes]) -> dict[int, bytes]:
    """Roots at sizes 1, 2, … as a map from size to root."""
    return dict(enumerate(roots, 1))
