"""The command tree. Commands import what they need when they run, so that help and listings start at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from echelon import __version__
from echelon.cli import keys, push, runs, services, shards, sim, split, topics
from echelon.cli.check import check_command
from echelon.cli.deploy import deploy_command
from echelon.cli.evaluate import evaluate_command
from echelon.cli.export import export_command
from echelon.cli.init import init_command
from echelon.cli.report import report_command
from echelon.cli.run import run_command
from echelon.cli.settings import settings_command

if TYPE_CHECKING:
    from typer._click import Command


class AuditCommands(TyperGroup):
    """The commands of `echelon audit`, imported when one of them, or their help, is asked for."""

    def _loaded(self) -> Mapping[str, Command]:
        if not self.commands:
            from echelon.cli.audit import app as audit
            from echelon.cli.audit_open import app as opening

            audit.add_typer(opening)
            group = typer.main.get_command(audit)
            assert isinstance(group, TyperGroup)
            self.commands = group.commands
        return self.commands

    def list_commands(self, ctx: Any) -> list[str]:
        """Their names."""
        return list(self._loaded())

    def get_command(self, ctx: Any, cmd_name: str) -> Command | None:
        """The one of that name."""
        return self._loaded().get(cmd_name)


app = typer.Typer(
    name="echelon",
    no_args_is_help=True,
    add_completion=True,  # `echelon --install-completion`, for the shell in use
    pretty_exceptions_enable=False,  # a pretty traceback shows local variables, and keys may be among them
    help="Adapt one language model across privacy boundaries; only securely aggregated sums leave one.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"echelon {__version__}")
        raise typer.Exit


@app.callback()
def _echelon(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Adapt one language model across privacy boundaries; only securely aggregated sums leave one."""


app.command("init")(init_command)
app.command("run")(run_command)
app.command("check")(check_command)
app.command("settings")(settings_command)
app.command("deploy")(deploy_command)
services.register(app)
app.add_typer(
    typer.Typer(
        cls=AuditCommands,
        no_args_is_help=True,
        help="Check an exchange offline: every claim, from its topics alone.",
    ),
    name="audit",
)
app.command("export")(export_command)
app.command("evaluate")(evaluate_command)
app.add_typer(push.app)
app.command("report")(report_command)
app.add_typer(topics.app)
app.add_typer(runs.app)
app.add_typer(shards.app)
app.add_typer(split.app)
app.add_typer(keys.app)
app.add_typer(sim.app)
