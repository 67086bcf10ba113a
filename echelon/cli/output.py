"""What every command shares: exit codes, how errors are shown, and how numbers are written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.errors import ConfigError, EchelonError
from echelon.unforeseen import disk_full

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

FAILED = 1
"""A finding, or a run that failed."""
USAGE = 2
"""Wrong usage or configuration."""

PassphraseOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="File with the passphrase that private keys are encrypted with; nobody else may read it.",
        show_default=False,
    ),
]
StartOption = Annotated[
    str | None,
    typer.Option(
        "--from",
        help="Start from the adapter of a finished run, or of a folder in PEFT's format.",
        metavar="RUN_OR_ADAPTER",
        show_default=False,
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="SECONDS",
        min=0.0,
        help="How long a broker that is away or slow is tried again.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Machine-readable output.")]


def show_error(message: str) -> None:
    """Print an error on stderr: plain and in one line where nobody watches, red and between words on a terminal."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        prose(Console(stderr=True), Text.assemble(("error: ", "bold red"), message))
        return
    typer.echo(f"error: {message}", err=True)


def prose(console: Console, text: Text | str) -> None:
    """Print a sentence: broken between words on a terminal, and in one line elsewhere, where programs look for it.

    Args:
        console: where to.
        text: the sentence, printed as it is, without rich's markup.
    """
    console.print(text, soft_wrap=not console.is_terminal, markup=False, highlight=False)


@contextmanager
def guarded() -> Iterator[None]:
    """Errors that Echelon raises on purpose become a message and an exit code; for others see `echelon.cli.main`."""
    try:
        yield
    except ConfigError as error:
        full = disk_full(error)
        show_error(full or str(error))
        raise typer.Exit(FAILED if full else USAGE) from None
    except EchelonError as error:
        show_error(disk_full(error) or str(error))
        raise typer.Exit(FAILED) from None


def print_json(value: object) -> None:
    """Print a value as indented JSON on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def count(number: float) -> str:
    """A count in at most five characters: 950, 9.5k, 95k, 1.2M."""
    if number < 1000:
        return f"{number:.0f}"
    for unit in ("k", "M", "G", "T"):
        number /= 1000
        if number < 999.5:
            return f"{number:.1f}{unit}" if number < 9.95 else f"{number:.0f}{unit}"
    return f"{number:.0f}P"


def duration(seconds: float) -> str:
    """Seconds as 0:05, 12:34 or 1:02:03."""
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d}"
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def change(first: float, last: float) -> str:
    """The change from one loss to another in percent, with its sign; – where there is none to tell."""
    if first == 0:
        return "–"
    percent = (last - first) / first * 100
    return f"{percent:+.1f} %".replace("-", "−")
