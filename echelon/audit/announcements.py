"""Announced heads and witnesses' cosignatures, as they stand on the exchange."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from echelon.audit.cosigned import Witnessed
from echelon.audit.findings import Code, Finding, Report, Severity, TopicFacts
from echelon.audit.heads import HEAD_PREFIX, WITNESS_PREFIX
from echelon.audit.note import MAX_NOTE_BYTES
from echelon.audit.records import Damaged, LogRecord

Announced = dict[str, list[LogRecord | Damaged]]
"""The records of each topic of heads or cosignatures."""


def take_announcements(topics: dict[str, Iterable[LogRecord | Damaged]]) -> Announced:
    """Read heads and cosignatures, and take their topics out of `topics`.

    This comes before the logs are read: of a live run, the logs then have all that is announced.
    """
    found: Announced = {}
    for topic in [name for name in topics if name.startswith((HEAD_PREFIX, WITNESS_PREFIX))]:
        kept = found[topic] = []
        for record in topics.pop(topic):
            if not isinstance(record, Damaged) and len(record.value) > MAX_NOTE_BYTES:
                detail = f"{len(record.value)} bytes; neither a head nor a cosigned checkpoint is that long"
                record = Damaged(topic, record.offset, detail)  # and is not kept in memory
            kept.append(record)
    return found


def note_announcements(announced: Announced, witnessed: Witnessed, report: Report) -> None:
    """Hand the records to `witnessed`, and count them.

    Args:
        announced: the records.
        witnessed: the heads and cosignatures of the run.
        report: takes counts, and topics that the run does not have.
    """
    for topic, records in announced.items():
        if not witnessed.expects(topic):
            detail = "no topic of this run: nothing may be written there"
            offset = records[0].offset if records else None
            report.add(Finding(Code.UNEXPECTED_TOPIC, Severity.ERROR, topic, offset, detail))
            continue
        facts = report.topics.setdefault(topic, TopicFacts())
        for record in records:
            facts.records += 1
            if not isinstance(record, Damaged):
                facts.size += len(record.key) + len(record.value)
                facts.size += sum(len(name) + len(value) for name, value in record.headers)
            witnessed.read(topic, record)


def report_unexpected(
    topics: Mapping[str, Iterable[LogRecord | Damaged]], report: Report, *, known: bool
) -> None:
    """Say which topics are none of the run's.

    Args:
        topics: those that nobody has read.
        report: takes what is found.
        known: whether the run's terms are known; if not, an empty topic says nothing.
    """
    for topic, records in topics.items():
        record = next(iter(records), None)
        if record is not None:
            detail = "no topic of this run: nothing may be written there"
            report.add(Finding(Code.UNEXPECTED_TOPIC, Severity.ERROR, topic, record.offset, detail))
        elif known:
            detail = "no topic of this run, and empty: look who made it, and remove it"
            report.add(Finding(Code.UNEXPECTED_TOPIC, Severity.ERROR, topic, None, detail))
