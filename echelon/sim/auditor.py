"""An auditor beside a simulated run: it verifies what is new whenever `global` has grown, as `--incremental` does.

What it keeps between two looks is the bytes of a state file. An honest run must never look guilty, at whatever moment
somebody looks; and what the looks come to must be what one verification of everything says
(`echelon.sim.invariants`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from echelon.audit.findings import Severity
from echelon.audit.heads import GLOBAL
from echelon.audit.incremental import IncrementalOutcome, verify_new
from echelon.audit.interlock import Sighting
from echelon.audit.progress import AuditProgress
from echelon.bus.base import Record
from echelon.bus.chunks import is_chunk

Topics = Mapping[str, Sequence[Record]]
READER = "simulated"
GROWN = 4
"""Records of `global` after which it looks again: some two commits."""


def sightings(topics: Topics, arrivals: Sequence[tuple[str, int]]) -> Iterator[Sighting]:
    """What a witness has seen by now that looks whenever something comes.

    Args:
        topics: the exchange's records.
        arrivals: topic and offset of each, in the order in which they came.
    """
    sizes = dict.fromkeys(topics, 0)
    taken: set[bytes] = set()
    total = len({record.value for record in topics[GLOBAL] if not is_chunk(record)})
    for topic, offset in arrivals:
        record = topics[topic][offset]
        if is_chunk(record) or record.value in taken:
            continue
        taken.add(record.value)
        sizes[topic] += 1
        if topic != GLOBAL:
            yield Sighting("simulation", topic, sizes[topic] - 1, before=total, after=sizes[GLOBAL])
            yield Sighting("simulation", topic, sizes[topic], before=sizes[GLOBAL])


@dataclass
class Auditor:
    """What an auditor keeps, and what it said.

    Attributes:
        state: the bytes of its state file; None: it has none yet.
        looks: how often it looked.
        resumed: how often it went on from its state.
        accused: errors that it found while the run went on.
    """

    state: bytes | None = None
    looks: int = 0
    resumed: int = 0
    accused: list[str] = field(default_factory=list)
    _size: int = 0

    def look(self, topics: Topics, arrivals: Sequence[tuple[str, int]]) -> None:
        """Verify what is new, if that is enough."""
        size = len(topics[GLOBAL])
        if size < self._size + GROWN:
            return
        self._size = size
        outcome = self.verify(topics, allow_open=True, sightings=sightings(topics, arrivals))
        self.looks += 1
        self.resumed += outcome.began > 0
        for finding in outcome.report.findings:
            if finding.severity is Severity.ERROR:
                self.accused.append(f"at {size} records of {GLOBAL}: {finding}")

    def verify(self, topics: Topics, **options: Any) -> IncrementalOutcome:
        """Verify from where the state ends; what is to be kept of it becomes the state."""
        progress = None if self.state is None else AuditProgress.decode(self.state, reader=READER)

        def open_from(topic: str, offset: int) -> Iterator[Record]:
            return iter(topics[topic][offset:])

        outcome = verify_new(list(topics), open_from, progress, reader=READER, **options)
        if outcome.progress is not None:
            self.state = outcome.progress.encode()
        return outcome
