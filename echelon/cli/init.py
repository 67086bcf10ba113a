"""`echelon init`: a commented run file for data that is there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import guarded


def init_command(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DATA]...",
            help="Data, one boundary each: a file, a folder or a pattern in quotes, of text, JSONL, CSV or Parquet. "
            "None: a demo on the standard library's sources.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The run file to write.")] = Path("run.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            help="Hugging Face id or path of the model. Default: the one that ships.", show_default=False
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the run. Default: the file's.", show_default=False)
    ] = None,
) -> None:
    """Write a commented run file for your data, and check it.

    Looks at what the data is and which fields its rows have. Asks nothing, and overwrites nothing.

    Exit codes: 0 written; 2 nothing was written, and why.
    \f
    Args:
        places: the data of each boundary.
        out: the run file.
        model: the model.
        name: the run's name.
    """
    with guarded():
        from echelon.cli.initialising import write_run_file

        write_run_file(places or (), out, model=model, name=name)
