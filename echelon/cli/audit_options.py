"""Arguments and options that the commands of `echelon audit` share, and how they are read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from echelon.audit.policy import MAX_POLICY_BYTES, Policy
from echelon.cli.output import prose
from echelon.config.reading import load_yaml, read_file
from echelon.errors import AuditError, ConfigError, EchelonError
from echelon.laws.rules import Allowed

MAX_NOTE_BYTES = 1 << 20
"""Largest file of a checkpoint."""
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
OneThreadOption = Annotated[
    bool,
    typer.Option(
        "--one-thread",
        help="Take one core, where otherwise a second one hashes ahead; the verdict is the same.",
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
        prose(Console(stderr=True), Text(text, style="red"))
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


def notes_of(paths: list[Path] | None) -> list[bytes]:
    """The signed checkpoints in these files. Raises `ConfigError` for one that cannot be read."""
    return [read_file(path, "--checkpoint", MAX_NOTE_BYTES) for path in paths or ()]


def read_policy(path: Path | None) -> Policy | None:
    """An auditor's policy file; None if there is none.

    Raises:
        ConfigError: it cannot be read, or is not one; the message says what and where.
    """
    if path is None:
        return None
    return Policy.of(load_yaml(read_file(path, "policy", MAX_POLICY_BYTES), f"policy {path}"), str(path))
