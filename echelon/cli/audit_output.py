"""What an audit found, on the terminal and for machines."""

from __future__ import annotations

from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.cli import parents
from echelon.cli.output import prose
from echelon.errors import ConfigError
from echelon.units import size

SHOWN = 50
"""Findings that a terminal shows; --json has all that the report keeps."""


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


def print_logs(console: Console, report: Report) -> None:
    """The topics: records, bytes, roots, and who cosigned them."""
    table = Table("topic", title="Logs", box=box.SIMPLE_HEAD, title_justify="left")
    for name in ("records", "bytes", "manifests", "repeats"):
        table.add_column(name, justify="right")
    table.add_column("Merkle root")
    for topic, facts in report.topics.items():
        counts = (str(facts.records), size(facts.size), str(facts.manifests), str(facts.repeats))
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


def print_commits(console: Console, report: Report) -> None:
    """The commits, with what each merged."""
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


def print_boundary_counts(console: Console, report: Report) -> None:
    """What became of each boundary's deltas."""
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


def print_findings(console: Console, report: Report) -> None:
    """The worst findings, at most `SHOWN`."""
    order = list(_STYLES)
    findings = sorted(report.findings, key=lambda found: order.index(found.severity))
    for found in findings[:SHOWN]:
        prose(console, _line(found))
    hidden = len(findings) - SHOWN + report.left_out
    if hidden > 0:
        prose(console, f"... and {hidden} more; --json has up to a thousand of each kind")


def _line(found: Finding) -> Text:
    where = found.topic if found.offset is None else f"{found.topic}@{found.offset}"
    line = Text()
    line.append(f"{found.severity.value:8}", style=_STYLES[found.severity])
    if where:
        line.append(f"{where}  ", style="bold")
    # Details quote what stands in records: control characters must not reach the terminal.
    line.append("".join(c if c.isprintable() else "\ufffd" for c in f"{found.code.value}: {found.detail}"))
    return line


def print_verdict(console: Console, report: Report) -> None:
    """Whether everything verified."""
    console.print()
    if not report.ok:
        console.print(Text(f"NOT VERIFIED: {report.errors} errors", style="bold red"))
        return
    boundaries = len(report.boundaries)
    state = f"closed ({report.close.value})" if report.close is not None else "open"
    prose(
        console,
        Text.assemble(
            ("VERIFIED", "bold green"),
            f": run {report.run.hex()}, {boundaries} boundaries, {len(report.commits)} commits, {state}",
        ),
    )
    trimmed = [found.topic.partition("/")[0] for found in report.findings if found.code is Code.TRIMMED]
    if trimmed:
        console.print(
            Text(
                f"of {', '.join(trimmed)} not all of it was seen: old windows were trimmed by rule",
                style="yellow",
            ),
            soft_wrap=True,
        )
    if any(found.code is Code.UNPINNED for found in report.findings):
        prose(console, f"genesis  {report.genesis_sha256.hex()}  (compare it, or pass --genesis)")
    prose(console, f"adapter  {report.adapter_sha256.hex()}")
    for line in parents.lines_of(report):
        prose(console, Text(line))


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files into a new folder.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); name another folder") from error
