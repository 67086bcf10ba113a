"""The witness's decision: whether an announced head continues what it knows of that log, and what it cosigns.

It follows c2sp.org/tlog-witness: a checkpoint is cosigned if the log's writer signed it, and if a consistency proof
shows that it continues the largest one that was cosigned before. The state must be stored before a cosignature
leaves the process; then no crash can make one key vouch for two histories of a log.

Cosignatures are made in rounds. All of a round carry one time, and each round a later one than the round before. A
round reads the announced heads of delta logs first and that of `global` last, and cosigns `global` whenever it cosigns
anything. So the signed times alone show an order: see `echelon.audit.cosigned.evidence`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from echelon.audit.heads import Conflict, Head, WatchedLog
from echelon.audit.merkle import EMPTY_ROOT, verify_consistency
from echelon.audit.note import Checkpoint, SignedNote
from echelon.errors import CodecError, StateError
from echelon.messages.envelope import Signer
from echelon.messages.wire import pack, unpack

MAX_CONFLICTS = 8
"""Conflicts of one log that a witness publishes: one proves a fork, and a hostile writer could make any number."""
MAX_STATE_BYTES = 1 << 20
_STATE = b"echelon witness v1\x00"


class RefusedBecause(StrEnum):
    """Why a head is not cosigned."""

    MALFORMED = "malformed"
    UNSIGNED = "unsigned"
    """Not a checkpoint of that log with its writer's signature."""
    BEHIND = "behind"
    """Smaller than what was cosigned: a repeat, or a rollback. It is never cosigned."""
    ENDED = "ended"
    """Signed with a former key of the writer, over more manifests than that key's end lets count."""
    FORK = "fork"
    """Signed by the writer, and no continuation of what it signed before."""
    GAP = "gap"
    """It continues a checkpoint that was never announced here: nothing can be said."""


@dataclass(frozen=True, slots=True)
class Known:
    """What a witness knows of a log: the largest checkpoint that it checked, with the log's signature."""

    size: int
    root: bytes
    note: bytes


@dataclass(frozen=True, slots=True)
class HeadRefusal:
    """A head that was not taken. `conflict` has both notes where the writer signed what contradicts."""

    reason: RefusedBecause
    detail: str
    conflict: Conflict | None = None


def decide(log: WatchedLog, known: Known | None, data: bytes) -> Known | HeadRefusal:
    """What an announcement makes of what is known of a log; pure.

    Args:
        log: whose topic the announcement stands on.
        known: the state, None before the first checkpoint.
        data: the announcement as it stands there, whoever wrote it.

    Returns:
        the new state (the same where nothing is new), or why it stays as it is.
    """
    try:
        head = Head.decode(data)
    except CodecError as error:
        return HeadRefusal(RefusedBecause.MALFORMED, str(error))
    checkpoint = log.signed(head.note)
    if checkpoint is None and log.ended(head.note):
        return HeadRefusal(RefusedBecause.ENDED, f"signed with a key of {log.origin} that had ended before")
    if checkpoint is None:
        return HeadRefusal(RefusedBecause.UNSIGNED, f"no checkpoint of {log.origin} that its writer signed")
    note = log.line(head.note).encode()
    size, root = (0, EMPTY_ROOT) if known is None else (known.size, known.root)

    def refused(reason: RefusedBecause, detail: str) -> HeadRefusal:
        proven = reason is RefusedBecause.FORK and known is not None
        return HeadRefusal(
            reason, detail, Conflict(known=known.note, refused=note) if proven and known is not None else None
        )

    if checkpoint.size < size:
        return refused(
            RefusedBecause.BEHIND, f"it has {checkpoint.size} manifests, {size} were cosigned before"
        )
    if checkpoint.size == size:
        if checkpoint.root != root:
            return refused(RefusedBecause.FORK, f"another root for the same {size} manifests")
        return known if known is not None else Known(size, root, note)
    if head.old > size:
        return refused(RefusedBecause.GAP, f"it continues {head.old} manifests, known are {size}")
    if head.old < size:
        return refused(
            RefusedBecause.FORK,
            f"it continues {head.old} manifests where {size} were announced before: a history beside that one",
        )
    continues = (
        not head.proof
        if size == 0
        else verify_consistency(size, root, checkpoint.size, checkpoint.root, head.proof)
    )
    if not continues:
        return refused(
            RefusedBecause.FORK,
            f"nothing shows that its {checkpoint.size} manifests begin with the {size} known",
        )
    return Known(checkpoint.size, checkpoint.root, note)


@dataclass
class WitnessCore:
    """A witness without its shell. What `take` and `round` change must be stored before what `round` gives is sent.

    Attributes:
        name: the key name that stands before its cosignatures.
        signer: its key, which no log may have.
        logs: the logs that it watches; `global` last, as `watched_by` orders them.
    """

    name: str
    signer: Signer
    logs: Sequence[WatchedLog]
    known: dict[str, Known] = field(default_factory=dict)
    """By topic."""
    last_time: int = 0
    """Time of the newest round, in seconds since the epoch."""
    _cosigned: dict[str, int] = field(default_factory=dict)
    """Size of the newest checkpoint of each topic that was cosigned."""
    _conflicts: dict[str, list[bytes]] = field(default_factory=dict)
    """Refused notes of each topic that were published as conflicts."""

    def __post_init__(self) -> None:
        self._by_topic = {log.topic: log for log in self.logs}
        self._former: tuple[
            bytes, ...
        ] = ()  # its keys before this one: what it cosigned with them is its word, too

    def follow(self, logs: Sequence[WatchedLog], former: tuple[bytes, ...]) -> tuple[str, ...]:
        """Know the same logs by other keys, and its own former ones.

        Returns:
            logs of which it knows nothing any more, as `forget_ended` says.
        """
        self.logs, self._former = logs, former
        self._by_topic = {log.topic: log for log in logs}
        return self.forget_ended()

    def forget_ended(self) -> tuple[str, ...]:
        """Forget what it knows of logs by checkpoints that do not count any more: their key ended before so many.

        A cosignature of such a checkpoint may stand: it vouched for what the log's writer had announced, and nobody
        counts it.

        Returns:
            the topics of those logs: their head topics are to be taken again from the start.
        """
        ended = tuple(
            topic
            for topic, known in self.known.items()
            if self._by_topic[topic].ended(SignedNote.decode(known.note))
        )
        for topic in ended:
            del self.known[topic]
            self._cosigned.pop(topic, None)
        return ended

    def unsigned(self, topic: str, data: bytes) -> bool:
        """Whether a cosigned note is of a log that it watches, and signed with no key of that log that is known."""
        try:
            note = SignedNote.decode(data)
        except CodecError:
            return False
        log = self._by_topic.get(topic)
        return log is not None and log.signed(note) is None

    def take(self, topic: str, data: bytes) -> HeadRefusal | None:
        """Take an announcement from the head topic of a log; None if it was taken, or is known already.

        Never raises for what stands in it. A conflict that was published before, or is beyond `MAX_CONFLICTS`, is
        left out of the refusal.
        """
        decision = decide(self._by_topic[topic], self.known.get(topic), data)
        if isinstance(decision, Known):
            self.known[topic] = decision
            return None
        if decision.conflict is not None:
            told = self._conflicts.setdefault(topic, [])
            if decision.conflict.refused in told or len(told) >= MAX_CONFLICTS:
                return HeadRefusal(decision.reason, decision.detail)
            told.append(decision.conflict.refused)
        return decision

    def due(self) -> bool:
        """Whether a checkpoint is known that was not cosigned yet."""
        return any(known.size > self._cosigned.get(topic, 0) for topic, known in self.known.items())

    def round(self, now: int) -> list[tuple[str, SignedNote]]:
        """Cosign what is new, delta logs first and `global` last: (topic, note with the log's line and one more).

        Args:
            now: the wall clock's time in seconds; the round's time is later than that of the round before in any case.

        Returns:
            nothing if nothing is new.
        """
        if not self.due():
            return []
        self.last_time = max(now, self.last_time + 1)
        last = self.logs[-1].topic
        notes = []
        for log in self.logs:
            known = self.known.get(log.topic)
            if known is None or known.size == 0:
                continue
            if known.size > self._cosigned.get(log.topic, 0) or log.topic == last:
                note = SignedNote.decode(known.note)
                notes.append((log.topic, note.cosign(self.name, self.signer, self.last_time)))
                self._cosigned[log.topic] = known.size
        return notes

    def recall(self, topic: str, data: bytes) -> None:
        """Take a cosigned note of its own that stands on its topic, as after a lost state or an old backup.

        Notes that are none of its own are passed over.

        Raises:
            StateError: it cosigned another history than it knows: its key is in use elsewhere, or was.
        """
        try:
            note = SignedNote.decode(data)
        except CodecError:
            return
        log = self._by_topic.get(topic)
        checkpoint = None if log is None else log.signed(note)
        times = (note.cosigned(self.name, public) for public in (self.signer.public, *self._former))
        time = next((found for found in times if found is not None), None)
        if log is None or checkpoint is None or time is None:
            return
        known = self.known.get(topic)
        if known is not None and known.size == checkpoint.size and known.root != checkpoint.root:
            raise StateError(
                f"{self.name}: its key has cosigned two histories of {topic} at {known.size} manifests. Keep the "
                "topic and the state file as evidence, and give the witness a new key in the next run"
            )
        self.last_time = max(self.last_time, time)
        if known is None or known.size < checkpoint.size:
            self.known[topic] = Known(checkpoint.size, checkpoint.root, log.line(note).encode())
        self._cosigned[topic] = max(self._cosigned.get(topic, 0), checkpoint.size)

    def has(self, sizes: Mapping[str, int]) -> bool:
        """Whether of each of these topics that it watches at least so many manifests were cosigned."""
        return all(
            self._cosigned.get(topic, 0) >= size for topic, size in sizes.items() if topic in self._by_topic
        )

    def snapshot(self) -> bytes:
        """The state, for `restore`."""
        known = [[topic, one.note] for topic, one in sorted(self.known.items())]
        return _STATE + pack(
            [self.last_time, known, sorted(self._cosigned.items()), sorted(self._conflicts.items())]
        )

    def restore(self, data: bytes) -> None:
        """Take over a snapshot; `forget_ended` is to be asked then.

        Raises:
            StateError: it is damaged, or of other logs.
        """
        try:
            if not data.startswith(_STATE):
                raise CodecError("another beginning")
            fields: Any = unpack(data[len(_STATE) :], limit=MAX_STATE_BYTES)
            self.last_time, known, cosigned, conflicts = fields
            self.known = {topic: self._checked(topic, note) for topic, note in known}
            self._cosigned = dict(cosigned)
            self._conflicts = {topic: list(notes) for topic, notes in conflicts}
        except (CodecError, TypeError, ValueError, KeyError) as error:
            raise StateError(
                f"{self.name}: its state is damaged ({error}): move the file away, and it goes on from its own topic"
            ) from None

    def _checked(self, topic: str, note: bytes) -> Known:
        log, signed = self._by_topic[topic], SignedNote.decode(note)
        if log.signed(signed) is None and not log.ended(signed):
            raise CodecError(f"no checkpoint of {topic} with its writer's signature")
        checkpoint = Checkpoint.parse(signed.text)
        return Known(checkpoint.size, checkpoint.root, note)


def describe(checkpoint: Checkpoint) -> str:
    """A checkpoint in words."""
    return f"{checkpoint.size} manifests with root {checkpoint.root.hex()}"
