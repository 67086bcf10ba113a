"""`echelon topics`: the catalogue of topics."""

from __future__ import annotations

import typer

from echelon.cli.output import JsonOption, guarded, print_json

app = typer.Typer(name="topics", no_args_is_help=True, help="The catalogue of topics.")


@app.callback()
def _topics() -> None:
    """The catalogue of topics."""


@app.command("list")
def list_command(as_json: JsonOption = False) -> None:
    """List every topic: who writes, who reads, and what crosses the boundary."""
    with guarded():
        from echelon.topics import Plane, load_catalogue

        catalogue = load_catalogue()
        if as_json:
            print_json(
                [
                    {"plane": plane.value, **topic.model_dump(mode="json")}
                    for plane in Plane
                    for topic in catalogue.plane(plane).topics
                ]
            )
            return

        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console(highlight=False)
        for plane in Plane:
            table = Table(
                title=Text(f" {plane.value} plane", style="bold"),
                title_justify="left",
                box=box.SIMPLE_HEAD,
                padding=(0, 1),
                pad_edge=False,
                show_edge=False,
                header_style="dim",
            )
            table.add_column(" topic", no_wrap=True)
            table.add_column("writes → reads", max_width=32)
            table.add_column("carries")
            for topic in catalogue.plane(plane).topics:
                who = (
                    f"{', '.join(role.value for role in topic.writers)} → "
                    f"{', '.join(role.value for role in topic.readers)}"
                )
                name, style = Text(f" {topic.name}"), ""
                if topic.crosses_boundary:
                    name, style = Text(f"▶{topic.name}"), "bold yellow"
                table.add_row(name, who, topic.carries, style=style)
            console.print(table)
            if plane is Plane.BOUNDARY:
                console.print(
                    "▶ crosses the boundary, mirrored by the gate. Nothing else does.", style="bold yellow"
                )
                console.print()
