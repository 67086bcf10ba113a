"""One cause, one finding: what only follows from a log that was cut, or made anew, is counted and not listed.

Without its first records a log proves nothing of the rest, so each later record would be a finding of its own.
"""

from __future__ import annotations

from dataclasses import replace

from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.heads import DELTA_PREFIX, GLOBAL, HEAD_PREFIX, WITNESS_PREFIX
from echelon.audit.log import FaultCode, Step
from echelon.audit.records import Damaged

FOLLOW_ON_GLOBAL = frozenset(
    {Code.HEADS, Code.DERIVATION, Code.REFUSAL, Code.CLOSE, Code.INTERLOCK, Code.WITHHELD, Code.MEASURED}
)
"""What `global` says of a delta log that is not whole: none of it can be derived again."""
CAUSES = frozenset({Code.UNREADABLE, Code.GENESIS, Code.MISSING, Code.GAP})
"""What is said of the log itself."""
FOLLOW_ANYWHERE = frozenset({Code.ADAPTER_FILE, Code.COSIGNATURES})
EVIDENCE = frozenset({Code.CHECKPOINT, Code.FORK, Code.UNEXPECTED_PARTITION, Code.UNEXPECTED_FILE})
"""What others have signed, or what has nothing to do with the log; listed in any case."""
OF_ONE_RECORD = frozenset(
    {
        Code.MALFORMED,
        Code.OVERSIZED,
        Code.CORRUPT_CHUNK,
        Code.WRONG_TYPE,
        Code.WRONG_RUN,
        Code.BAD_SIGNATURE,
    }
)
"""What a record of a delta log shows by itself, whatever stood before it: genesis has the key."""


class CutLogs:
    """Logs that are not whole: what else is found of them follows from that."""

    def __init__(self) -> None:
        self._topics: set[str] = set()

    def damaged(self, record: Damaged) -> None:
        """Something stands where a record should be; perhaps for all that a topic had before."""
        if record.cut:
            self._topics.add(record.topic)

    def began(self, report: Report, topic: str, step: Step) -> None:
        """Take a record of a log; one before its first manifest, or that manifest, may show that others are missing.

        Args:
            report: what was found so far.
            topic: of the log.
            step: what its record turned out to be: something else than genesis, or a later delta than the first.
        """
        if report.topics[topic].manifests:
            return
        wrong = FaultCode.WRONG_TYPE if topic == GLOBAL else FaultCode.GAP
        if any(fault.code is wrong for fault in step.faults):
            self.short(report, topic)

    def short(self, report: Report, topic: str) -> None:
        """A log lacks records; that is a cause where all that was read of it so far is in order."""
        if topic not in (one.topic for one in report.findings if one.severity is Severity.ERROR):
            self._topics.add(topic)

    def name_causes(self, report: Report) -> None:
        """Leave one error for each log that is not whole, with the number of those that follow from it.

        Args:
            report: complete; changed in place. Its verdict stays, since the first error of each log stays.
        """
        if not report.topics[GLOBAL].records:
            self._topics.add(GLOBAL)
        for topic in sorted(self._topics, key=lambda name: name != GLOBAL):
            _name_cause(report, topic)


def _name_cause(report: Report, topic: str) -> None:
    follows = _of_global if topic == GLOBAL else _of_delta
    errors = [one for one in report.findings if one.severity is Severity.ERROR]
    suspects = [one for one in errors if one.code not in EVIDENCE and follows(one, topic)]
    cause = next((one for one in suspects if one.topic == topic and one.code in CAUSES), None)
    if cause is None or len(suspects) < 2:
        return
    # Without genesis the errors beyond the report's limit are of the same kind.
    beyond = report.errors - len(errors) if topic == GLOBAL else 0
    count = len(suspects) - 1 + beyond
    report.errors -= count
    report.left_out -= beyond
    told = replace(
        cause, detail=f"{cause.detail}. {count} more findings follow from this one and are not listed"
    )
    dropped = {id(one) for one in suspects if one is not cause}
    report.findings[:] = [told if one is cause else one for one in report.findings if id(one) not in dropped]


def _of_global(one: Finding, _topic: str) -> bool:
    """Without genesis nobody knows any key, nor which topics the run has."""
    return one.topic in (GLOBAL, "") or one.topic.startswith((DELTA_PREFIX, HEAD_PREFIX, WITNESS_PREFIX))


def _of_delta(one: Finding, topic: str) -> bool:
    if one.topic in (topic, HEAD_PREFIX + topic) or one.code in FOLLOW_ANYWHERE:
        return one.code not in OF_ONE_RECORD
    return one.topic == GLOBAL and one.code in FOLLOW_ON_GLOBAL
