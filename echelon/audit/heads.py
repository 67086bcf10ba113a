"""What logs and witnesses say to each other, as records: announced heads, cosignatures, conflicts.

`head.<log>` has one record for each announcement of the log's writer: the body of an `add-checkpoint` request of
c2sp.org/tlog-witness (the size before, a consistency proof, a signed checkpoint). `witness.<name>` has one record for
each checkpoint that the witness cosigned (a note with the log's line and its own), and one for each pair of
checkpoints that contradict each other. All of it is text that other people's tools read; none of it carries payload.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from echelon.audit.note import Checkpoint, SignedNote, note_key_hash, origin
from echelon.audit.records import Headers, LogRecord
from echelon.errors import CodecError
from echelon.laws.keys import CONTROLLER, HeadKey, Keys, gate_of_place, head_keys
from echelon.messages.exchange import NOTES
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Message

GLOBAL = "global"
HEAD_PREFIX, WITNESS_PREFIX, DELTA_PREFIX = "head.", "witness.", "delta."
HEAD, COSIGNATURE, CONFLICT = (kind.encode() for kind in NOTES)
MAX_PROOF = 63
"""Most hashes of a consistency proof, as tlog-witness says."""
MAX_HEAD_BYTES = 8 * 1024
"""Largest announcement: 63 hashes in base64 are 2,835 bytes, a checkpoint of ours with its line about 300."""
LAST = b"last"
"""Key of the announcement that covers the run's close record: a hint, which its reader checks on the log itself."""
ORDINARY = b""
"""Key of every other announcement."""
GATE_LOGS = 8
"""Delta logs that each gate watches, besides `global`: bounds a gate's traffic however many boundaries there are.

Eight gates then watch each delta log: more than any quorum among boundaries that distrust each other needs."""

_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})", re.ASCII)


def is_log(topic: str) -> bool:
    """Whether a topic of the exchange is a log: `global`, or a boundary's deltas; others tell of logs."""
    return topic == GLOBAL or topic.startswith(DELTA_PREFIX)


@dataclass(frozen=True, slots=True)
class WatchedLog:
    """A log as its witnesses know it: its topic, its origin line (which is its key's name, too), its writer's keys, the
    newest first."""

    topic: str
    origin: str
    keys: tuple[HeadKey, ...]

    @property
    def head_topic(self) -> str:
        """Where its heads are announced."""
        return HEAD_PREFIX + self.topic

    def signed(self, note: SignedNote) -> Checkpoint | None:
        """The checkpoint that a note carries, if it is one of this log and the log's writer signed it."""
        try:
            checkpoint = Checkpoint.parse(note.text)
        except CodecError:
            return None
        good = checkpoint.origin == self.origin and self._signer(note, checkpoint.size) is not None
        return checkpoint if good else None

    def ended(self, note: SignedNote) -> bool:
        """Whether the log's writer signed a note with a former key over more manifests than its end lets count.

        Such a note binds nobody: its writer had not read yet that the key had ended, or somebody stole it. It is passed
        over, as the manifests are that it covers beyond the end.
        """
        try:
            checkpoint = Checkpoint.parse(note.text)
        except CodecError:
            return False
        return (
            checkpoint.origin == self.origin
            and self._signer(note, checkpoint.size) is None
            and any(note.verified(self.origin, key.public) for key in self.keys)
        )

    def _signer(self, note: SignedNote, size: int) -> bytes | None:
        """Which of the writer's keys signed a note over so many manifests, of those that may."""
        for key in self.keys:
            if (key.largest is None or size <= key.largest) and note.verified(self.origin, key.public):
                return key.public
        return None

    def line(self, note: SignedNote) -> SignedNote:
        """The note with one line of the log's own key: whatever else somebody wrote there is not passed on."""
        signer = self._signer(note, Checkpoint.parse(note.text).size) or self.keys[0].public
        kept = note.only(self.origin, note_key_hash(self.origin, signer))
        return SignedNote(kept.text, kept.signatures[:1])


def logs_of(
    manifest: RunManifest, keys: Keys | None = None, first_places: Sequence[Sequence[int]] = ()
) -> dict[str, WatchedLog]:
    """Every log of a run by its topic: the delta logs in order, then `global`.

    Args:
        manifest: the run's terms.
        keys: everybody's keys, as far as `global` was read; None: as the manifest names them.
        first_places: of each delta log, where each of its gate's keys began, as `head_keys` takes it.
    """
    keys = keys or Keys.of(manifest)
    signers = {}
    for place, terms in enumerate(manifest.boundaries):
        began = first_places[place] if place < len(first_places) else ()
        signers[DELTA_PREFIX + terms.name] = head_keys(keys.line(gate_of_place(place)), began)
    signers[GLOBAL] = head_keys(keys.line(CONTROLLER))
    return {
        topic: WatchedLog(topic, origin(manifest.run_id, topic), signer) for topic, signer in signers.items()
    }


def key_name(manifest: RunManifest, witness: str) -> str:
    """The name that stands before a witness's cosignatures."""
    return origin(manifest.run_id, WITNESS_PREFIX + witness)


def watched_by(manifest: RunManifest, witness: str, keys: Keys | None = None) -> tuple[WatchedLog, ...]:
    """The logs that a witness of the run cosigns: delta logs in order, then `global`.

    A boundary's gate watches `global` and the logs of the next `GATE_LOGS` boundaries, the first after the last;
    never its own. Any other witness watches all.

    Args:
        manifest: the run's terms.
        witness: its name there.
        keys: everybody's keys, as far as `global` was read; None: as the manifest names them.
    """
    logs = logs_of(manifest, keys)
    names = [terms.name for terms in manifest.boundaries]
    if witness not in names:
        return tuple(logs.values())
    own = names.index(witness)
    others = min(GATE_LOGS, len(names) - 1)
    places = sorted((own + step) % len(names) for step in range(1, others + 1))
    return (*(logs[DELTA_PREFIX + names[place]] for place in places), logs[GLOBAL])


@dataclass(frozen=True, slots=True)
class Head:
    """An announcement: the checkpoint, and that it continues the one of size `old`.

    Attributes:
        old: size of the checkpoint before, 0 for the first.
        proof: RFC 6962's consistency proof from there, 32 bytes each; none from size 0.
        note: the checkpoint with the writer's signature.
    """

    old: int
    proof: tuple[bytes, ...]
    note: SignedNote

    def encode(self) -> bytes:
        """The body of an `add-checkpoint` request."""
        lines = [f"old {self.old}\n", *(base64.b64encode(node).decode() + "\n" for node in self.proof), "\n"]
        return "".join(lines).encode() + self.note.encode()

    @classmethod
    def decode(cls, data: bytes) -> Head:
        """Read an announcement; neither its signature nor its proof is checked yet.

        Raises:
            CodecError: too large, or not in the one encoding.
        """
        if len(data) > MAX_HEAD_BYTES:
            raise CodecError(f"an announced head of {len(data)} bytes; at most {MAX_HEAD_BYTES} are read")
        front, blank, rest = data.partition(b"\n\n")
        lines = front.split(b"\n")
        old = _OLD.fullmatch(lines[0].decode("latin-1"))
        if not blank or old is None:
            raise CodecError("an announced head begins with `old SIZE`, a proof and an empty line")
        if len(lines) - 1 > MAX_PROOF:
            raise CodecError(f"a consistency proof of {len(lines) - 1} hashes; at most {MAX_PROOF} are read")
        try:
            proof = tuple(base64.b64decode(line, validate=True) for line in lines[1:])
        except binascii.Error:
            raise CodecError("a line of the consistency proof is not base64") from None
        head = cls(int(old[1]), proof, SignedNote.decode(rest))
        if any(len(node) != 32 for node in proof) or head.encode() != data:
            raise CodecError("an announced head in another encoding than the canonical one")
        return head


class Conflict(Message):
    """Two checkpoints of one log that cannot both be of one history, each signed by the log's writer (notes in full).

    `known` is the one that the witness had checked and stored, `refused` the one that it would not cosign.
    """

    kind: ClassVar[str] = "conflict"
    known: bytes
    refused: bytes


def headers_of(kind: bytes) -> Headers:
    """The headers of such a record: its kind alone."""
    return (("kind", kind),)


def kind_of(record: LogRecord) -> bytes | None:
    """The kind of such a record; None if its headers are not those of one."""
    if len(record.headers) == 1 and record.headers[0][0] == "kind":
        return record.headers[0][1]
    return None
