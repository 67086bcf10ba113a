"""`echelon device | edge | aggregator | gate | controller | witness`: one actor as a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import guarded

if TYPE_CHECKING:
    from echelon.services.config import ServiceConfig

ConfigOption = Annotated[
    Path,
    typer.Option(
        "--config",
        help="The service's YAML file; ECHELON_SET_A__B=VALUE overrides its a.b.",
        show_default=False,
    ),
]
CheckOption = Annotated[
    bool, typer.Option("--check", help="Check the configuration and every file that it names, and exit.")
]
EXIT_CODES = "Exit codes: 0 the run was closed, or stopped by a signal; 1 failed; 2 wrong configuration."


def device_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run one device: it takes a free slot, trains on its boundary's data, and joins in secure sums."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import DeviceConfig

        return DeviceConfig

    _serve(kind, config, check)


def edge_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run one edge of a boundary: it trains the middle blocks of devices that hold a part of the model."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import EdgeConfig

        return EdgeConfig

    _serve(kind, config, check)


def aggregator_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run a boundary's aggregator: it opens windows and learns sums, never an update."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import AggregatorConfig

        return AggregatorConfig

    _serve(kind, config, check)


def gate_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run a boundary's gate: it checks, signs and mirrors, and is the only one with two brokers."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import GateConfig

        return GateConfig

    _serve(kind, config, check)


def controller_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run the controller: it merges the boundaries' deltas into the next global adapter."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import ControllerConfig

        return ControllerConfig

    _serve(kind, config, check)


def witness_command(config: ConfigOption, check: CheckOption = False) -> None:
    """Run a witness: it checks that no log of the exchange is rewritten, and cosigns what continues."""

    def kind() -> type[ServiceConfig]:
        from echelon.services.config import WitnessConfig

        return WitnessConfig

    _serve(kind, config, check)


def _serve(kind: Callable[[], type[ServiceConfig]], path: Path, check: bool) -> None:
    with guarded():
        from echelon.cli.logs import quiet_libraries
        from echelon.services.config import load_service

        quiet_libraries()
        config = load_service(kind(), path)
        if check:
            from echelon.services.roles import role_of

            role_of(config).check()
            code = 0
        else:
            from echelon.services.run import run_service

            code = run_service(config)
    raise typer.Exit(code)


def register(app: typer.Typer) -> None:
    """Add the six commands."""
    for name, command in (
        ("device", device_command),
        ("edge", edge_command),
        ("aggregator", aggregator_command),
        ("gate", gate_command),
        ("controller", controller_command),
        ("witness", witness_command),
    ):
        app.command(name, epilog=EXIT_CODES)(command)
