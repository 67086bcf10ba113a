"""`echelon audit replay`: derive every global adapter again."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from echelon.audit.derived_adapter import DerivedAdapter
from echelon.audit.replay import replay
from echelon.cli.audit_options import (
    GenesisOption,
    JsonOption,
    RuleOption,
    SecurityOption,
    SourceArgument,
    allowed,
    digest_of,
    guarded,
)
from echelon.cli.audit_output import write_folder
from echelon.cli.output import prose
from echelon.errors import ConfigError
from echelon.messages.manifest import PaceKind
from echelon.sources.exchange import opened


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
        versions: list[DerivedAdapter] = []
        chosen: DerivedAdapter | None = None
        with opened(source, security) as found:
            for version in replay(found.topics, genesis=pinned, rules=allowed(rule), findings=found.findings):
                versions.append(replace(version, adapter=np.zeros(0, np.float32)))
                if commit is None or version.commit == commit:
                    chosen = version
        if chosen is None:
            raise ConfigError(f"--commit {commit}: the log has commits 0 to {versions[-1].commit}")
        if out is not None:
            write_folder(out, chosen.files())
        if as_json:
            listed = [_described(version) for version in versions]
            typer.echo(json.dumps({"adapter_sha256": chosen.sha256.hex(), "commits": listed}, indent=2))
            return 0
        console = Console()
        console.print(_versions_table(versions))
        prose(console, f"adapter of commit {chosen.commit}: {chosen.sha256.hex()}")
        if out is not None:
            prose(console, f"written to {out}")
        return 0

    guarded(action)


def _described(version: DerivedAdapter) -> dict[str, object]:
    """A version for machines: its digest, the pace that it announced, and why."""
    described: dict[str, object] = {
        "commit": version.commit,
        "adapter_sha256": version.sha256.hex(),
        "pace": version.pace.model_dump(),
    }
    if version.decision is not None:
        described["decision"] = asdict(version.decision)
    return described


def _versions_table(versions: list[DerivedAdapter]) -> Table:
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
