"""What must hold of witnesses: each signs one history of a log."""

from __future__ import annotations

from collections.abc import Iterator

from echelon.audit.heads import COSIGNATURE, WITNESS_PREFIX, key_name, kind_of
from echelon.audit.note import Checkpoint, SignedNote
from echelon.sim.left import RunRecords


def witnesses_sign_one_history(left: RunRecords) -> Iterator[str]:
    """No witness cosigns two histories of a log or calls an honest writer's a fork; its times never fall."""
    manifest = left.outcome.manifest
    keys = {witness.name: bytes.fromhex(witness.public) for witness in manifest.witnesses}
    for witness, public in keys.items():
        topic = f"{WITNESS_PREFIX}{witness}"
        roots: dict[tuple[str, int], bytes] = {}
        last = 0
        seen: set[bytes] = set()
        for record in left.outcome.topics["exchange"][topic]:
            if kind_of(record) != COSIGNATURE:
                yield f"{topic}@{record.offset}: an honest log is said to have two histories"
                continue
            if record.value in seen:
                continue
            seen.add(record.value)
            note = SignedNote.decode(record.value)
            time = note.cosigned(key_name(manifest, witness), public)
            checkpoint = Checkpoint.parse(note.text)
            place = (checkpoint.origin, checkpoint.size)
            if roots.setdefault(place, checkpoint.root) != checkpoint.root:
                yield f"{topic}@{record.offset}: two histories of {checkpoint.origin} at {checkpoint.size} manifests"
            if time is None or time < last:
                yield f"{topic}@{record.offset}: cosigned at {time}, after {last}"
            last = time or last
