"""What may be trimmed from a boundary's broker by its run's signed terms, found without deleting anything.

Inputs of windows may go up to a snapshot of the gate, once as many windows as the run keeps are final behind it. Of the
snapshots, those before that one may go, too. Nothing else is trimmed while a run is open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from echelon.actors.kept_logs import first_of
from echelon.actors.runtime import read_to_end
from echelon.actors.snapshots import SNAPSHOTS, snapshot_opener
from echelon.bus import Bus, TopicPartition
from echelon.bus.chunks import ChunkError
from echelon.config.reading import read_file
from echelon.errors import ConfigError, EchelonError
from echelon.laws.retention import input_offsets, newest_allowed
from echelon.messages.boundary import Snapshot
from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest
from echelon.messages.wire import Refused
from echelon.secagg.roster import MAX_ROSTER_BYTES, Roster
from echelon.wiring.context import BoundaryContext, manifest_digest

NAME = "topics trim"


@dataclass(frozen=True, slots=True)
class TrimRange:
    """Records of one partition that may go: offsets from `first` to before `before`, and their bytes."""

    at: TopicPartition
    first: int
    before: int
    records: int
    bytes: int


@dataclass(frozen=True, slots=True)
class TrimPlan:
    """What may go from one boundary's broker.

    Attributes:
        boundary: its name.
        kept_windows: how many final windows keep their inputs, by the signed terms.
        snapshot: up to which inputs may go; None: none stands that is old enough.
        cuts: what may go, inputs first; partitions that nothing may go from are left out.
    """

    boundary: str
    kept_windows: int
    snapshot: Snapshot | None
    cuts: tuple[TrimRange, ...]


def signed_terms(manifest: Path, roster: Path, pinned: str | None = None) -> tuple[RunManifest, Roster]:
    """A run's manifest and a boundary's roster from their files.

    Args:
        manifest: the signed run manifest.
        roster: the boundary's signed roster; it is checked against the manifest when something is planned.
        pinned: SHA-256 that the manifest must have, in hexadecimal; None: any.

    Raises:
        ConfigError: a file cannot be read, or is not what it should be.
    """
    sealed = read_file(manifest, "run manifest", 2 * MAX_MANIFEST_BYTES)
    if pinned is not None and manifest_digest(sealed).hex() != pinned:
        raise ConfigError(
            f"run manifest {manifest} is not the one that manifest_sha256 pins: name the run's own"
        )
    enrolled = read_file(roster, "roster", MAX_ROSTER_BYTES)
    try:
        return RunManifest.open(sealed), Roster.decode(enrolled)
    except EchelonError as error:
        raise ConfigError(f"run manifest {manifest} or roster {roster}: {error}") from error


async def plan(bus: Bus, manifest: RunManifest, roster: Roster) -> TrimPlan:
    """Find what may be trimmed from a boundary's broker.

    Args:
        bus: the broker, for somebody who may read `snapshots` and inputs of windows.
        manifest: the run's signed terms.
        roster: of the boundary.

    Raises:
        ConfigError: the terms keep all windows, or the roster is not the manifest's.
        BusError: the broker does not answer, or a topic cannot be read.
    """
    if manifest.kept_windows is None:
        raise ConfigError(
            "this run keeps the inputs of all windows, and its signed terms cannot change: set retention.windows in "
            "the run file of the next run"
        )
    context = BoundaryContext.derive(manifest, roster)
    opener = snapshot_opener(manifest, context.membership, context.catalogue)
    found: list[Snapshot] = []
    begins: list[int] = []
    if SNAPSHOTS.topic in await bus.topics():
        start = await first_of(bus, SNAPSHOTS, NAME)
        async for record in read_to_end(bus, SNAPSHOTS, start, NAME):
            try:
                incoming = opener.open(record)
            except (Refused, ChunkError):
                continue  # no snapshot of the gate: nobody goes on from it, and nothing is trimmed up to it
            if incoming is not None and isinstance(incoming.message, Snapshot):
                found.append(incoming.message)
                begins.append(start)
                start = record.next_offset
    due = max((one.window for one in found), default=0)  # all windows before it are final; more may be
    snapshot = newest_allowed(found, manifest.kept_windows, due)
    if snapshot is None:
        return TrimPlan(roster.boundary, manifest.kept_windows, None, ())
    wanted = [(TopicPartition(topic), before) for topic, before in input_offsets(snapshot).items()]
    wanted.append((SNAPSHOTS, begins[found.index(snapshot)]))
    cuts = [await _cut(bus, at, before) for at, before in wanted]
    return TrimPlan(
        roster.boundary, manifest.kept_windows, snapshot, tuple(cut for cut in cuts if cut.records)
    )


async def _cut(bus: Bus, at: TopicPartition, before: int) -> TrimRange:
    """The records of a partition before an offset, counted."""
    first, records, size = await first_of(bus, at, NAME), 0, 0
    if first < before:
        async for record in read_to_end(bus, at, first, NAME):
            if record.offset >= before:
                break
            records, size = records + 1, size + record.size
    return TrimRange(at, first, before, records, size)


async def trim(bus: Bus, cuts: Iterable[TrimRange]) -> None:
    """Delete what was planned from a log in one file; inputs first, so that what is left can always be gone on from.

    Raises:
        BusError: the log cannot be written.
    """
    for cut in cuts:
        await bus.trim(cut.at, cut.before)
