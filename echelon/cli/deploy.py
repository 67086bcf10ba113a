"""`echelon deploy`: the folders of every service of a federation, made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, PassphraseOption, StartOption, guarded, print_json

if TYPE_CHECKING:
    from echelon.passphrase import Passphrase
    from echelon.provision.deployment import Deployment

ReplicationOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=9,
        show_default=False,
        help="Nodes of each broker's cluster that hold each partition; the broker map may say it for each.",
    ),
]
InsyncOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=9,
        show_default="replication less one",
        help="Nodes that must have a record before it counts as written; with --replication.",
    ),
]
RunNameOption = Annotated[
    str | None,
    typer.Option(
        "--run",
        metavar="NAME",
        show_default=False,
        help="Name that the run's topics carry, so that brokers can hold several runs at once.",
    ),
]


def deploy_command(
    config: Annotated[Path, typer.Argument(help="Run file.", show_default=False)],
    brokers: Annotated[
        Path,
        typer.Option(help="Broker map: URL and certificate authority of every broker.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Folder to make; never overwritten.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="A.B=VALUE", help="Change one setting; may be repeated.", show_default=False
        ),
    ] = None,
    replication: ReplicationOption = None,
    min_insync: InsyncOption = None,
    run: RunNameOption = None,
    start: StartOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make keys, certificates, rosters and the signed run manifest, and one folder for each service.

    Where the broker map names no key of an authority, certificates are not issued: each such folder gets a key
    (tls.key) and a request (tls.csr); put the signed certificate beside them as tls.pem.

    Exit codes: 0 good; 2 wrong configuration.
    """
    with guarded():
        from echelon.cli.parents import load_parent
        from echelon.compute.pool import build_learner, facts_of, spec_of
        from echelon.compute.warm_start import started_from
        from echelon.config.run import load
        from echelon.errors import ConfigError
        from echelon.passphrase import read_optional
        from echelon.preflight.check import check
        from echelon.preflight.findings import together
        from echelon.provision.broker_map import load_brokers
        from echelon.provision.deployment import deploy
        from echelon.wiring.plugins import look_beside, rules_of

        look_beside(config.absolute().parent)
        settings = load(config, tuple(overrides or ()))
        # What the boundaries' data is, only their own devices can see.
        if faults := check(settings, brokers=brokers, data=False).faults:
            raise together(faults, f"{config} and {brokers}")
        passphrase = read_optional(passphrase_file)
        known = load_brokers(brokers)
        if replication is not None:
            known = known.replicated(replication, min_insync)
        elif min_insync is not None:
            raise ConfigError("--min-insync says how many of the nodes of --replication: give both")
        if run is not None:
            known = known.of_run(run)
        facts = facts_of(build_learner(spec_of(settings), settings.learner))
        if start is not None:
            facts = started_from(facts, load_parent(start, rules_of(settings)), settings.model.labels)
        made = deploy(settings, known, out, facts, passphrase=passphrase)
        if as_json:
            print_json(
                {
                    "folder": str(made.folder),
                    "manifest_sha256": made.manifest_sha256,
                    "requests": [str(path) for path in made.requests],
                }
            )
            return
        _show(made, passphrase)


def _show(made: Deployment, passphrase: Passphrase | None) -> None:
    """Say what was made, and what its owners do next."""
    from echelon.provision.broker_map import EXCHANGE, PASSWORD_FILE, TOKEN_FILE

    typer.echo(f"deployment     {made.folder}")
    typer.echo(f"manifest       {made.manifest_sha256}  (every service pins it)")
    witnesses = "".join(f", witnesses/{name}" for name in made.settings.witnesses.names)
    typer.echo(f"exchange       controller{witnesses}, auditor, operator, admin")
    for boundary in made.settings.boundaries:
        slots = len(boundary.device_list())
        edges = "".join(f", edges/{name.partition('.')[2]}" for name in boundary.edge_names())
        typer.echo(
            f"{boundary.name:<14} aggregator, gate, devices ({slots} slots){edges}, auditor, operator, admin"
        )
    if made.requests:
        typer.echo(
            f"\n{len(made.requests)} certificates are to be signed, each beside its request as tls.pem:"
        )
        for path in made.requests:
            typer.echo(f"  {path}")
    for name, entry in made.brokers.entries.items():
        if entry.sasl is not None and entry.sasl.token is None:
            what = TOKEN_FILE if entry.sasl.mechanism == "OAUTHBEARER" else PASSWORD_FILE
            where = f"exchange-{what} in every gate's folder, and {what} in those under {name}"
            typer.echo(
                f"\nClients of {name} log in with {entry.sasl.mechanism}: put files named "
                f"{where if name == EXCHANGE else f'{what} into each folder of {name}'}"
            )
    how = "not encrypted" if passphrase is None else f"encrypted with the passphrase in {passphrase.path}"
    typer.echo(f"\nPrivate keys are {how}: give each folder to its owner, and delete it here.")
    typer.echo("Next, for each broker: echelon topics apply --config .../admin/topics.yaml")
