"""`echelon report`: the page about a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import guarded


def report_command(
    folder: Annotated[Path, typer.Argument(help="Run folder.", metavar="DIR", show_default=False)],
) -> None:
    """Write DIR/report.html: one self-contained page with plots."""
    with guarded():
        from echelon.errors import ConfigError
        from echelon.report import build_report

        try:
            page = build_report(folder)
        except OSError as error:
            raise ConfigError(f"the report cannot be written to {folder}: {error.strerror}") from error
        typer.echo(str(page))
