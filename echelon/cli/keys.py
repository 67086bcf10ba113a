"""`echelon keys`: identities and the signed rosters."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.key_changes import revoke_command, rotate_command
from echelon.cli.output import JsonOption, PassphraseOption, guarded, print_json

if TYPE_CHECKING:
    from echelon.config.run import RunSettings

app = typer.Typer(name="keys", no_args_is_help=True, help="Identities and the signed rosters.")


@app.callback()
def _keys() -> None:
    """Identities and the signed rosters."""


@app.command("init")
def init_command(
    config: Annotated[
        Path, typer.Argument(help="Run file that names boundaries and devices.", show_default=False)
    ],
    folder: Annotated[Path, typer.Argument(help="New folder for the keys.", show_default=False)],
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make every key of a federation and enrol the devices: one file per key, and who must hold it."""
    with guarded():
        from echelon.config.run import load
        from echelon.passphrase import read_optional
        from echelon.provision.identities import Identities

        settings = load(config)
        passphrase = read_optional(passphrase_file)
        Identities.create(settings, os.urandom).save(folder, passphrase)
        rows = holders(settings)
        if as_json:
            print_json([{"file": file, "holder": holder, "for": use} for file, holder, use in rows])
            return

        from rich import box
        from rich.console import Console
        from rich.table import Table

        table = Table(
            box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim"
        )
        table.add_column(" file", no_wrap=True)
        table.add_column("who must hold it, alone")
        table.add_column("what it is for")
        for file, holder, use in rows:
            table.add_row(f" {file}", holder, use, style="bold" if file.endswith("gate-exchange.pem") else "")
        console = Console(highlight=False)
        console.print(table)
        console.print(f"\n {len(rows)} files in {folder}", soft_wrap=True)
        how = "not encrypted" if passphrase is None else "encrypted with one passphrase"
        console.print(f" Private keys are {how}: move each to its holder, and delete it here.")
        console.print(" Rosters are public: devices pin them.")


app.command("rotate")(rotate_command)
app.command("revoke")(revoke_command)


def holders(settings: RunSettings) -> list[tuple[str, str, str]]:
    """(file, holder, purpose) of every file that `Identities.save` writes."""
    rows = [
        ("operator.pem", "operator of the federation", "signs the run manifest"),
        ("controller.pem", "controller", "signs the exchange's global topic"),
    ]
    rows += [
        (f"_witnesses/{name}.pem", f"witness {name}", "signs cosignatures")
        for name in settings.witnesses.names
    ]
    for boundary in settings.boundaries:
        name = boundary.name
        rows += [
            (f"{name}/enrolment.pem", f"operator of {name}, offline", "signs the roster"),
            (f"{name}/roster.bin", f"everybody in {name}", "public: the devices' keys and slots"),
            (f"{name}/aggregator.pem", f"aggregator of {name}", "signs boundary records"),
            (f"{name}/gate.pem", f"gate of {name}", "signs boundary records"),
            (f"{name}/gate-exchange.pem", f"gate of {name}", "signs what crosses the boundary"),
            (f"{name}/gate-witness.pem", f"gate of {name}", "signs cosignatures of others' logs"),
        ]
        rows += [
            (f"{name}/devices/{device.id}.pem", f"device {device.id}", "signs boundary records")
            for device in boundary.device_list()
        ]
    return rows
