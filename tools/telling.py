"""How the commands of benchmarks and tools end: 0, or 1 with the reason on stderr."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence

from echelon.errors import EchelonError


def telling(command: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """A command line as a function that returns an exit code.

    Args:
        command: takes arguments, None for those of the process, and raises an `EchelonError` when something could not
            be had or does not hold. Other exceptions are faults of ours, and go on.

    Returns:
        The same with an exit code: 1 when such an error was told on stderr, else 0.
    """

    @functools.wraps(command)
    def main(arguments: Sequence[str] | None = None) -> int:
        try:
            command(arguments)
        except EchelonError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        return 0

    return main
