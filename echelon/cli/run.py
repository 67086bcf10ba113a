"""`echelon run`: the whole federation in one process."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import JsonOption, StartOption, guarded


def run_command(
    config: Annotated[
        Path | None,
        typer.Argument(help="Run file; with --resume, the folder's own if left out.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder to make. Default: runs/NAME.", show_default=False)
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.B=VALUE", help="Change one setting; may be repeated.", show_default=False
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="Go on with the run in this folder.", metavar="DIR", show_default=False),
    ] = None,
    start: StartOption = None,
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no closing table.")] = False,
) -> None:
    """Run a whole federation in one process: brokers, devices, aggregators, gates and controller.

    Ctrl-C stops it cleanly, and --resume goes on.

    Exit codes: 0 good; 1 failed, or findings of the audit; 2 wrong configuration; 130 stopped.
    """
    begun = time.monotonic()
    with guarded():
        from echelon.cli.ahead import begin_loading

        begin_loading(config, tuple(overrides or ()), resume)
        from echelon.cli.running import RunArguments, execute

        code = execute(
            RunArguments(
                config=config,
                out=out,
                overrides=tuple(overrides or ()),
                resume=resume,
                as_json=as_json,
                quiet=quiet,
                start=start,
                begun=begun,
            )
        )
    raise typer.Exit(code)
