"""What a simulated run leaves: every record, what its devices know, and what went wrong."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field

import msgpack
import numpy as np
from numpy.typing import NDArray

from echelon.bus.base import Outgoing, Record
from echelon.config.run import RunSettings
from echelon.messages.manifest import RunManifest
from echelon.sim.auditor import Auditor
from echelon.sim.coverage import Coverage
from echelon.sim.schedule import Schedule


@dataclass(frozen=True, slots=True)
class MaskedUpload:
    """A masked upload as its device made it: what is under the mask."""

    device: str
    window: int
    offer: int
    update: NDArray[np.float32]
    """The whole offered update, float32[d]."""
    scaled: NDArray[np.float64]
    """Clipped and times w/W: what the masked integers stand for, float64[d]."""
    memory: int = 0
    """How often its device had lost its state file: one that did may train the same data again."""
    evaluated: bool = False
    """Whether an evaluation's loss is under the mask, too."""
    edge: str = ""
    """Which edge holds the middle of the update; empty: there is none."""
    jobs: tuple[int, ...] = ()
    """The training jobs behind it."""
    middle: NDArray[np.float32] | None = None
    """Where the middle moved, float32[d]. None: there is none, or some of it is unknown."""
    share: float = 0.0
    """w/W."""
    derived: int = 0
    """Records that stood on the boundary's `versions` when it was made."""


@dataclass(frozen=True, slots=True)
class Started:
    """A training job as it began: on which version of its boundary's adapter.

    Attributes:
        boundary, device: whose.
        version: the version's number.
        sha256: of the adapter that the device held for it.
        derived: records that stood on the boundary's `versions` then.
    """

    boundary: str
    device: str
    version: int
    sha256: bytes
    derived: int


@dataclass(repr=False)
class SimOutcome:
    """What a run left: every record, what its devices know, and what went wrong beyond the records.

    Attributes:
        schedule: of the run.
        settings: its run file.
        manifest: its signed terms.
        topics: records by broker and topic.
        arrivals: topic and offset of the exchange's records, in the order in which they came.
        uploads: by SHA-256 of the masked bytes.
        started: every training job.
        auditor: the one beside the run.
        secrets: device-level bytes: weights, updates (float32, little-endian), marks in optimiser states.
        failures: actors that ended with an error, and what else could not go on.
        closed: whether every actor ended in order.
        seconds: virtual seconds that it took.
        adapter: the controller's last, float32[d].
        memory: most bytes of open transfers by actor, and most that it may hold.
        coverage: the states that it was in.
    """

    schedule: Schedule
    settings: RunSettings
    manifest: RunManifest
    genesis: bytes = b""
    topics: dict[str, dict[str, list[Record]]] = field(default_factory=dict)
    arrivals: list[tuple[str, int]] = field(default_factory=list)
    uploads: dict[bytes, MaskedUpload] = field(default_factory=dict)
    started: list[Started] = field(default_factory=list)
    auditor: Auditor = field(default_factory=Auditor)
    secrets: list[bytes] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    closed: bool = False
    stuck: str = ""
    seconds: float = 0.0
    adapter: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    initial: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    optimum: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0, np.float64))
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)
    coverage: Coverage = field(default_factory=Coverage)

    def digest(self) -> str:
        """SHA-256 over every record (without the advisory wall-clock times) and the time that the run took."""
        found = hashlib.sha256(repr(self.seconds).encode())
        for broker, topics in sorted(self.topics.items()):
            for topic, records in sorted(topics.items()):
                for record in records:
                    place = (broker, topic, record.partition, record.offset, record.headers)
                    found.update(repr(place).encode() + record.key + record.value)
        return found.hexdigest()


def kind_of(record: Outgoing | Record) -> str:
    """The kind of message that a record carries; "chunk" for a part of a payload."""
    for name, value in record.headers:
        if name == "kind":
            return value.decode(errors="replace")
    fields = msgpack.unpackb(record.value)
    return str(fields["type"]) if isinstance(fields, dict) else ""


def counts(outcome: SimOutcome) -> Counter[str]:
    """Records by kind over all brokers: a first look at what a run did."""
    return Counter(
        kind_of(record)
        for topics in outcome.topics.values()
        for records in topics.values()
        for record in records
    )
