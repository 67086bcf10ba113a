"""`echelon audit export`: copy an exchange or a boundary into a folder, or prove a commit."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console

from echelon.audit.export import (
    INDEX_FILE,
    ExportedTopic,
    encode_index,
    encode_topic,
    topic_file,
)
from echelon.audit.findings import Code
from echelon.audit.proofs import commit_proof
from echelon.audit.records import Damaged, LogRecord
from echelon.cli.audit_options import (
    CheckpointOption,
    RosterOption,
    SecurityOption,
    SourceArgument,
    guarded,
    notes_of,
)
from echelon.cli.audit_output import write_folder
from echelon.cli.output import prose
from echelon.errors import AuditError, ConfigError
from echelon.sources.exchange import Records, opened
from echelon.topics import load_catalogue
from echelon.units import size


def export_command(
    source: SourceArgument,
    folder: Annotated[
        Path | None, typer.Argument(help="New folder for the exported topics; the same as --out.")
    ] = None,
    security: SecurityOption = None,
    out: Annotated[Path | None, typer.Option(help="New folder to write to.", metavar="DIR")] = None,
    proof: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Write proofs of this commit instead (0: genesis), which are checked without this program.",
            metavar="COMMIT",
        ),
    ] = None,
    checkpoint: CheckpointOption = None,
    boundary: Annotated[
        bool,
        typer.Option(
            "--boundary",
            help="SOURCE is a boundary's: copy the topics that its own auditor reads, and its signed roster.",
        ),
    ] = False,
    roster: RosterOption = None,
) -> None:
    """Copy every topic into a folder that `verify`, `replay` and `report` read without a broker, or prove a commit."""

    def action() -> int:
        target = _target(folder, out)
        if proof is not None and boundary:
            raise ConfigError(
                "--proof is about the exchange, and --boundary about a boundary: give one of them"
            )
        if proof is not None:
            said = _write_proof(target, source, security, commit=proof, checkpoints=checkpoint)
        elif checkpoint:
            raise ConfigError("--checkpoint goes with --proof: a copy of the topics needs none")
        elif roster is not None and not boundary:
            raise ConfigError("--roster goes with --boundary: the exchange has none")
        else:
            whose = _boundary_of(source, roster) if boundary else _Exported(source)
            said = _write_topics(target, source, whose, security)
        prose(Console(), said)
        return 0

    guarded(action)


@dataclass(frozen=True, slots=True)
class _Exported:
    """What is copied.

    Attributes:
        place: from where.
        topics: which topics; None: all.
        files: by name, what stands beside the topics.
    """

    place: str
    topics: Collection[str] | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)


def _boundary_of(source: str, roster: Path | None) -> _Exported:
    """A boundary's topics, and its signed roster."""
    from echelon.sources import boundary as boundary_source

    (place, *others) = boundary_source.places(source, roster)
    if others:
        raise ConfigError(f"{source} has {1 + len(others)} boundaries; name one, {place.source}")
    signed = boundary_source.read_roster(place.roster).encode()
    return _Exported(place.source, boundary_source.TOPICS, {boundary_source.ROSTER_FILE: signed})


def _write_proof(
    target: Path, source: str, security: Path | None, *, commit: int, checkpoints: list[Path] | None
) -> str:
    """Write the proofs of a commit, and say so."""
    with opened(source, security) as found:
        notes = notes_of([*(checkpoints or ()), *found.checkpoints])
        files = commit_proof(found.topics, commit, notes)
    write_folder(target, files)
    return f"{len(files)} files that prove commit {commit} written to {target}"


def _write_topics(target: Path, source: str, exported: _Exported, security: Path | None) -> str:
    """Copy topics, and say so."""
    kept, lines = exported.topics, []
    with opened(exported.place, security) as found:
        for finding in found.findings:
            about = kept is None or finding.topic in (*kept, "")
            if about and finding.code is not Code.UNEXPECTED_FILE:
                # An export that leaves it out would look like a sound log.
                raise AuditError(f"{source} cannot be exported: {finding.detail}")
        try:
            target.mkdir(parents=True, exist_ok=True)
            for name, data in exported.files.items():
                (target / name).write_bytes(data)
            for topic, records in sorted(found.topics.items()):
                if kept is not None and topic not in kept:
                    continue
                with (target / topic_file(topic)).open("wb") as stream:
                    lines.append(_export(topic, records, stream))
            (target / INDEX_FILE).write_bytes(encode_index(lines))
        except OSError as error:
            raise ConfigError(
                f"{target}: cannot be written ({error.strerror}); name another folder"
            ) from error
    total = sum(line.bytes for line in lines)
    count = sum(line.records for line in lines)
    return f"{len(lines)} topics, {count} records, {size(total)} written to {target}"


def _target(folder: Path | None, out: Path | None) -> Path:
    """The one new folder that was named."""
    if folder is not None and out is not None:
        raise ConfigError(f"{folder} and --out {out} are two folders to write to: name one")
    target = folder if folder is not None else out
    if target is None:
        raise ConfigError("name a new folder to write to, with --out DIR")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target}: exists and is not empty; name a new folder")
    return target


def _export(topic: str, records: Records, stream: BinaryIO) -> ExportedTopic:
    count = size = 0

    def sound() -> Iterator[LogRecord]:
        nonlocal count
        for record in records:
            if isinstance(record, Damaged) and record.cut and topic in load_catalogue().boundary.trimmable:
                continue  # the next record's offset says so, and the audit whether it was allowed
            if isinstance(record, Damaged):
                # An export that leaves it out would look like a sound log with a record missing.
                raise AuditError(f"{topic}@{record.offset} cannot be exported: {record.detail}")
            count += 1
            yield record

    for piece in encode_topic(sound()):
        size += stream.write(piece)
    return ExportedTopic(topic, topic_file(topic), count, size)
