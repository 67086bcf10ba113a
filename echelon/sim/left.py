"""What a simulated run left, decoded once for all that is to hold of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from echelon.audit.findings import Report
from echelon.audit.heads import logs_of, watched_by
from echelon.audit.interlock import Sighting
from echelon.audit.policy import Policy
from echelon.audit.records import read_manifest
from echelon.audit.verify import verify
from echelon.bus.base import Record
from echelon.bus.chunks import is_chunk
from echelon.messages.adapter import F64, rank_rows
from echelon.messages.boundary import BOUNDARY, Cohort, Window
from echelon.messages.envelope import Envelope
from echelon.messages.exchange import Close
from echelon.messages.handshake import Included
from echelon.messages.split import EdgePart
from echelon.messages.wire import Message
from echelon.sim.auditor import sightings
from echelon.sim.outcome import MaskedUpload, SimOutcome

M = TypeVar("M", bound=Message)


@dataclass(frozen=True, slots=True)
class DecodedRecord:
    """One record of a boundary topic, decoded; the first copy of it."""

    record: Record
    sender: str
    message: Message
    body: bytes


@dataclass
class RunRecords:
    """What a run left, decoded once for all invariants."""

    outcome: SimOutcome
    _said: dict[tuple[str, str], list[DecodedRecord]] = field(default_factory=dict)

    @property
    def boundaries(self) -> list[str]:
        """Their names, in the order of the run manifest."""
        return [terms.name for terms in self.outcome.manifest.boundaries]

    def said(self, boundary: str, topic: str) -> list[DecodedRecord]:
        """The records of a boundary topic, each distinct one once, in order."""
        key = (boundary, topic)
        if key not in self._said:
            decoded: dict[bytes, DecodedRecord] = {}
            for record in self.outcome.topics[boundary][topic]:
                if is_chunk(record) or record.value in decoded:
                    continue
                envelope = Envelope.open(record.value)
                message = BOUNDARY.find(envelope.type, envelope.type_version).decode(envelope.body)
                decoded[record.value] = DecodedRecord(record, envelope.sender, message, envelope.body)
            self._said[key] = list(decoded.values())
        return self._said[key]

    def messages(self, boundary: str, topic: str, kind: type[M]) -> list[M]:
        """Those of one kind.

        Args:
            boundary: name of the boundary.
            topic: where they stand.
            kind: class of the message.
        """
        return [one.message for one in self.said(boundary, topic) if isinstance(one.message, kind)]

    @cached_property
    def exchange(self) -> dict[str, list[Message]]:
        """The manifests of every log of the exchange, each distinct one once, in order."""
        messages = {}
        for topic in logs_of(self.outcome.manifest):
            records = self.outcome.topics["exchange"][topic]
            distinct = {record.value: record for record in records if not is_chunk(record)}
            messages[topic] = [read_manifest(record)[1] for record in distinct.values()]
        return messages

    @cached_property
    def report(self) -> Report:
        """What the auditor says."""
        topics = {name: list(records) for name, records in self.outcome.topics["exchange"].items()}
        return verify(
            topics,
            genesis=self.outcome.genesis or None,
            policy=Policy(0, self.watchers),
            sightings=self.sightings(),
        )

    @cached_property
    def watchers(self) -> dict[str, int]:
        """Of each log: how many witnesses should have cosigned it to its end."""
        manifest = self.outcome.manifest
        watched = Counter(
            log.topic for witness in manifest.witnesses for log in watched_by(manifest, witness.name)
        )
        return {topic: watched[topic] for topic in logs_of(manifest)}

    def sightings(self) -> Iterator[Sighting]:
        """See `echelon.sim.auditor.sightings`."""
        return sightings(self.outcome.topics["exchange"], self.outcome.arrivals)

    def payloads(self, broker: str, topic: str) -> dict[bytes, bytes]:
        """Payloads of one chunk each, by SHA-256: those of a simulation are that small."""
        return {
            hashlib.sha256(record.value).digest(): record.value
            for record in self.outcome.topics[broker][topic]
            if is_chunk(record)
        }


def is_closing(left: RunRecords) -> bool:
    """Whether the run was closed, after which nothing more need be sent."""
    return any(isinstance(message, Close) for message in left.exchange["global"])


def ranks_of(left: RunRecords) -> dict[str, int]:
    """The rank of each device, as the run file says; the adapter's where it says none."""
    full = left.outcome.settings.adapter.rank
    boundaries = left.outcome.settings.boundaries
    return {one.id: one.rank or full for boundary in boundaries for one in boundary.device_list()}


def sums_of(left: RunRecords, boundary: str) -> Iterator[tuple[Window, int | F64, list[MaskedUpload | str]]]:
    """Each window with a sum, Σn, and its included uploads; a name for one that the device did not make.

    Where devices have different ranks, Σn is float64[d]: of each coordinate over those who train it, at least 1.
    """
    manifest, rows, ranks = left.outcome.manifest, None, ranks_of(left)
    if manifest.rank_blocks:
        rows = rank_rows(manifest.adapter_layout(), manifest.rank_blocks[-1])
    cohorts = {cohort.window: cohort for cohort in left.messages(boundary, "control", Cohort)}
    included = {one.window: one for one in left.messages(boundary, "control", Included)}
    for window in left.messages(boundary, "control", Window):
        uploads: list[MaskedUpload | str] = []
        entries = included[window.window].entries if window.window in included else ()
        for entry in entries:
            upload = left.outcome.uploads.get(entry.upload_sha256)
            known = upload is not None and (upload.device, upload.window) == (entry.device, window.window)
            uploads.append(upload if upload is not None and known else entry.device)
        n = {member.device: member.n for member in cohorts[window.window].members}
        if rows is None:
            yield window, sum(n[entry.device] for entry in entries), uploads
            continue
        trained = sum((rows < ranks[entry.device]) * float(n[entry.device]) for entry in entries)
        yield window, np.maximum(trained, 1.0), uploads


def parts_of(left: RunRecords, boundary: str, window: Window) -> Iterator[tuple[str, EdgePart, F64]]:
    """The parts that a window record names, with their values, float64[d] in units of w/W·Δ.

    Args:
        left: the records of a run.
        boundary: name of the boundary.
        window: the window's record.
    """
    scale = 2.0**-left.outcome.manifest.secure.scale_bits
    payloads = left.payloads(boundary, "parts") if window.parts else {}
    for ref in window.parts:
        for one in left.said(boundary, "parts"):
            part = one.message
            named = (window.window, ref.edge, ref.sha256)  # parts of two windows may be the same: all zeros
            if isinstance(part, EdgePart) and (part.window, one.sender, part.payload.sha256) == named:
                yield ref.edge, part, np.frombuffer(payloads[ref.sha256], "<i4") * scale


def moved_by(left: RunRecords, boundary: str, window: Window, uploads: list[MaskedUpload | str]) -> F64:
    """What a window's uploads and parts add up to, float64[d] in units of w/W·Δ.

    Args:
        left: the records of a run.
        boundary: name of the boundary.
        window: the window's record.
        uploads: of the included devices; a name stands for a device that never made the upload.
    """
    total = np.zeros(left.outcome.initial.size)
    for upload in uploads:
        if not isinstance(upload, str):
            total += upload.scaled
    for _, _, part in parts_of(left, boundary, window):
        total += part
    return total
