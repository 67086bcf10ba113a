"""`echelon audit`: check an exchange, derive its adapters again, export it, and read about it.

SOURCE is a run folder, a folder made by `audit export`, an .sqlite file, the URL of a broker, or a .yaml file that
names a broker and how to reach it. Nothing is ever written to it. Exit codes: 0 good, 1 a finding, 2 wrong usage.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from echelon.audit.export import (
    INDEX_FILE,
    ExportedTopic,
    encode_index,
    encode_topic,
    read_index,
    read_topic,
    topic_file,
)
from echelon.audit.findings import Code, Finding, Report, Severity
from echelon.audit.records import Damaged, LogRecord
from echelon.audit.replay import replay
from echelon.audit.verify import Verifier, Version
from echelon.bus import Bus, Reader, RecordDamaged, TopicPartition, open_bus, sqlite_url
from echelon.config.broker import SecuritySettings, load_broker
from echelon.errors import AuditError, BusError, ConfigError, EchelonError
from echelon.messages.adapter import CONFIG_FILE, WEIGHTS_FILE
from echelon.messages.manifest import PaceKind
from echelon.rounds.rules import Allowed

app = typer.Typer(
    name="audit", no_args_is_help=True, help="Check an exchange offline: every claim, from its topics alone."
)

MAX_FILE_BYTES = 8 << 30
"""Largest adapter file that is read for comparison."""
MAX_NOTE_BYTES = 1 << 20
SHOWN = 50
"""Findings that a terminal shows; --json has all that the report keeps."""

Records = Iterator[LogRecord | Damaged]


@dataclass
class Source:
    """An opened source: its topics, and the exported adapter where there is one."""

    name: str
    topics: dict[str, Records]
    adapter: dict[str, bytes] | None = None
    checkpoints: tuple[Path, ...] = ()
    """Signed heads of its logs that lie beside them."""


@contextmanager
def opened(source: str, security: Path | None = None) -> Iterator[Source]:
    """Open a SOURCE for reading.

    Args:
        source: see above.
        security: a broker file whose `security` goes with the URL of a broker.

    Raises:
        ConfigError: it is none of the things that a SOURCE may be.
    """
    with ExitStack() as stack:
        if "://" in source:
            with_it = None if security is None else load_broker(security).security
            yield stack.enter_context(_bus(source, source, with_it))
            return
        if security is not None:
            raise ConfigError(f"--security goes with the URL of a broker, and {source} is none: leave it out")
        path = Path(source)
        if path.suffix in (".yaml", ".yml"):
            broker = load_broker(path)
            yield stack.enter_context(_bus(broker.url, broker.url, broker.security))
            return
        log = path / "brokers" / "exchange.sqlite"
        if (path / INDEX_FILE).is_file():
            yield _folder(path, stack)
        elif log.is_file():
            found = stack.enter_context(_bus(sqlite_url(log), source))
            found.adapter = _adapter(path / "adapter")
            found.checkpoints = tuple(sorted((path / "checkpoints").glob("*.note")))
            yield found
        elif path.is_file():
            yield stack.enter_context(_bus(sqlite_url(path), source))
        elif not path.exists():
            raise ConfigError(f"{source}: there is no such file or folder")
        else:
            raise ConfigError(
                f"{source}: neither a run folder (brokers/{log.name} is missing) "
                f"nor an export ({INDEX_FILE} is missing)"
            )


def _folder(path: Path, stack: ExitStack) -> Source:
    try:
        names = read_index((path / INDEX_FILE).read_bytes())
    except EchelonError as error:
        raise ConfigError(f"{path}: {error}") from error
    source = Source(str(path), {})
    for name in names:
        try:
            stream = stack.enter_context((path / topic_file(name)).open("rb"))
        except FileNotFoundError:
            source.topics[name] = iter([Damaged(name, 0, f"its file {topic_file(name)} is missing")])
        else:
            source.topics[name] = read_topic(name, stream)
    return source


def _adapter(path: Path) -> dict[str, bytes] | None:
    if not path.is_dir():
        return None
    files = {}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        file = path / name
        if file.is_file():
            if file.stat().st_size > MAX_FILE_BYTES:
                raise ConfigError(f"{file}: larger than {MAX_FILE_BYTES} bytes, which no adapter is")
            files[name] = file.read_bytes()
    return files


@contextmanager
def _bus(url: str, name: str, security: SecuritySettings | None = None) -> Iterator[Source]:
    with asyncio.Runner() as runner:
        bus = runner.run(open_bus(url, read_only=True, security=security))
        try:
            counts = runner.run(bus.topics())
            reading = {topic: _read_bus(runner, bus, topic, count) for topic, count in counts.items()}
            try:
                yield Source(name, dict(reading))
            finally:
                for records in reading.values():
                    records.close()  # closes the bus's reader while the bus is still there
        finally:
            runner.run(bus.aclose())


def _read_bus(
    runner: asyncio.Runner, bus: Bus, topic: str, partitions: int
) -> Generator[LogRecord | Damaged, None, None]:
    """All records that stand in a topic now; the first partition is read, others may hold nothing."""
    at = TopicPartition(topic)
    for partition in range(1, partitions):
        if runner.run(bus.end_offset(TopicPartition(topic, partition))):
            yield Damaged(
                topic, 0, f"partition {partition} holds records; a topic of the exchange has one partition"
            )
    first, end = runner.run(bus.first_offset(at)), runner.run(bus.end_offset(at))
    if first:
        yield Damaged(topic, 0, f"records before offset {first} are not kept")
    reader = runner.run(_reader(bus, at, first))
    try:
        while reader.position(at) < end:
            try:
                records = runner.run(reader.next(timeout=30.0))
            except RecordDamaged as error:
                yield Damaged(topic, error.offset, str(error))
                reader.seek(at, error.offset + 1)
                continue
            except BusError as error:
                yield Damaged(topic, reader.position(at), f"cannot be read: {error}")
                return
            if not records:
                yield Damaged(topic, reader.position(at), "the broker does not deliver this record")
                return
            for record in records:
                if record.offset < end:
                    yield record
    finally:
        runner.run(reader.aclose())


async def _reader(bus: Bus, at: TopicPartition, first: int) -> Reader:
    """A reader, made where readers live: on the loop."""
    return bus.reader({at: first})


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


def _guarded(action: Callable[[], int]) -> None:
    """Run a command; errors of usage end with 2, what does not verify with 1."""
    try:
        code = action()
    except (ConfigError, BusError) as error:
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        code = 2
    except AuditError as error:
        Console(stderr=True).print(Text(f"error: {error}", style="red"), soft_wrap=True)
        code = 1
    raise typer.Exit(code)


def _digest(text: str | None) -> bytes | None:
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
    from echelon.federation.rules import allow

    return allow(names)


def _notes(paths: list[Path] | None) -> list[bytes]:
    notes = []
    for path in paths or ():
        try:
            with path.open("rb") as stream:
                notes.append(stream.read(MAX_NOTE_BYTES))
        except OSError as error:
            raise ConfigError(f"--checkpoint {path}: {error.strerror}") from error
    return notes


def _verified(
    source: str,
    security: Path | None,
    genesis: str | None,
    checkpoints: list[Path] | None,
    allow_open: bool,
    rules: list[str] | None,
) -> Report:
    pinned = _digest(genesis)
    with opened(source, security) as found:
        notes = _notes([*(checkpoints or ()), *found.checkpoints])
        verifier = Verifier(
            found.topics,
            genesis=pinned,
            checkpoints=notes,
            allow_open=allow_open,
            adapter=found.adapter,
            rules=allowed(rules),
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
) -> None:
    """Check signatures, logs, payloads, floors, and every global adapter bit for bit."""

    def action() -> int:
        report = _verified(source, security, genesis, checkpoint, allow_open, rule)
        if as_json:
            typer.echo(json.dumps(as_plain(report), indent=2))
        else:
            console = Console()
            _print_findings(console, report)
            _print_verdict(console, report)
        return 0 if report.ok else 1

    _guarded(action)


@app.command("report")
def report_command(
    source: SourceArgument,
    security: SecurityOption = None,
    genesis: GenesisOption = None,
    checkpoint: CheckpointOption = None,
    allow_open: AllowOpenOption = False,
    rule: RuleOption = None,
) -> None:
    """Verify, and show what stands in the logs: topics, commits, boundaries, findings."""

    def action() -> int:
        report = _verified(source, security, genesis, checkpoint, allow_open, rule)
        console = Console()
        _print_logs(console, report)
        _print_commits(console, report)
        _print_boundaries(console, report)
        _print_findings(console, report)
        _print_verdict(console, report)
        return 0 if report.ok else 1

    _guarded(action)


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
        pinned = _digest(genesis)
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(f"--out {out}: exists and is not empty; name a new folder")
        versions: list[Version] = []
        chosen: Version | None = None
        with opened(source, security) as found:
            for version in replay(found.topics, genesis=pinned, rules=allowed(rule)):
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

    _guarded(action)


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
    folder: Annotated[Path, typer.Argument(help="New folder for the exported topics.")],
    security: SecurityOption = None,
) -> None:
    """Copy every topic into a folder that `verify`, `replay` and `report` read without a broker."""

    def action() -> int:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder}: exists and is not empty; name a new folder")
        lines = []
        with opened(source, security) as found:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                for topic, records in sorted(found.topics.items()):
                    with (folder / topic_file(topic)).open("wb") as stream:
                        lines.append(_export(topic, records, stream))
                (folder / INDEX_FILE).write_bytes(encode_index(lines))
            except OSError as error:
                raise ConfigError(
                    f"{folder}: cannot be written ({error.strerror}); name another folder"
                ) from error
        total = sum(line.bytes for line in lines)
        count = sum(line.records for line in lines)
        Console().print(
            f"{len(lines)} topics, {count} records, {_size(total)} written to {folder}", soft_wrap=True
        )
        return 0

    _guarded(action)


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
