"""`echelon init`, behind its arguments: look, draft, check, and write."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from echelon.cli.checking import show, watched
from echelon.cli.logs import quiet_libraries
from echelon.cli.output import prose
from echelon.config.reading import load_yaml
from echelon.config.run import parse
from echelon.errors import ConfigError, StorageError
from echelon.preflight.check import check
from echelon.preflight.drafting import DEMO, draft
from echelon.preflight.looking import look_at


def write_run_file(places: Sequence[str], out: Path, *, model: str | None, name: str | None) -> None:
    """Write a run file for data, and show what a check finds.

    Args:
        places: the data of each boundary; none: a demo.
        out: the file, which is not there yet.
        model: the model; None: the one that ships.
        name: the run's name; None: of the file's.

    Raises:
        ConfigError: the file is there already, or a run with this data would be wrong; the message says why, and
            nothing was written.
    """
    if out.exists() or out.is_symlink():
        raise ConfigError(f"{out} is there already, and is not overwritten: name another file with --out")
    looks = [look_at(place) for place in places] or list(DEMO)
    text = draft(looks, out, name=name, model=model)
    fields = load_yaml(text, "the run file")
    if not isinstance(fields, dict):
        raise ConfigError("the run file is not a map of settings")
    settings = parse(fields, "the run file that would be written")
    quiet_libraries()
    with watched() as watch:
        found = check(settings, watch=watch)
    if found.faults:
        lines = "\n".join(f"  {fault.where}: {fault.message}" for fault in found.faults)
        raise ConfigError(f"nothing was written: a run with this data would not start:\n{lines}")
    try:
        with out.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(
            f"{out} is there already, and is not overwritten: name another file with --out"
        ) from None
    except OSError as error:
        raise StorageError(
            f"{out} cannot be written: {error.strerror}. Name another place with --out"
        ) from error
    console = Console(highlight=False)
    show(console, settings, found)
    console.print()
    for boundary, look in zip(settings.boundaries, looks, strict=True):
        prose(console, Text.assemble(" ", (boundary.name, "bold"), f": {look.form}"))
        for note in look.notes:
            prose(console, Text(f" {boundary.name}: {note}", style="yellow"))
    prose(console, Text.assemble(" written: ", (str(out), "bold")))
    prose(console, Text(f" look through it, then: echelon run {out}", style="dim"))
