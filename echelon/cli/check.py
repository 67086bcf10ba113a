"""`echelon check`: what a run file would meet, before anything is trained, and everything that is wrong in one list."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import USAGE, JsonOption, guarded


def check_command(
    config: Annotated[Path, typer.Argument(help="Run file.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.B=VALUE", help="Change one setting; may be repeated.", show_default=False
        ),
    ] = None,
    brokers: Annotated[
        Path | None,
        typer.Option(help="Broker map of a deployment: its addresses are checked, too.", show_default=False),
    ] = None,
    data: Annotated[
        bool, typer.Option("--data/--no-data", help="Whether the boundaries' data is here to be read.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Read the data, the model's files, the rules and the brokers of a run file, and say all that is wrong.

    Nothing is trained or written, and weights are not loaded. Large sources are read whole, in little memory.

    Exit codes: 0 good; 2 something is wrong.
    \f
    Args:
        config: the run file.
        overrides: changes of single settings.
        brokers: the broker map of a deployment.
        data: whether data is read.
        as_json: print one document.
    """
    with guarded():
        from echelon.cli.checking import show_check

        good = show_check(config, tuple(overrides or ()), brokers=brokers, data=data, as_json=as_json)
    raise typer.Exit(0 if good else USAGE)
