"""`echelon report`: the page about a run, or about several side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import guarded

COMPARISON = Path("compare.html")


def report_command(
    folders: Annotated[
        list[Path],
        typer.Argument(help="Run folders: one, or several to compare.", metavar="DIR…", show_default=False),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Where the page goes. Default: DIR/report.html; for several runs, compare.html.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write one self-contained page with plots: about a run, or about several side by side."""
    with guarded():
        from echelon.errors import ConfigError
        from echelon.report import build_comparison, build_report

        try:
            one = len(folders) == 1
            page = build_report(folders[0], out) if one else build_comparison(folders, out or COMPARISON)
        except OSError as error:
            where = out or (folders[0] if len(folders) == 1 else COMPARISON)
            raise ConfigError(f"the report cannot be written to {where}: {error.strerror}") from error
        typer.echo(str(page))
