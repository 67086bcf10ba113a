"""The command line in a process where importing torch or transformers is an error."""

from __future__ import annotations

import sys


def main() -> None:
    for name in ("torch", "transformers", "peft"):
        sys.modules[name] = None  # type: ignore[assignment]
    from echelon.cli import main as echelon

    echelon()
