"""`echelon audit`: check an exchange, derive its adapters again, export it, and read about it.

SOURCE is a run folder, a folder made by `audit export`, an .sqlite file, the URL of a broker, or a .yaml file that
names a broker and how to reach it. Nothing is ever written to it. Exit codes: 0 good, 1 a finding, 2 wrong usage.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echelon import __version__
from echelon.audit.boundary import BoundaryFacts
from echelon.audit.export import (
    INDEX_FILE,
    ExportedTopic,
    encode_index,
    encode_topic,
    topic_file,
)
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.policy import MAX_POLICY_BYTES, Policy
from echelon.audit.proofs import commit_proof
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.replay import replay
from echelon.audit.sarif import as_sarif
from echelon.audit.verify import Verifier, Version
from echelon.cli import parents
from echelon.cli.audit_boundary import boundary_plain, print_boundaries
from echelon.cli.audit_state import StateFile, write_file
from echelon.cli.source import Records, opened
from echelon.config.reading import load_yaml, read_file
from echelon.errors import AuditError, ConfigError, EchelonError
from echelon.messages.manifest import PaceKind
from echelon.outer.custom import Allowed

app = typer.Typer(
    name="audit", no_args_is_help=True, help="Check an exchange offline: every claim, from its topics alone."
)

MAX_NOTE_BYTES = 1 << 20
"""Largest file of a checkpoint."""
SHOWN = 50
"""Findings that a terminal shows; --json has all that the report keeps."""

# ---- commands ----------------------------------------

SourceArgument = Annotated[
    str, typer.Argument(help="Run folder, exported folder, .sqlite file, broker URL or broker .yaml file.")
]
SecurityOption = Annotated[
    Path | None,
    typer.Option(help="Broker .yaml file whose `security` block goes with a broker URL.", metavar="FILE"),
]
GenesisOption = Annotated[
    str | None, typer.Option(help="Pinned SHA-256 of the genesis record's envelope, 64 hex digits.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]
CheckpointOption = Annotated[
    list[Path] | None, typer.Option("--checkpoint", help="A signed checkpoint of a log; may be repeated.")
]
PolicyOption = Annotated[
    Path | None,
    typer.Option(
        "--policy", help="YAML file that says how many witnesses must have cosigned each log.", metavar="FILE"
    ),
]
AllowOpenOption = Annotated[
    bool, typer.Option("--allow-open", help="A run without a close record is no failure.")
]


RuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rule",
        help="Allow a rule of the run's own, package.module:Class, to run here; may be repeated. Its source must have "
        "the SHA-256 that the run was started with.",
        metavar="NAME",
    ),
]


IncrementalOption = Annotated[
    Path | None,
    typer.Option(
        help="Verify only what came since the verification that wrote FILE, and write FILE anew; the verdict is the "
        "same. Without the file everything is verified.",
        metavar="FILE",
    ),
]
RereadOption = Annotated[
    bool,
    typer.Option(
        "--reread",
        help="With --incremental: read all that was verified before again, and compare it byte for byte.",
    ),
]
SarifOption = Annotated[
    Path | None, typer.Option(help="Write the findings to FILE, too, in SARIF 2.1.0.", metavar="FILE")
]


ParentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--parent",
        help="The run, or adapter folder, that this run starts from; verified, too. May be repeated for its parent.",
        metavar="SOURCE",
    ),
]
BoundaryOption = Annotated[
    list[str] | None,
    typer.Option(
        "--boundary",
        help="Audit a boundary from within, too: run folder (all of its boundaries), export, .sqlite file, broker URL "
        "or broker .yaml file; may be repeated.",
        metavar="SOURCE",
    ),
]
RosterOption = Annotated[
    Path | None,
    typer.Option(
        help="The boundary's signed roster; not needed for run folders and exports, which have it.",
        metavar="FILE",
    ),
]


def guarded(action: Callable[[], int]) -> None:
    """Run a command; what does not verify ends with 1, and what cannot be read or used as it should with 2."""
    try:
        code = action()
    except EchelonError as error:
        # Messages quote what stands in files: control characters must not reach the terminal.
        text = "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in f"error: {error}")
        Console(stderr=True).print(Text(text, style="red"), soft_wrap=True)
        code = 1 if isinstance(error, AuditError) else 2
    raise typer.Exit(code)


def digest_of(text: str | None) -> bytes | None:
    """The pinned digest, 32 bytes. Raises `ConfigError` for what is none."""
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise ConfigError(f"--genesis {text}: give the SHA-256 as 64 hex digits")
    return digest


def allowed(names: list[str] | None) -> Allowed:
    """Rules that the command line allows. Raises `ConfigError` for a name that leads nowhere."""
    if not names:
        return {}
    from echelon.wiring.plugins import allow

    return allow(names)


def _notes(paths: list[Path] | None) -> list[bytes]:
    return [read_file(path, "--checkpoint", MAX_NOTE_BYTES) for path in paths or ()]


def read_policy(path: Path | None) -> Policy | None:
    """An auditor's policy file; None if there is none.

    Raises:
        ConfigError: it cannot be read, or is not one; the message says what and where.
    """
    if path is None:
        return None
    return Policy.of(load_yaml(read_file(path, "policy", MAX_POLICY_BYTES), f"policy {path}"), str(path))


def _verified(
    source: str,
    security: Path | None,
    genesis: str | None,
    checkpoints: list[Path] | None,
    allow_open: bool,
    rules: list[str] | None,
    policy: Path | None,
    state: StateFile | None = None,
) -> Report:
    pinned, asked = digest_of(genesis), read_policy(policy)
    with opened(source, security) as found:
        notes = _notes([*(checkpoints or ()), *found.checkpoints])
        if state is not None:
            return state.verify(
                list(found.topics),
                found.open_from,
                genesis=pinned,
                checkpoints=notes,
                allow_open=allow_open,
                adapter=found.adapter,
                rules=allowed(rules),
                findings=found.findings,
                policy=asked,
            )
        verifier = Verifier(
            found.topics,
            genesis=pinned,
            checkpoints=notes,
            allow_open=allow_open,
            adapter=found.adapter,
            rules=allowed(rules),
            findings=found.findings,
            policy=asked,
        )
        for _ in verifier.run():
            pass
    return verifier.report


@app.command("verify")
def verify_command(
    source: SourceArgument,
    security: SecurityOption = None,
    genesis: GenesisOption = None,
    checkpoint: CheckpointOption = None,
    as_json: JsonOption = False,
    allow_open: AllowOpenOption = False,
    rule: RuleOption = None,
    policy: PolicyOption = None,
    incremental: IncrementalOption = None,
    reread: RereadOption = False,
    sarif: SarifOption = None,
    boundary: BoundaryOption = None,
    roster: RosterOption = None,
    parent: ParentOption = None,
) -> None:
    """Check signatures, logs, payloads, floors, and every global adapter bit for bit."""

    def action() -> int:
        if reread and incremental is None:
            raise ConfigError("--reread goes with --incremental: without it everything is read in any case")
        if boundary and incremental is not None:
            raise ConfigError(
                "--boundary derives everything from the start: give --incremental to a verification without it"
            )
        if roster is not None and len(boundary or ()) != 1:
            raise ConfigError("--roster goes with one --boundary: it is that boundary's")
        state = None if incremental is None else StateFile(incremental, compare_all=reread)
        report = _verified(source, security, genesis, checkpoint, allow_open, rule, policy, state)
        parents.check_chain(report, parent or [], allowed(rule))
        inside = _boundaries(source, security, boundary or [], roster, allowed(rule), report)
        if sarif is not None:
            write_file(sarif, json.dumps(as_sarif(report, __version__), indent=2).encode() + b"\n", "--sarif")
        if state is not None and state.said:
            Console(stderr=True).print(Text(state.said), soft_wrap=True)
        if as_json:
            plain = as_plain(report) | parents.plain_chain(report)
            if inside:
                plain["boundaries"] = [boundary_plain(facts) for facts in inside]
            typer.echo(json.dumps(plain, indent=2))
        else:
            console = Console()
            if inside:
                print_boundaries(console, inside)
            _print_findings(console, report)
            _print_verdict(console, report)
        return 0 if report.ok else 1

    guarded(action)


def _boundaries(
    source: str,
    security: Path | None,
    boundaries: list[str],
    roster: Path | None,
    rules: Allowed,
    report: Report,
) -> list[BoundaryFacts]:
    """Audit each boundary from within, and add what was found to the report."""
    if not boundaries:
        return []
    from echelon.cli import boundary_source

    facts = []
    for place in [place for name in boundaries for place in boundary_source.places(name, roster)]:
        with opened(source, security) as outside, opened(place.source) as within:
            audit = boundary_source.audit_boundary(
                exchange_topics=outside.topics,
                exchange=outside.open_from,
                boundary_topics=within.topics,
                boundary=within.open_from,
                roster=boundary_source.read_roster(place.roster),
                rules=rules,
            )
            strange = [one for one in within.findings if one.topic in (*boundary_source.TOPICS, "")]
        report.findings += [*strange, *audit.findings]
        report.errors += len(strange) + audit.errors
        facts.append(audit.facts)
    return facts


@app.command("report")
def report_command(
    source: SourceArgument,
    security: SecurityOption = None,
    genesis: GenesisOption = None,
    checkpoint: CheckpointOption = None,
    allow_open: AllowOpenOption = False,
    rule: RuleOption = None,
    policy: PolicyOption = None,
) -> None:
    """Verify, and show what stands in the logs: topics, commits, boundaries, findings."""

    def action() -> int:
        report = _verified(source, security, genesis, checkpoint, allow_open, rule, policy)
        console = Console()
        _print_logs(console, report)
        _print_commits(console, report)
        _print_boundaries(console, report)
        _print_findings(console, report)
        _print_verdict(console, report)
        return 0 if report.ok else 1

    guarded(action)


@app.command("replay")
def replay_command(
    source: SourceArgument,
    security: SecurityOption = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write the adapter to, in PEFT's format.")
    ] = None,
    commit: Annotated[
        int | None, typer.Option(min=0, help="Which commit to write; the newest if left out.")
    ] = None,
    genesis: GenesisOption = None,
    as_json: JsonOption = False,
    rule: RuleOption = None,
) -> None:
    """Derive every global adapter again from the exchange alone, and print their digests."""

    def action() -> int:
        pinned = digest_of(genesis)
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: exists and is not empty; name a new folder")
        versions: list[Version] = []
        chosen: Version | None = None
        with opened(source, security) as found:
            for version in replay(found.topics, genesis=pinned, rules=allowed(rule), findings=found.findings):
                versions.append(replace(version, adapter=np.zeros(0, np.float32)))
                if commit is None or version.commit == commit:
                    chosen = version
        if chosen is None:
            raise ConfigError(f"--commit {commit}: the log has commits 0 to {versions[-1].commit}")
        if out is not None:
            _write(out, chosen.files())
        if as_json:
            listed = [_described(version) for version in versions]
            typer.echo(json.dumps({"adapter_sha256": chosen.sha256.hex(), "commits": listed}, indent=2))
            return 0
        console = Console()
        console.print(_versions_table(versions))
        console.print(
            f"adapter of commit {chosen.commit}: {chosen.sha256.hex()}", soft_wrap=True, highlight=False
        )
        if out is not None:
            console.print(f"written to {out}", soft_wrap=True, highlight=False)
        return 0

    guarded(action)


def _described(version: Version) -> dict[str, object]:
    """A version for machines: its digest, the pace that it announced, and why."""
    described: dict[str, object] = {
        "commit": version.commit,
        "adapter_sha256": version.sha256.hex(),
        "pace": version.pace.model_dump(),
    }
    if version.decision is not None:
        described["decision"] = asdict(version.decision)
    return described


def _versions_table(versions: list[Version]) -> Table:
    """One row per version; where the pace is decided as the run goes on, with the decisions that were derived again."""
    if versions[-1].manifest.control.kind is PaceKind.FIXED:
        table = Table("commit", "adapter SHA-256", box=box.SIMPLE)
        for version in versions:
            table.add_row(str(version.commit or "genesis"), version.sha256.hex())
        return table
    table = Table("commit", "H", "R", "decision", "adapter SHA-256", box=box.SIMPLE)
    for version in versions:
        decision = version.decision.reason if version.decision is not None else ""
        pace = version.pace
        digest = f"{version.sha256.hex()[:16]}…"
        table.add_row(str(version.commit or "genesis"), str(pace.steps), str(pace.windows), decision, digest)
    return table


def _write(folder: Path, files: dict[str, bytes]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error


@app.command("export")
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
            with opened(source, security) as found:
                notes = _notes([*(checkpoint or ()), *found.checkpoints])
                files = commit_proof(found.topics, proof, notes)
            _write(target, files)
            Console().print(
                f"{len(files)} files that prove commit {proof} written to {target}", soft_wrap=True
            )
            return 0
        if checkpoint:
            raise ConfigError("--checkpoint goes with --proof: a copy of the topics needs none")
        if roster is not None and not boundary:
            raise ConfigError("--roster goes with --boundary: the exchange has none")
        lines = []
        kept = None
        if boundary:
            from echelon.cli import boundary_source

            (place, *others) = boundary_source.places(source, roster)
            if others:
                raise ConfigError(f"{source} has {1 + len(others)} boundaries; name one, {place.source}")
            signed = boundary_source.read_roster(place.roster).encode()
            kept = boundary_source.TOPICS
        with opened(source if kept is None else place.source, security) as found:
            for finding in found.findings:
                about = kept is None or finding.topic in (*kept, "")
                if about and finding.code is not Code.UNEXPECTED_FILE:
                    # An export that leaves it out would look like a sound log.
                    raise AuditError(f"{source} cannot be exported: {finding.detail}")
            try:
                target.mkdir(parents=True, exist_ok=True)
                if kept is not None:
                    (target / boundary_source.ROSTER_FILE).write_bytes(signed)
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
        Console().print(
            f"{len(lines)} topics, {count} records, {_size(total)} written to {target}", soft_wrap=True
        )
        return 0

    guarded(action)


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
            if isinstance(record, Damaged):
                # An export that leaves it out would look like a sound log with a record missing.
                raise AuditError(f"{topic}@{record.offset} cannot be exported: {record.detail}")
            count += 1
            yield record

    for piece in encode_topic(sound()):
        size += stream.write(piece)
    return ExportedTopic(topic, topic_file(topic), count, size)


# ---- output ----------------------------------------


def as_plain(report: Report) -> dict[str, object]:
    """The report as JSON values; the shape of `audit verify --json`."""
    return {
        "ok": report.ok,
        "errors": report.errors,
        "run": report.run.hex(),
        "genesis_sha256": report.genesis_sha256.hex(),
        "adapter_sha256": report.adapter_sha256.hex(),
        "close": report.close.value if report.close is not None else None,
        "best_commit": report.best_commit,
        "pending": report.pending,
        "findings": [
            {
                "severity": found.severity.value,
                "code": found.code.value,
                "topic": found.topic,
                "offset": found.offset,
                "detail": found.detail,
            }
            for found in report.findings
        ],
        "findings_left_out": report.left_out,
        "topics": {
            topic: {
                "records": facts.records,
                "bytes": facts.size,
                "manifests": facts.manifests,
                "repeats": facts.repeats,
                "root": facts.root.hex(),
            }
            for topic, facts in report.topics.items()
        },
        "commits": [
            {
                "commit": commit.commit,
                "offset": commit.offset,
                "tokens": commit.tokens,
                "adapter_sha256": commit.adapter_sha256.hex(),
                "merged": [merged.model_dump() for merged in commit.merged],
                "pace": commit.pace.model_dump(),
            }
            for commit in report.commits
        ],
        "cosigned": {topic: dict(sorted(sizes.items())) for topic, sizes in report.cosigned.items()},
        "refusals": [
            {"boundary": refusal.boundary, "seq": refusal.seq, "reason": refusal.reason.value}
            for refusal in report.refusals
        ],
    }


def _size(count: int) -> str:
    value, units = float(count), ["B", "KiB", "MiB", "GiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"


def _print_logs(console: Console, report: Report) -> None:
    table = Table("topic", title="Logs", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("records", "bytes", "manifests", "repeats"):
        table.add_column(name, justify="right")
    table.add_column("Merkle root")
    for topic, facts in report.topics.items():
        counts = (str(facts.records), _size(facts.size), str(facts.manifests), str(facts.repeats))
        table.add_row(topic, *counts, facts.root.hex()[:16])
    console.print(table)
    if any(report.cosigned.values()):
        _print_witnesses(console, report)


def _print_witnesses(console: Console, report: Report) -> None:
    table = Table("log", title="Cosigned manifests", box=box.SIMPLE_HEAD, title_justify="left")
    names = sorted({name for sizes in report.cosigned.values() for name in sizes})
    for name in names:
        table.add_column(name, justify="right")
    for topic, sizes in report.cosigned.items():
        table.add_row(topic, *(str(sizes.get(name, "")) for name in names))
    console.print(table)


def _print_commits(console: Console, report: Report) -> None:
    table = Table(title="Commits, derived again bit for bit", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("commit", "tokens", "H", "R"):
        table.add_column(name, justify="right")
    table.add_column("merged (boundary/seq, τ, weight)")
    table.add_column("adapter")
    for commit in report.commits:
        merged = ", ".join(
            f"{report.boundaries[m.boundary]}/{m.seq} τ{m.staleness} w{m.weight}" for m in commit.merged
        )
        numbers = (commit.commit, commit.tokens, commit.pace.steps, commit.pace.windows)
        table.add_row(*map(str, numbers), merged, commit.adapter_sha256.hex()[:16])
    console.print(table)


def _print_boundaries(console: Console, report: Report) -> None:
    table = Table("boundary", title="Boundaries", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("deltas", "merged", "refused", "waiting or late"):
        table.add_column(name, justify="right")
    table.add_column("reasons")
    for index, name in enumerate(report.boundaries):
        facts = report.topics.get(f"delta.{name}")
        sent = facts.manifests if facts is not None else 0
        merged = sum(1 for commit in report.commits for m in commit.merged if m.boundary == index)
        reasons = [refusal.reason.value for refusal in report.refusals if refusal.boundary == index]
        counts = (sent, merged, len(reasons), sent - merged - len(reasons))
        table.add_row(name, *map(str, counts), ", ".join(sorted(set(reasons))))
    console.print(table)


_STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.INFO: "dim"}


def _print_findings(console: Console, report: Report) -> None:
    order = list(_STYLES)
    findings = sorted(report.findings, key=lambda found: order.index(found.severity))
    for found in findings[:SHOWN]:
        console.print(_line(found), soft_wrap=True)
    hidden = len(findings) - SHOWN + report.left_out
    if hidden > 0:
        console.print(f"... and {hidden} more; --json has up to a thousand of each kind", soft_wrap=True)


def _line(found: Finding) -> Text:
    where = found.topic if found.offset is None else f"{found.topic}@{found.offset}"
    line = Text()
    line.append(f"{found.severity.value:8}", style=_STYLES[found.severity])
    if where:
        line.append(f"{where}  ", style="bold")
    # Details quote what stands in records: control characters must not reach the terminal.
    line.append("".join(c if c.isprintable() else "\ufffd" for c in f"{found.code.value}: {found.detail}"))
    return line


def _print_verdict(console: Console, report: Report) -> None:
    console.print()
    if not report.ok:
        console.print(Text(f"NOT VERIFIED: {report.errors} errors", style="bold red"))
        return
    boundaries = len(report.boundaries)
    state = f"closed ({report.close.value})" if report.close is not None else "open"
    console.print(
        Text.assemble(
            ("VERIFIED", "bold green"),
            f": run {report.run.hex()}, {boundaries} boundaries, {len(report.commits)} commits, {state}",
        ),
        soft_wrap=True,
    )
    if any(found.code is Code.UNPINNED for found in report.findings):
        console.print(
            f"genesis  {report.genesis_sha256.hex()}  (compare it, or pass --genesis)", soft_wrap=True
        )
    console.print(f"adapter  {report.adapter_sha256.hex()}", soft_wrap=True)
    for line in parents.lines_of(report):
        console.print(Text(line), soft_wrap=True)
