"""`echelon shards`: the data shards of a boundary, which Kafka spreads over the replicas of its device service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from echelon.cli.output import JsonOption, PassphraseOption, WaitOption, guarded, print_json

app = typer.Typer(
    name="shards", no_args_is_help=True, help="Data shards, which move between replicas of a device service."
)


@app.callback()
def _shards() -> None:
    """Data shards, which move between replicas of a device service."""


@app.command("publish")
def publish_command(
    config: Annotated[
        Path,
        typer.Option(
            "--config",
            "-c",
            help="The boundary's broker, as its operator: topics.yaml of a deployment.",
            show_default=False,
        ),
    ],
    run: Annotated[
        Path | None, typer.Option("--run", help="Run file.", show_default="run.yaml beside CONFIG")
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option("--manifest", help="The run manifest.", show_default="manifest.dsse beside CONFIG"),
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="The enrolment key.", show_default="enrolment.pem beside CONFIG"),
    ] = None,
    passphrase_file: PassphraseOption = None,
    wait: WaitOption = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Publish one signed record for each shard of a boundary's data. It may be repeated.

    Devices that hold a shard wait for its record. What stands there already, and says the same, stays.
    """  # fmt: skip
    with guarded():
        import asyncio
        import logging

        from echelon.bus import open_bus
        from echelon.config.reading import read_file
        from echelon.config.run import load
        from echelon.errors import ConfigError
        from echelon.messages.envelope import Signer
        from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest
        from echelon.passphrase import read_optional
        from echelon.provision.identities import read_key
        from echelon.provision.kafka import load_scope
        from echelon.wiring.shards import patiently, publish_shards, terms_of

        scope = load_scope(config)
        if scope.boundary is None:
            raise ConfigError(
                f"topics file {config} is of the exchange, which has no shards: name a boundary's"
            )
        beside = config.absolute().parent
        place = manifest or beside / "manifest.dsse"
        sealed = read_file(place, "run manifest", 2 * MAX_MANIFEST_BYTES, advice="Name it with --manifest")
        passphrase = read_optional(passphrase_file)
        terms = terms_of(load(run or beside / "run.yaml"), scope.boundary, RunManifest.open(sealed))
        signer = Signer(read_key(key or beside / "enrolment.pem", passphrase, "--passphrase-file"))

        log = logging.getLogger("echelon")

        async def publish() -> list[int]:
            async with await open_bus(scope.broker.url, security=scope.broker.security) as bus:
                return await publish_shards(bus, terms, signer, log)

        published = asyncio.run(patiently(publish, wait, log))
        if as_json:
            print_json({"broker": scope.broker.url, "shards": terms.count, "published": published})
        else:
            there = terms.count - len(published)
            typer.echo(f"{scope.broker.url}: {len(published)} shards published, {there} there already")
