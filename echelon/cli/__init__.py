"""The command line, one file per group of commands."""

from __future__ import annotations


def main() -> None:
    """The console script `echelon`."""
    from echelon.cli.app import app

    app()
