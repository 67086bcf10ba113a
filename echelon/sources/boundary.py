"""A boundary's topics as its own auditor opens them: from a run folder, an export or a broker, without an event loop.

An auditor of a boundary reads `control`, `handshake`, `masked`, `parts`, `delta`, `versions`, `model` and the mirrored
`global`: what its gate reads, and what devices were given. Not `inbox`, nor anything of split training's streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from echelon.actors.taken_records import TakenRecords
from echelon.actors.verified_records import Membership, RecordOpener
from echelon.audit.boundary import TOPICS, BoundaryAudit
from echelon.audit.boundary_facts import ExchangeFacts, Opened, Unopened
from echelon.audit.export import INDEX_FILE
from echelon.audit.heads import GLOBAL
from echelon.audit.incremental import OpenFrom
from echelon.audit.records import CHUNK_BYTES, Damaged, LogRecord
from echelon.audit.trimmed import SNAPSHOTS, TrimmedInputs, first_kept
from echelon.audit.verify import Verifier
from echelon.bus.assembler import Assembler
from echelon.bus.base import Record
from echelon.bus.chunks import ChunkError
from echelon.config.reading import read_file
from echelon.errors import ConfigError, EchelonError
from echelon.laws.rules import Allowed
from echelon.messages.boundary import INPUTS
from echelon.messages.manifest import RunManifest
from echelon.messages.wire import Refused
from echelon.provision.identities import ROSTER_FILE
from echelon.secagg.roster import MAX_ROSTER_BYTES, Roster
from echelon.topics import load_catalogue
from echelon.wiring.context import BoundaryContext, assembler, gate_assembler, members

EXCHANGE_FILE = "exchange.sqlite"


def no_payloads() -> Assembler:
    """For topics whose messages have no payload."""
    least = CHUNK_BYTES
    return Assembler(
        max_open_bytes_per_sender=least, max_open_transfers_per_sender=1, max_open_bytes_total=least
    )


@dataclass(frozen=True)
class BoundaryPlace:
    """Where a boundary's topics and its signed roster are; `source` is one that `audit` opens."""

    source: str
    roster: Path


def places(source: str, roster: Path | None) -> list[BoundaryPlace]:
    """The boundaries that a BOUNDARY_SOURCE stands for: one, or all of a run folder.

    Args:
        source: as on the command line.
        roster: the signed roster; None: it is looked for where `echelon run` and `audit export` put it.

    Raises:
        ConfigError: there is none, and none was given.
    """
    path = Path(source)
    brokers = path / "brokers"
    if "://" not in source and brokers.is_dir():
        files = sorted(file for file in brokers.glob("*.sqlite") if file.name != EXCHANGE_FILE)
        if not files:
            raise ConfigError(f"--boundary {source}: brokers/ holds no boundary")
        if roster is not None and len(files) > 1:
            raise ConfigError(f"--roster: {source} has {len(files)} boundaries; name one, {files[0]}")
        return [BoundaryPlace(str(file), roster or _in_run(file)) for file in files]
    if roster is not None:
        return [BoundaryPlace(source, roster)]
    if "://" not in source and (path / INDEX_FILE).is_file():
        return [BoundaryPlace(source, path / ROSTER_FILE)]
    if "://" not in source and path.suffix == ".sqlite" and _in_run(path).is_file():
        return [BoundaryPlace(source, _in_run(path))]
    raise ConfigError(f"--boundary {source}: give the boundary's signed roster, too, with --roster FILE")


def _in_run(broker: Path) -> Path:
    return broker.parent.parent / "state" / "keys" / broker.stem / ROSTER_FILE


def read_roster(path: Path) -> Roster:
    """A roster from its file; its signature is not checked yet.

    Raises:
        ConfigError: it cannot be read, or is no roster.
    """
    data = read_file(path, "roster", MAX_ROSTER_BYTES)
    try:
        return Roster.decode(data)
    except EchelonError as error:
        raise ConfigError(f"roster {path}: {error}") from error


def opened_records(
    membership: Membership, assembler: Assembler, topic: str, records: Iterable[LogRecord | Damaged]
) -> Iterator[Opened]:
    """The records of one topic as the gate opens them: who said what, with its payload.

    Args:
        membership: who belongs to the boundary.
        assembler: what transfers are put together with.
        topic: its name.
        records: the topic's, in order.
    """
    opener = RecordOpener(membership, load_catalogue(), assembler, repeated=TakenRecords().again)
    for record in records:
        if isinstance(record, Damaged):
            yield Unopened(topic, record.offset, record.detail, damaged=True)
            continue
        stored = Record(
            topic=topic,
            partition=0,
            offset=record.offset,
            key=record.key,
            value=record.value,
            headers=record.headers,
            timestamp_ms=record.timestamp_ms,
        )
        try:
            incoming = opener.open(stored)
        except (Refused, ChunkError) as error:
            yield Unopened(topic, record.offset, str(error))
            continue
        if incoming is not None:
            yield incoming


def audit_boundary(
    *,
    exchange_topics: Iterable[str],
    exchange: OpenFrom,
    boundary_topics: Iterable[str],
    boundary: OpenFrom,
    roster: Roster,
    rules: Allowed,
) -> BoundaryAudit:
    """Derive a boundary's history from its topics, and hold against it what crossed.

    Args:
        exchange_topics: names of the exchange's topics.
        exchange: reads one of them from an offset on.
        boundary_topics: names of the boundary broker's topics.
        boundary: reads one of them from an offset on.
        roster: of the boundary, as the auditor trusts it.
        rules: users' classes that may run here.

    Raises:
        AuditError: the exchange has no genesis, or no such boundary.
        ConfigError: the roster is not the one that the run manifest names.
    """
    exchange_topics, boundary_topics = list(exchange_topics), set(boundary_topics)

    def outside() -> dict[str, Iterable[LogRecord | Damaged]]:
        return {name: exchange(name, 0) for name in exchange_topics}

    facts = ExchangeFacts.read(outside(), roster.boundary)
    try:
        derived = BoundaryContext.derive(facts.manifest, roster)
    except ConfigError:
        raise
    except EchelonError as error:
        raise ConfigError(f"the roster given for {roster.boundary} does not hold: {error}") from error
    versions = Verifier(outside(), allow_open=True, rules=rules).run()
    kept = {name: first_kept(boundary(name, 0)) for name in TOPICS if name in boundary_topics}
    trimmed = TrimmedInputs({name: first for name, (first, _) in kept.items() if first and name in INPUTS})
    opened = {
        name: opened_records(derived.membership, room(facts.manifest, roster, name), name, records)
        for name, (_, records) in kept.items()
        if name != GLOBAL
    }
    strange = [one for one in opened.pop(SNAPSHOTS, iter(())) if not trimmed.took(one)]
    audit = BoundaryAudit(facts, roster, versions, trimmed)
    for item in strange:
        audit.refuse(item)
    for name, (first, _) in kept.items():
        if first and name not in (*INPUTS, SNAPSHOTS):
            audit.begins_late(name, first)
    audit.run(opened, kept[GLOBAL][1] if GLOBAL in kept else ())
    return audit


def room(manifest: RunManifest, roster: Roster, topic: str) -> Assembler:
    """What transfers of one of a boundary's topics are put together with.

    Args:
        manifest: of the run, for the largest transfers.
        roster: of the boundary; everybody on it may send transfers.
        topic: its name.
    """
    dim = manifest.adapter_layout().dim
    if topic == SNAPSHOTS:
        return assembler(manifest, dim, 1, (SNAPSHOTS,))
    return gate_assembler(manifest, dim, roster, "model")


__all__ = [
    "ROSTER_FILE",
    "TOPICS",
    "BoundaryPlace",
    "audit_boundary",
    "members",
    "opened_records",
    "places",
    "read_roster",
]
