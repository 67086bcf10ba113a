"""`echelon runs`: brokers that several runs share: which are there, ending one, and taking an ended one away."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json
from echelon.cli.topics import ConfigOption

if TYPE_CHECKING:
    from echelon.provision.kafka.purge import RunThere

app = typer.Typer(
    name="runs", no_args_is_help=True, help="Runs that share brokers: list them, end one, purge an ended one."
)


@app.callback()
def _runs() -> None:
    """Runs that share brokers: list them, end one, purge an ended one."""


@app.command("list")
def list_command(config: ConfigOption, as_json: JsonOption = False) -> None:
    """List the runs that a broker holds: their topics, records and access rules, and whether they are closed.

    Operator, auditor and break-glass may look; whether a run is closed is told to who may read its `global`.
    """
    with guarded():
        from echelon.provision.kafka import load_scope
        from echelon.provision.kafka.purge import runs_on

        scope = load_scope(config)
        found = runs_on(scope.broker)
        if as_json:
            print_json([_plain(one) for one in found])
            return
        for one in found:
            mine = "  (this file's)" if one.name == scope.run else ""
            typer.echo(f"{_called(one)}: {one.state}, {_counts(one)}{mine}")
        if not found:
            typer.echo(f"{scope.broker.url}: no run")


@app.command("end")
def end_command(
    config: Annotated[
        Path,
        typer.Option("--config", "-c", help="The controller's service.yaml.", show_default=False),
    ],
) -> None:
    """Close a run now, whatever its budget says: the controller writes the close record, and every service ends.

    Stop the controller first: its state is for one process. Exit codes: 0 the run is closed; 1 failed.
    """
    with guarded():
        from echelon.cli.logs import quiet_libraries
        from echelon.services.config import ControllerConfig, load_service
        from echelon.services.run import run_service

        quiet_libraries()
        code = run_service(load_service(ControllerConfig, config), close=True)
    raise typer.Exit(code)


@app.command("purge")
def purge_command(
    config: ConfigOption,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete it. Without this, say what would be deleted.")
    ] = False,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Also a run that is not known to be closed.")
    ] = False,
) -> None:
    """Delete the run's topics, access rules and group from a broker, as break-glass. Nothing brings them back.

    Keep an export first (`echelon audit export`): nobody can audit a run that is purged. Exit codes: 0 deleted, or
    not there; 2 refused, or nothing was deleted because --yes was not given.
    """
    with guarded():
        from echelon.errors import ConfigError
        from echelon.provision.kafka import load_scope
        from echelon.provision.kafka.purge import purge, runs_on

        scope = load_scope(config)
        found = next((one for one in runs_on(scope.broker) if one.name == scope.run), None)
        if found is None:
            typer.echo(f"{scope.broker.url}: nothing of this run is there")
            return
        if found.state in ("open", "not told") and not unfinished:
            raise ConfigError(
                f"{_called(found)} is not closed: end it first (`echelon runs end`), or add --unfinished"
            )
        if not yes:
            raise ConfigError(
                f"{_called(found)} would be deleted with {_counts(found)}, and nothing brings it back: add --yes"
            )
        purge(scope.broker, found)
        typer.echo(f"{_called(found)} is deleted: {_counts(found)}")


def _called(one: RunThere) -> str:
    return f"run {one.name}" if one.name else "the run without a name"


def _counts(one: RunThere) -> str:
    return f"{len(one.topics)} topics, {one.records} records, {len(one.rules)} access rules"


def _plain(one: RunThere) -> dict[str, object]:
    return {
        "run": one.name,
        "state": one.state,
        "topics": list(one.topics),
        "records": one.records,
        "rules": len(one.rules),
    }
