"""`echelon topics`: the catalogue of topics, and brokers that have it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import FAILED, JsonOption, WaitOption, guarded, print_json
from echelon.cli.trimming import trim_command

if TYPE_CHECKING:
    from echelon.provision.kafka import TopicDrift

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config", "-c", help="Which broker, and for whom: topics.yaml of a deployment.", show_default=False
    ),
]

app = typer.Typer(
    name="topics", no_args_is_help=True, help="The catalogue of topics, and brokers that have it."
)


@app.callback()
def _topics() -> None:
    """The catalogue of topics, and brokers that have it."""


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


@app.command("apply")
def apply_command(
    config: ConfigOption,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Also change settings back, add partitions, and remove rules that should not be there.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")
    ] = False,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Create the topics and access rules that a broker lacks, as break-glass. It may be repeated.

    No topic is ever deleted. Exits with 1 when a difference is left that this does not mend.
    """
    with guarded():
        from echelon.provision.kafka import apply, load_scope

        scope = load_scope(config)
        found = apply(scope, repair=repair, dry_run=dry_run, patience=wait)
        if as_json:
            print_json(
                {
                    "broker": scope.broker.url,
                    "dry_run": dry_run,
                    "done": [_plain(drift) for drift in found.done],
                    "left": [_plain(drift) for drift in found.left],
                }
            )
        else:
            done = "would be done" if dry_run else "done"
            if found.done:
                _table(_rules_counted(found.done))
            if found.left:
                typer.echo()
                _table(found.left)
            typer.echo(f"{scope.broker.url}: {len(found.done)} {done}, {len(found.left)} left")
        if found.left:
            raise typer.Exit(FAILED)


@app.command("check")
def check_command(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List every difference of a broker from the catalogue: topics, their settings, access rules.

    Operator, auditor and break-glass may look. Exits with 1 when there is a difference.
    """
    with guarded():
        from echelon.provision.kafka import check, load_scope

        scope = load_scope(config)
        found = check(scope)
        if as_json:
            print_json({"broker": scope.broker.url, "drift": [_plain(drift) for drift in found]})
        else:
            if found:
                _table(found)
            number = {0: "no drift", 1: "1 difference"}.get(len(found), f"{len(found)} differences")
            typer.echo(f"{scope.broker.url}: {number}")
            if scope.authorizer is None:
                typer.echo(
                    "access rules were not looked at: `authorizer: null` says that others decide on access"
                )
        if found:
            raise typer.Exit(FAILED)


app.command("trim")(trim_command)


def _plain(drift: TopicDrift) -> dict[str, str]:
    return {
        "kind": drift.kind.value,
        "subject": drift.subject,
        "wanted": drift.wanted,
        "found": drift.found,
        "remedy": drift.remedy.value,
    }


def _rules_counted(drifts: Iterable[TopicDrift]) -> list[TopicDrift]:
    """The same with one line for all new rules of a principal: a new broker gets hundreds."""
    from echelon.provision.kafka import Kind, Remedy, TopicDrift

    lines: list[TopicDrift] = []
    counts: dict[str, int] = {}
    for drift in drifts:
        if drift.kind is Kind.RULE_MISSING and drift.binding is not None:
            principal = drift.binding.rule.principal
            counts[principal] = counts.get(principal, 0) + 1
        else:
            lines.append(drift)
    return lines + [
        TopicDrift(Kind.RULE_MISSING, f"of {principal}", f"{number} rules", "none", Remedy.APPLY)
        for principal, number in sorted(counts.items())
    ]


def _table(drifts: Iterable[TopicDrift]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("what", "which", "wanted", "found", "remedy"):
        table.add_column(heading, overflow="fold")
    for drift in drifts:
        row = (drift.kind.value, drift.subject, drift.wanted, drift.found, drift.remedy.value)
        table.add_row(*(Text(cell) for cell in row))
    Console(highlight=False).print(table)
