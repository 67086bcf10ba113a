"""What must hold of a run as a whole: it ends, nobody fails, and whoever checks it accuses nobody."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from echelon.audit.policy import Policy
from echelon.messages.boundary import (
    DeadLetter,
)
from echelon.messages.exchange import Close, Commit
from echelon.messages.wire import Reason
from echelon.sim.left import RunRecords

HARMLESS = frozenset({Reason.OUT_OF_ORDER, Reason.PROTOCOL})
"""Reasons for which an honest record may be refused: it came too late, or its window was left."""


def no_actor_fails(left: RunRecords) -> Iterator[str]:
    """Faults of links, processes and disks end no actor with an error."""
    yield from left.outcome.failures


def progress(left: RunRecords) -> Iterator[str]:
    """Once faults stop, the run reaches its budget and everybody ends, within the schedule's patience."""
    if not left.outcome.closed and not left.outcome.failures:
        yield f"{left.outcome.seconds:.0f} s, and these have not ended: {left.outcome.stuck}"


def audit_verifies(left: RunRecords) -> Iterator[str]:
    """The independent verifier finds no error on the exchange."""
    for finding in left.report.findings:
        if finding.severity.value == "error":
            yield str(finding)


def adapter_is_the_replay(left: RunRecords) -> Iterator[str]:
    """The controller's last adapter, the one that `close` names and the one derived from the log are the same bits."""
    closes = [message for message in left.exchange["global"] if isinstance(message, Close)]
    if not left.outcome.closed and not closes:
        return
    if len(closes) != 1:
        yield f"the run was closed {len(closes)} times"
        return
    held = hashlib.sha256(np.ascontiguousarray(left.outcome.adapter, "<f4").tobytes()).digest()
    if not held == closes[0].adapter_sha256 == left.report.adapter_sha256:
        yield "the adapter of the controller, of `close` and of the replay are not the same"


def audited_beside_the_run(left: RunRecords) -> Iterator[str]:
    """Whoever audits while the run goes on accuses nobody, and comes to what one verification of everything says."""
    yield from left.outcome.auditor.accused
    topics = {name: list(records) for name, records in left.outcome.topics["exchange"].items()}
    again = replace(left.outcome.auditor)  # what is checked stays as it was
    policy = Policy(0, left.watchers)
    found = again.verify(
        topics, genesis=left.outcome.genesis or None, policy=policy, sightings=left.sightings()
    )
    if found.report != left.report:
        yield f"it says other things than the verification of everything, after {found.began} records verified before"


def bounded_memory(left: RunRecords) -> Iterator[str]:
    """Open transfers never hold more than their bound."""
    for actor, (most, bound) in left.outcome.memory.items():
        if most > bound:
            yield f"{actor} held {most} bytes of open transfers, at most {bound} are allowed"


def nothing_honest_is_refused(left: RunRecords) -> Iterator[str]:
    """In a federation without adversaries no record is refused for what only an adversary would write."""
    for boundary in left.boundaries:
        for letter in left.messages(boundary, "deadletter", DeadLetter):
            if letter.reason not in HARMLESS:
                yield f"{boundary}: {letter.topic}@{letter.offset} as {letter.reason.value}: {letter.detail}"


def learns(left: RunRecords) -> Iterator[str]:
    """With plain averaging, what was merged ends nearer to the optimum than where it began, or not far beyond it."""
    outer = left.outcome.manifest.outer
    commits = sum(isinstance(message, Commit) for message in left.exchange["global"])
    if outer.kind.value != "average" or not left.outcome.closed or commits < 2:
        return
    optimum = left.outcome.optimum
    start = float(np.linalg.norm(left.outcome.initial - optimum))
    end = float(np.linalg.norm(left.outcome.adapter - optimum))
    if not end < 1.5 * start + 0.5:
        yield f"the adapter ended {end:.3g} from the optimum, and began {start:.3g} from it"
