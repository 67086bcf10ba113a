"""`echelon audit`: check an exchange, derive its adapters again, export it, and read about it.

SOURCE is a run folder, a folder made by `audit export`, an .sqlite file, the URL of a broker, or a .yaml file that
names a broker and how to reach it. Nothing is ever written to it. Exit codes: 0 good, 1 a finding, 2 wrong usage.
"""

from __future__ import annotations

import json
from pathlib import Path

import typer
from rich.console import Console
from rich.text import Text

from echelon import __version__
from echelon.audit.boundary_facts import BoundaryFacts
from echelon.audit.findings import Report
from echelon.audit.sarif import as_sarif
from echelon.audit.verify import Verifier
from echelon.cli import parents
from echelon.cli.audit_boundary import boundary_plain, print_boundaries
from echelon.cli.audit_export import export_command
from echelon.cli.audit_options import (
    AllowOpenOption,
    BoundaryOption,
    CheckpointOption,
    GenesisOption,
    IncrementalOption,
    JsonOption,
    OneThreadOption,
    ParentOption,
    PolicyOption,
    RereadOption,
    RosterOption,
    RuleOption,
    SarifOption,
    SecurityOption,
    SourceArgument,
    allowed,
    digest_of,
    guarded,
    notes_of,
    read_policy,
)
from echelon.cli.audit_output import (
    as_plain,
    print_boundary_counts,
    print_commits,
    print_findings,
    print_logs,
    print_verdict,
)
from echelon.cli.audit_replay import replay_command
from echelon.cli.audit_state import StateFile, write_file
from echelon.cli.output import prose
from echelon.errors import ConfigError
from echelon.laws.rules import Allowed
from echelon.sources.exchange import opened
from echelon.sources.hashing_thread import hashing_ahead

app = typer.Typer(
    name="audit", no_args_is_help=True, help="Check an exchange offline: every claim, from its topics alone."
)


def _verified(
    source: str,
    *,
    security: Path | None,
    genesis: str | None,
    checkpoints: list[Path] | None,
    allow_open: bool,
    rules: list[str] | None,
    policy: Path | None,
    one_thread: bool,
    state: StateFile | None = None,
) -> Report:
    pinned, asked = digest_of(genesis), read_policy(policy)
    with opened(source, security) as found, hashing_ahead(not one_thread) as sha256:
        notes = notes_of([*(checkpoints or ()), *found.checkpoints])
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
                sha256=sha256,
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
            sha256=sha256,
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
    one_thread: OneThreadOption = False,
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
        report = _verified(
            source,
            security=security,
            genesis=genesis,
            checkpoints=checkpoint,
            allow_open=allow_open,
            rules=rule,
            policy=policy,
            one_thread=one_thread,
            state=state,
        )
        parents.check_chain(report, parent or [], allowed(rule))
        inside = _boundaries(
            source, security, boundary or [], roster=roster, rules=allowed(rule), report=report
        )
        if sarif is not None:
            write_file(sarif, json.dumps(as_sarif(report, __version__), indent=2).encode() + b"\n", "--sarif")
        if state is not None and state.said:
            prose(Console(stderr=True), Text(state.said))
        if as_json:
            plain = as_plain(report) | parents.plain_chain(report)
            if inside:
                plain["boundaries"] = [boundary_plain(facts) for facts in inside]
            typer.echo(json.dumps(plain, indent=2))
        else:
            console = Console()
            if inside:
                print_boundaries(console, inside)
            print_findings(console, report)
            print_verdict(console, report)
        return 0 if report.ok else 1

    guarded(action)


def _boundaries(
    source: str,
    security: Path | None,
    boundaries: list[str],
    *,
    roster: Path | None,
    rules: Allowed,
    report: Report,
) -> list[BoundaryFacts]:
    """Audit each boundary from within, and add what was found to the report."""
    if not boundaries:
        return []
    from echelon.sources import boundary as boundary_source

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
    one_thread: OneThreadOption = False,
) -> None:
    """Verify, and show what stands in the logs: topics, commits, boundaries, findings."""

    def action() -> int:
        report = _verified(
            source,
            security=security,
            genesis=genesis,
            checkpoints=checkpoint,
            allow_open=allow_open,
            rules=rule,
            policy=policy,
            one_thread=one_thread,
        )
        console = Console()
        print_logs(console, report)
        print_commits(console, report)
        print_boundary_counts(console, report)
        print_findings(console, report)
        print_verdict(console, report)
        return 0 if report.ok else 1

    guarded(action)


app.command("replay")(replay_command)
app.command("export")(export_command)
