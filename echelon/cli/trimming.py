"""`echelon topics trim`: deleting inputs of old windows, as far as the run's signed terms allow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, guarded, print_json

if TYPE_CHECKING:
    from echelon.provision.trimming import TrimPlan


def trim_command(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="topics.yaml of a boundary's admin folder.", show_default=False),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--run", help="Folder of an embedded run, in place of --config.", show_default=False),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(
            "--manifest", help="The signed run manifest; by default beside topics.yaml.", show_default=False
        ),
    ] = None,
    roster: Annotated[
        Path | None,
        typer.Option(
            "--roster",
            help="The boundary's signed roster; by default beside topics.yaml.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Delete it. Without this, say what would be deleted.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Delete inputs of old windows from a boundary's broker, as break-glass. Nothing brings them back.

    Up to a snapshot of the gate, and only where the run's terms have retention.windows. Without --yes nothing changes.
    """
    with guarded():
        from echelon.errors import ConfigError

        if (config is None) == (folder is None):
            raise ConfigError(
                "give --config FILE for a Kafka broker, or --run DIR for an embedded run: one of them"
            )
        if folder is not None and (manifest is not None or roster is not None):
            raise ConfigError("--manifest and --roster go with --config: a run folder has its own")
        plans = _of_broker(config, manifest, roster, yes) if config else _of_folder(folder or Path(), yes)
        if as_json:
            print_json([_plain(one, yes) for one in plans])
        else:
            for one in plans:
                _print(one, yes)


def _of_broker(config: Path, manifest: Path | None, roster: Path | None, yes: bool) -> list[TrimPlan]:
    import asyncio

    from echelon.bus import open_bus
    from echelon.errors import ConfigError
    from echelon.provision.deployment import MANIFEST_FILE
    from echelon.provision.identities import ROSTER_FILE
    from echelon.provision.kafka import Scope, load_scope
    from echelon.provision.kafka.trim import delete_records
    from echelon.provision.trimming import plan, signed_terms
    from echelon.topics import Plane

    scope: Scope = load_scope(config)
    if scope.plane is not Plane.BOUNDARY:
        raise ConfigError(
            f"{config}: nothing on the exchange is trimmed, since every auditor replays all of it"
        )
    if not scope.broker.url.startswith("kafka://"):
        raise ConfigError(
            f"{config}: {scope.broker.url} is no Kafka broker: give --run DIR for an embedded run"
        )
    terms = signed_terms(
        manifest or config.parent / MANIFEST_FILE,
        roster or config.parent / ROSTER_FILE,
        scope.manifest_sha256,
    )

    async def find() -> TrimPlan:
        async with await open_bus(scope.broker.url, security=scope.broker.security, read_only=True) as bus:
            return await plan(bus, *terms)

    found = asyncio.run(find())
    if yes:
        delete_records(scope.broker, scope.run, found.cuts)
    return [found]


def _of_folder(folder: Path, yes: bool) -> list[TrimPlan]:
    import asyncio

    from echelon.bus import open_bus, sqlite_url
    from echelon.errors import ConfigError
    from echelon.provision.trimming import plan, signed_terms, trim
    from echelon.run.folder import MANIFEST_FILE
    from echelon.sources.boundary import places

    async def of(source: str, roster: Path) -> TrimPlan:
        terms = signed_terms(folder / "state" / MANIFEST_FILE, roster)
        async with await open_bus(sqlite_url(Path(source)), read_only=not yes) as bus:
            found = await plan(bus, *terms)
            if yes:
                await trim(bus, found.cuts)
            return found

    if not (folder / "brokers").is_dir():
        raise ConfigError(f"--run {folder}: no folder of an embedded run: it has no brokers/")
    return [asyncio.run(of(place.source, place.roster)) for place in places(str(folder), None)]


def _print(found: TrimPlan, yes: bool) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from echelon.units import size

    if found.snapshot is None or not found.cuts:
        why = (
            ""
            if found.snapshot is not None
            else f": no snapshot stands behind which {found.kept_windows} are final"
        )
        typer.echo(f"{found.boundary}: nothing to trim{why}")
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_edge=False, header_style="dim")
    for heading in ("topic", "partition", "from offset", "to offset", "records", "bytes"):
        table.add_column(heading, justify="left" if heading == "topic" else "right")
    for cut in found.cuts:
        numbers = (cut.at.partition, cut.first, cut.before - 1, cut.records)
        table.add_row(cut.at.topic, *map(str, numbers), size(cut.bytes))
    Console(highlight=False).print(table)
    total = size(sum(cut.bytes for cut in found.cuts))
    what = "deleted" if yes else "would be deleted; nothing brings it back: add --yes"
    typer.echo(
        f"{found.boundary}: windows before {found.snapshot.window}, {total} {what}. An audit from within derives them "
        f"no more: the gate's snapshot {found.snapshot.payload.sha256.hex()} stands for them"
    )


def _plain(found: TrimPlan, yes: bool) -> dict[str, object]:
    snapshot = found.snapshot
    return {
        "boundary": found.boundary,
        "deleted": yes,
        "windows_before": 0 if snapshot is None else snapshot.window,
        "snapshot_sha256": None if snapshot is None else snapshot.payload.sha256.hex(),
        "cuts": [
            {
                "topic": cut.at.topic,
                "partition": cut.at.partition,
                "first": cut.first,
                "before": cut.before,
                "records": cut.records,
                "bytes": cut.bytes,
            }
            for cut in found.cuts
        ],
    }
