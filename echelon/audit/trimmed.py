"""A boundary whose old windows were trimmed: from which snapshot of the gate the derivation goes on.

The sums of trimmed windows can be derived by nobody again. What stands for them is the gate's signed snapshot: its
anchor is held against the exchange, the adapter that it gives against the version that the aggregator named and the
gate said it derived, and each later snapshot is derived. Who trimmed more than the run's terms allow is found.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from echelon.audit.records import Damaged, LogRecord
from echelon.laws.retention import allows, input_offsets, lets_go
from echelon.messages.boundary import INPUTS, Snapshot
from echelon.messages.manifest import RunManifest
from echelon.rounds.effects import Incoming
from echelon.rounds.gate.derivation import BoundaryLog

SNAPSHOTS = "snapshots"
State = tuple[int, int, int]
"""What tells two states of a derivation apart: the window that is due, the newest version, the next delta."""


def first_kept(
    records: Iterable[LogRecord | Damaged],
) -> tuple[int, Iterator[LogRecord | Damaged]]:
    """The first offset that a topic still has, and its records without the mark of a cut.

    A topic that is empty counts as whole: if its records are wanted, that is found.
    """
    stream = iter(records)
    head = next(stream, None)
    cut = isinstance(head, Damaged) and head.cut
    if cut:
        assert isinstance(head, Damaged)
        first = head.first
        head = next(stream, None)
        return first, stream if head is None else chain((head,), stream)
    if head is None:
        return 0, stream
    return 0 if isinstance(head, Damaged) else head.offset, chain((head,), stream)


@dataclass(frozen=True, slots=True)
class SignedSnapshot:
    """A snapshot of the gate, and the offset of its record."""

    offset: int
    message: Snapshot

    @property
    def state(self) -> State:
        """The state that it is of."""
        return self.message.window, self.message.version, self.message.next_seq


@dataclass
class TrimmedInputs:
    """What is gone of a boundary's inputs, and the snapshots that stand behind it.

    Attributes:
        firsts: by topic of `INPUTS` that does not begin with its first record: the first offset that is kept.
        snapshots: all that stand, in order.
        start: the oldest that lets go of all that is gone; None: there is none, or nothing is gone.
        payload: of `start`.
    """

    firsts: Mapping[str, int] = field(default_factory=dict)
    snapshots: list[SignedSnapshot] = field(default_factory=list)
    start: SignedSnapshot | None = None
    payload: bytes = b""

    def took(self, item: object) -> bool:
        """Take a record of `snapshots`; False if it is none of the gate's."""
        if not isinstance(item, Incoming) or not isinstance(item.message, Snapshot):
            return False
        one = SignedSnapshot(item.offset, item.message)
        self.snapshots.append(one)
        if self.firsts and self.start is None and lets_go(one.message, self.firsts):
            self.start, self.payload = one, item.payload or b""
        return True

    @property
    def before(self) -> int:
        """The window that the derivation begins with."""
        return 0 if self.start is None else self.start.message.window

    def fault(self, manifest: RunManifest, due: int) -> tuple[str, int, str] | None:
        """What is wrong with the trimming: topic, first offset that is kept, and a sentence; None: it is by rule.

        Args:
            manifest: the run's terms.
            due: number of the window that is due at the end of the boundary's records.
        """
        if not self.firsts:
            return None
        if self.start is None:
            newest = {
                topic: max((input_offsets(one.message)[topic] for one in self.snapshots), default=0)
                for topic in INPUTS
            }
            topic = next((name for name in self.firsts if self.firsts[name] > newest[name]), min(self.firsts))
            first = self.firsts[topic]
            return topic, first, (
                f"it begins at offset {first}, and no snapshot of the gate lets go of what stood before: records "
                "were deleted that nobody may trim"
            )  # fmt: skip
        kept = manifest.kept_windows
        allowed = [one.message for one in self.snapshots if allows(one.message, kept, due)]
        if any(lets_go(one, self.firsts) for one in allowed):
            return None
        newest = {topic: max((input_offsets(one)[topic] for one in allowed), default=0) for topic in INPUTS}
        topic = next((name for name in self.firsts if self.firsts[name] > newest[name]), min(self.firsts))
        rule = "all windows keep their inputs" if kept is None else f"the newest {kept} of {due} keep theirs"
        return topic, self.firsts[topic], (
            f"it begins at offset {self.firsts[topic]}: more was trimmed than the run's terms allow ({rule})"
        )  # fmt: skip

    def told(self, manifest: RunManifest) -> str:
        """What an auditor has to know who did not see the trimmed windows."""
        assert self.start is not None
        message = self.start.message
        return (
            f"windows 0 to {message.window - 1} were trimmed by rule (the newest {manifest.kept_windows} keep their "
            f"inputs). Their sums were not derived here: up to there the gate's snapshot stands for them, SHA-256 "
            f"{message.payload.sha256.hex()}; compare it with the one that an earlier audit derived"
        )


def state_of(log: BoundaryLog) -> State:
    """The state of a derivation."""
    return log.window, log.version, log.ledger.next_seq


def differs(one: SignedSnapshot, log: BoundaryLog) -> bool:
    """Whether a snapshot of the state that was derived holds something else."""
    return hashlib.sha256(log.snapshot()).digest() != one.message.payload.sha256


__all__ = ["SNAPSHOTS", "SignedSnapshot", "State", "TrimmedInputs", "differs", "first_kept", "state_of"]
