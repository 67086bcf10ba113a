"""The command line in a process that keeps more of its time to stop in for ending itself than a quiet machine needs."""

from __future__ import annotations

import echelon.services.run


def main() -> None:
    echelon.services.run.LAST_SECONDS = 4.0
    from echelon.cli import main as echelon_main

    echelon_main()
