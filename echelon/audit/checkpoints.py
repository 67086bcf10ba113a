"""Checkpoints that an auditor got elsewhere: signed notes over logs, held against the logs as they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echelon.audit.cosigned import Witnessed
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.note import Checkpoint, SignedNote, origin
from echelon.errors import EchelonError
from echelon.messages.manifest import RunManifest

SignedCheckpoint = tuple[SignedNote, Checkpoint]


def given_checkpoints(given: Iterable[bytes], report: Report) -> list[SignedCheckpoint]:
    """Read what was given; what cannot be read is a finding."""
    notes = []
    for data in given:
        try:
            note = SignedNote.decode(data)
            notes.append((note, Checkpoint.parse(note.text)))
        except EchelonError as error:
            detail = f"the checkpoint cannot be read: {error}"
            report.add(Finding(Code.CHECKPOINT, Severity.ERROR, "", None, detail))
    return notes


def check_checkpoints(
    notes: Iterable[SignedCheckpoint],
    manifest: RunManifest,
    marks: Mapping[str, Mapping[int, bytes]],
    witnessed: Witnessed,
    report: Report,
) -> None:
    """Hold each checkpoint against its log, which was read to its end.

    Args:
        notes: the checkpoints.
        manifest: the run's terms.
        marks: of each log, its root at every size.
        witnessed: takes the checkpoints that the log's writer signed.
        report: has the logs' sizes, and takes what is found.
    """

    def contradict(topic: str, detail: str) -> None:
        report.add(Finding(Code.CHECKPOINT, Severity.ERROR, topic, None, detail))

    for note, checkpoint in notes:
        topic = checkpoint.origin.rpartition("/")[2]
        name = origin(manifest.run_id, topic)
        if topic not in witnessed.logs or checkpoint.origin != name:
            contradict(topic, f"the checkpoint is of {checkpoint.origin}, no log of this run")
            continue
        if witnessed.logs[topic].signed(note) is None:
            detail = "the checkpoint is not signed by the log's writer: it shows nothing"
            contradict(topic, detail)
            continue
        witnessed.note(note)
        size = report.topics[topic].manifests
        root = marks.get(topic, {}).get(checkpoint.size)
        if checkpoint.size > size:
            detail = f"the checkpoint is over {checkpoint.size} manifests, here are {size}: cut off"
            contradict(topic, detail)
        elif checkpoint.size and root != checkpoint.root:
            detail = f"the first {checkpoint.size} manifests have another root than the checkpoint"
            contradict(topic, detail)
        elif checkpoint.size < size:
            detail = f"the checkpoint is over {checkpoint.size} of {size} manifests, not the rest"
            report.add(Finding(Code.STALE, Severity.WARNING, topic, None, detail))
