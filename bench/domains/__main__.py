"""Six domains for the contest: text out of packages, cleaned, without duplicates, split by document.

python -m bench.domains prepare FOLDER        fetch packages, write FOLDER/text and its manifest
python -m bench.domains check FOLDER          compare the text with the committed manifest
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.domains.prepare import check, prepare
from bench.harness.results import read_json, write_json
from echelon.errors import ConfigError, EchelonError

RESULTS = Path(__file__).resolve().parents[1] / "results" / "domains"
MANIFEST = RESULTS / "manifest.json"
TEXT = "text"


def tell(text: str) -> None:
    """Progress; figures go to stdout."""
    print(text, file=sys.stderr, flush=True)


def _prepare(options: argparse.Namespace) -> None:
    manifest = prepare(options.folder / TEXT, tell)
    if options.commit:
        write_json(MANIFEST, manifest)
    for name, one in manifest["sets"].items():
        counts = ", ".join(f"{split} {said['documents']}" for split, said in one["splits"].items())
        tell(f"{name}: documents {counts}")


def _check(options: argparse.Namespace) -> None:
    wrong = check(options.folder / TEXT, read_json(MANIFEST, "the domains' manifest"))
    if wrong:
        raise ConfigError(f"not as {MANIFEST.name} has it: {', '.join(wrong)}; make {TEXT} anew")
    tell("the text is that of the manifest")


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.domains",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    made = {}
    for name, run, about in (
        ("prepare", _prepare, "fetch packages and write text"),
        ("check", _check, "compare the text with what is committed"),
    ):
        made[name] = commands.add_parser(name, help=about)
        made[name].add_argument("folder", type=Path)
        made[name].set_defaults(run=run)
    made["prepare"].add_argument("--commit", action="store_true", help="write the manifest's copy, too")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """0; 1 with the reason on stderr when something could not be had or does not hold."""
    options = options_of(arguments)
    try:
        options.run(options)
    except EchelonError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
