"""Refusals that follow from the delta logs, each of which `global` must name."""

from __future__ import annotations

from collections.abc import Iterator

from echelon.audit.findings import Severity
from echelon.messages.exchange import Refusal, RefusalReason

NO_ENTRY = {RefusalReason.BAD_SIGNATURE, RefusalReason.BAD_SEQUENCE, RefusalReason.FORK}
"""Refusals of what is no entry of its log, whose number therefore says nothing; the offset does."""


class OwedRefusals:
    """The refusals that were derived, and that no record of `global` has named yet.

    Attributes:
        owed: of a delta, by boundary and number: its offset, and the reason.
        faulty: records that are no entry of their log, by boundary and offset.
    """

    def __init__(self) -> None:
        self.owed: dict[tuple[int, int], tuple[int, RefusalReason]] = {}
        self.faulty: set[tuple[int, int]] = set()

    def settle(self, refusal: Refusal, topic: str) -> Iterator[tuple[Severity, str]]:
        """Take what `global` refuses off what is owed; gives what is wrong with it, in words.

        Args:
            refusal: what `global` has.
            topic: the delta's log.
        """
        owed = self.owed.pop((refusal.boundary, refusal.seq), None)
        if owed is None and (refusal.boundary, refusal.offset) in self.faulty and refusal.reason in NO_ENTRY:
            owed = (refusal.offset, refusal.reason)  # its log's own finding stands already
        if owed is None or owed[1] is not refusal.reason:
            derived = "no refusal" if owed is None else owed[1].value
            yield (
                Severity.ERROR,
                f"it refuses delta {refusal.seq} of {topic} as {refusal.reason.value}; derived from the log: {derived}",
            )
        elif owed[0] != refusal.offset:
            # Offsets are a broker's; a copy may number anew. Which delta is meant follows from its number.
            yield (
                Severity.WARNING,
                f"it says that delta {refusal.seq} stands at {topic}@{refusal.offset}; here it is at {owed[0]}",
            )
