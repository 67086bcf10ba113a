"""`python -m bench contest`: run a tier of the contest, and write its page."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import FAILED, USAGE, guarded

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,  # as the command line has it
)

RESULTS = Path("bench/results/contest")


@app.command()
def contest_command(
    tier: Annotated[
        str, typer.Option(help="ci, small or full: how large; gpu: throughput on an accelerator.")
    ] = "ci",
    results: Annotated[
        Path, typer.Option(help="Cost model, data manifest, choices; raw figures too unless --out is given.")
    ] = RESULTS,
    out: Annotated[
        Path | None, typer.Option(help="Where raw figures go. Default: --results.", show_default=False)
    ] = None,
    docs: Annotated[
        Path | None,
        typer.Option(help="Where the page goes. Default: docs, or --out if given.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes. Default: one per core.", show_default=False)
    ] = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            help="Only the runs of this table (T1, primary, T2, …); may be repeated.", show_default=False
        ),
    ] = None,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure the cost model anew, and end.")
    ] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="Run the tier's trials, whatever is committed, and end.")
    ] = False,
    validate: Annotated[
        bool, typer.Option("--validate", help="Run on real sockets, compare the times, and write the page.")
    ] = False,
    page: Annotated[bool, typer.Option("--page", help="Only write the page from what is there.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Run every arm under every condition of a tier, and write tables and plots. Runs that are there are not repeated.

    Exit codes: 0 good; 1 runs failed; 2 wrong usage or configuration.
    """
    if tier == "gpu":
        raise typer.Exit(_throughput())
    with guarded():
        from bench.contest.contest import Contest, cores

        def tell(text: str) -> None:
            if not quiet:
                typer.echo(text, err=True)

        only = tuple(table) if table else None
        contest = Contest(tier, results, out or results, workers or cores(), tell=tell, only=only)
        place = docs or (Path("docs") if out is None else out)
        if calibrate:
            tell(str(contest.calibrate()["rates"]))
            return
        failures = []
        if validate:
            from bench.contest.validate import validate_tier

            validate_tier(contest)
        elif tune:
            failures = contest.tune_only()
        elif not page:
            failures = contest.run()
        if not tune and contest.tuned:
            files = contest.page(place)
            tell(f"written: {', '.join(str(place / name) for name in sorted(files))}")
        for failure in failures:
            typer.echo(f"{failure.job.arm} in {failure.job.cell.name}: {failure.why}", err=True)
    if failures:
        raise typer.Exit(FAILED)


def _throughput() -> int:
    """The GPU tier is a benchmark of the checkout: arms have nothing to do with it."""
    if not Path("bench/gpu.py").is_file():
        typer.echo("the gpu tier is `python -m bench gpu` of a checkout: run it in one", err=True)
        return USAGE
    return subprocess.run([sys.executable, "-m", "bench", "gpu"], check=False).returncode


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with these arguments, or with those of the process; it ends by SystemExit."""
    os.environ.setdefault(
        "OPENBLAS_NUM_THREADS", "1"
    )  # as the command line does; read when numpy is imported
    app(args=None if arguments is None else list(arguments), prog_name="python -m bench contest")


if __name__ == "__main__":
    main()
