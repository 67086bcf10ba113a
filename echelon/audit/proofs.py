"""Proofs as files: that one commit stands in the log of `global`, for somebody who has neither the log nor this code.

Every file is in a format of others: DSSE envelopes, C2SP signed notes and `tlog-proof`, RFC 6962 proofs. A verifier
starts from the pinned SHA-256 of the genesis record's envelope and needs nothing else; docs/audit.md has the steps.
Where keys were changed, the proof has the records that say so: they lead from the run manifest's keys to those that
signed the commit, its deltas and the checkpoint.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from echelon.audit.heads import DELTA_PREFIX, GLOBAL, logs_of
from echelon.audit.log import FaultCode, TopicLog
from echelon.audit.merkle import consistency_proof, inclusion_proof, leaf_hash, tree_root
from echelon.audit.note import Checkpoint, SignedNote
from echelon.audit.records import Damaged, LogRecord
from echelon.errors import AuditError, CodecError, ConfigError
from echelon.laws.keys import CONTROLLER, Actor, Keys, gate_of_place
from echelon.messages.exchange import Commit, Genesis
from echelon.messages.keys import KeyChange
from echelon.messages.manifest import RunManifest

Topics = Mapping[str, Iterable[LogRecord | Damaged]]

FORMAT = "echelon.proof.v1"
INDEX = "index.json"
_HARMLESS = {FaultCode.REPEAT, FaultCode.VOID, FaultCode.ENDED_KEY}
"""A record that is signed with a key that has ended is no part of its log."""


def tlog_proof(index: int, path: Sequence[bytes], note: bytes) -> bytes:
    """A proof in the format of C2SP's `tlog-proof`, version 1.

    Args:
        index: of the leaf.
        path: hashes (32 bytes each) from the leaf's sibling upwards.
        note: the checkpoint, as it is.
    """
    return b"c2sp.org/tlog-proof@v1\nindex %d\n" % index + _lines(path) + b"\n" + note


def consistency_text(old: int, path: Sequence[bytes], note: bytes) -> bytes:
    """That the first `old` leaves are a prefix of the log: the lines that C2SP's `tlog-witness` takes from a log.

    Args:
        old: size of the smaller tree.
        path: hashes of the consistency proof, 32 bytes each, as RFC 9162 orders them.
        note: the signed checkpoint of the larger tree.
    """
    return b"old %d\n" % old + _lines(path) + b"\n" + note


def _lines(hashes: Sequence[bytes]) -> bytes:
    return b"".join(base64.b64encode(one) + b"\n" for one in hashes)


@dataclass
class _ReadLog:
    """A log as it was read: the hashes of its leaves, and the envelopes that are asked for."""

    reading: TopicLog
    leaves: list[bytes] = field(default_factory=list)
    envelopes: dict[int, bytes] = field(default_factory=dict)

    def take(self, record: LogRecord | Damaged) -> object:
        """Read a record; the message of a manifest, None for any other. Raises `AuditError` for what does not hold."""
        topic = self.reading.topic
        if isinstance(record, Damaged):
            raise AuditError(f"{topic}@{record.offset}: {record.detail}; nothing can be proved from this log")
        step = self.reading.read(record)
        for fault in step.faults:
            if fault.code not in _HARMLESS:
                raise AuditError(
                    f"{topic}@{fault.offset}: {fault.detail}; nothing can be proved from this log, see audit verify"
                )
        if step.entry is None:
            return None
        self.leaves.append(leaf_hash(record.value))
        self.envelopes[len(self.leaves) - 1] = record.value
        return step.entry


def commit_proof(topics: Topics, number: int, notes: Sequence[bytes]) -> dict[str, bytes]:
    """The files that prove a commit, by name.

    Args:
        topics: of the exchange, as of `Verifier`.
        number: of the commit; genesis is 0.
        notes: signed checkpoints. The largest one of `global` is what is proved against, others get a proof that they
            are its prefix; those of other logs are left out.

    Raises:
        ConfigError: the log has no such commit, or no checkpoint covers it.
        AuditError: the log, or a checkpoint, does not hold.
    """
    main = _global(topics, number)
    log, index, commit = main.log, main.index, main.commit
    checkpoints = _checkpoints(main, notes)
    size = _covering(main, checkpoints, number)
    note, leaves = checkpoints[size], log.leaves[:size]
    files = {
        "genesis.dsse.json": log.envelopes[0],
        "genesis.tlog-proof": tlog_proof(0, inclusion_proof(leaves, 0), note),
        "manifest.dsse.json": main.sealed,
        "commit.dsse.json": log.envelopes[index],
        "commit.tlog-proof": tlog_proof(index, inclusion_proof(leaves, index), note),
        "payload.sha256": f"{commit.payload.sha256.hex()}  payload\n".encode(),
        "checkpoint.note": note,
    }
    olds = {index + 1: tree_root(leaves[: index + 1])}
    for old, earlier in checkpoints.items():
        if 0 < old < size:
            files[f"checkpoint-{old}.note"] = earlier
            olds[old] = tree_root(leaves[:old])
    for old in olds:
        files[f"consistency-{old}.txt"] = consistency_text(old, consistency_proof(leaves, old), note)
    if isinstance(commit, Commit):
        files |= _deltas(topics, commit, main)
    files |= _changes(main, leaves, note)
    about = {
        "format": FORMAT,
        "run": main.manifest.run,
        "commit": number,
        "index": index,
        "checkpoint_size": size,
        "roots": {str(old): root.hex() for old, root in sorted(olds.items())},
        "files": sorted(files),
    }
    return {**files, INDEX: json.dumps(about, indent=2).encode() + b"\n"}


def _changes(main: _Global, leaves: Sequence[bytes], note: bytes) -> dict[str, bytes]:
    """The changes under the checkpoint of keys that the proof rests on: the controller's, and the merged gates'."""
    actors = {CONTROLLER}
    if isinstance(main.commit, Commit):
        actors |= {gate_of_place(one.boundary) for one in main.commit.merged}
    files = {}
    for place, actor in main.changes.items():
        if place < len(leaves) and actor in actors:
            files[f"key-change-{place}.dsse.json"] = main.log.envelopes[place]
            files[f"key-change-{place}.tlog-proof"] = tlog_proof(place, inclusion_proof(leaves, place), note)
    return files


@dataclass(frozen=True)
class _Global:
    """`global`, read to its end.

    Attributes:
        log: its leaves and envelopes.
        index: leaf index of the commit that is asked for.
        commit: that one.
        manifest: the run's terms.
        sealed: the envelope around them.
        keys: everybody's keys at the end.
        changes: whose key each change of a key changes, by leaf index.
    """

    log: _ReadLog
    index: int
    commit: Genesis | Commit
    manifest: RunManifest
    sealed: bytes
    keys: Keys
    changes: Mapping[int, Actor]


def _global(topics: Topics, number: int) -> _Global:
    main = _ReadLog(TopicLog(GLOBAL))
    commit: tuple[int, Genesis | Commit] | None = None
    sealed = b""
    newest = 0
    changes: dict[int, Actor] = {}
    for record in topics.get(GLOBAL, ()):
        entry = main.take(record)
        message, index = getattr(entry, "message", None), len(main.leaves) - 1
        if isinstance(message, Genesis):
            payload = getattr(entry, "payload", None)
            sealed = bytes(payload[: message.manifest_length]) if payload else b""
        if isinstance(message, Commit):
            newest = message.commit
        if isinstance(message, KeyChange):
            changes[index] = message.statement.actor
        if isinstance(message, Genesis | Commit) and number == getattr(message, "commit", 0):
            commit = index, message
    manifest, keys = main.reading.manifest, main.reading.keys
    if manifest is None or keys is None:
        raise AuditError(f"{GLOBAL} has no genesis that holds: nothing can be proved from this log")
    if commit is None:
        raise ConfigError(f"--proof {number}: the log has commits 0 to {newest}")
    return _Global(main, *commit, manifest=manifest, sealed=sealed, keys=keys, changes=changes)


def _checkpoints(main: _Global, notes: Sequence[bytes]) -> dict[int, bytes]:
    """Those of `global`, by size. Raises `AuditError` for one that the log's writer signed and the log contradicts."""
    watched, leaves = logs_of(main.manifest, main.keys)[GLOBAL], main.log.leaves
    name = watched.origin
    heads = {}
    for data in notes:
        try:
            note = SignedNote.decode(data)
            head = Checkpoint.parse(note.text)
        except CodecError as error:
            raise AuditError(f"a checkpoint cannot be read: {error}") from error
        if head.origin != name:
            continue
        if watched.signed(note) is None:
            raise AuditError(f"a checkpoint of {name} is not signed by the log's writer")
        if head.size > len(leaves) or tree_root(leaves[: head.size]) != head.root:
            raise AuditError(
                f"the checkpoint of {name} over {head.size} manifests is not of this log, which has {len(leaves)}"
            )
        heads[head.size] = data
    return heads


def _covering(main: _Global, checkpoints: Mapping[int, bytes], number: int) -> int:
    """The size of the largest checkpoint that covers the commit, and whose own key follows from what it covers."""
    covering = [size for size in checkpoints if size > main.index]
    name = logs_of(main.manifest)[GLOBAL].origin
    followed = [
        size
        for size in covering
        if SignedNote.decode(checkpoints[size]).verified(name, main.keys.key_at(CONTROLLER, size))
    ]
    if followed:
        return max(followed)
    if covering:
        raise ConfigError(
            f"the checkpoint of {GLOBAL} over {max(covering)} manifests is signed with a key that begins behind them, "
            "so it does not prove its own key: give one of more manifests with --checkpoint"
        )
    raise ConfigError(
        f"no checkpoint of {GLOBAL} covers commit {number}: give one that does with --checkpoint (in a run folder they "
        "lie in checkpoints/)"
    )


def _deltas(topics: Topics, commit: Commit, main: _Global) -> dict[str, bytes]:
    """Of each merged delta: its envelope, and that it stands in the log whose head the commit states."""
    files = {}
    for head in commit.heads:
        terms = main.manifest.boundaries[head.boundary]
        merged = [one.seq for one in commit.merged if one.boundary == head.boundary]
        if not merged:
            continue
        log = _ReadLog(
            TopicLog(
                DELTA_PREFIX + terms.name,
                public=bytes.fromhex(terms.gate_public),
                run=main.manifest.run_id,
                boundary=head.boundary,
            )
        )
        log.reading.follow(main.keys.line(gate_of_place(head.boundary)))
        for record in topics.get(log.reading.topic, ()):
            if len(log.leaves) >= head.size:
                break
            log.take(record)
        if len(log.leaves) != head.size or tree_root(log.leaves) != head.root:
            raise AuditError(f"{log.reading.topic} does not have the head that commit {commit.commit} states")
        for seq in merged:
            proof = {
                "logIndex": seq,
                "treeSize": head.size,
                "rootHash": head.root.hex(),
                "hashes": [one.hex() for one in inclusion_proof(log.leaves, seq)],
            }
            name = f"delta-{terms.name}-{seq}"
            files[f"{name}.dsse.json"] = log.envelopes[seq]
            files[f"{name}.inclusion.json"] = json.dumps(proof, indent=2).encode() + b"\n"
    return files
