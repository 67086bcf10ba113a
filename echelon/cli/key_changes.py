"""`echelon keys rotate | revoke`: statements that change a signing key of the exchange while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from echelon.cli.output import JsonOption, PassphraseOption, guarded, print_json

if TYPE_CHECKING:
    from echelon.laws.keys import Actor
    from echelon.messages.envelope import Signer
    from echelon.messages.manifest import RunManifest
    from echelon.passphrase import Passphrase

ActorArgument = Annotated[
    str,
    typer.Argument(
        help="Whose key: controller, BOUNDARY.gate (what crosses), BOUNDARY.witness or NAME.witness.",
        show_default=False,
    ),
]
ManifestOption = Annotated[
    Path, typer.Option("--manifest", help="The signed run manifest.", show_default=False)
]
ChangesOption = Annotated[
    Path,
    typer.Option(
        "--changes",
        help="Folder of all changes of keys of this run so far; the new one is written there, too.",
        show_default=False,
    ),
]
NewOption = Annotated[
    Path | None,
    typer.Option(
        "--new", help="File of the key that follows; it is made if it is not there.", show_default=False
    ),
]


def rotate_command(
    actor: ActorArgument,
    manifest: ManifestOption,
    changes: ChangesOption,
    key: Annotated[Path, typer.Option("--key", help="The present key.", show_default=False)],
    new: NewOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand an actor's signing key on to a new one. The present key signs that.

    Give the written file to the controller and to the actor's service (their folder `key-changes`), and the new key to
    the service; it signs with it once it is started again.
    """  # fmt: skip
    with guarded():
        from echelon.errors import ConfigError

        if new is None:
            raise ConfigError("--new: name the file of the key that follows; it is made if it is not there")
        keys = _KeyFiles(key, new, passphrase_file)
        _write("key.next", actor, manifest, changes, keys=keys, as_json=as_json)


def revoke_command(
    actor: ActorArgument,
    manifest: ManifestOption,
    changes: ChangesOption,
    operator_key: Annotated[
        Path,
        typer.Option(
            "--operator-key", help="The operator's key, which signed the manifest.", show_default=False
        ),
    ],
    new: NewOption = None,
    passphrase_file: PassphraseOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a signing key that was lost or stolen. The operator signs that; without --new the actor gets no other key.

    Give the written file to the controller, whose record on `global` ends the key, and to the actor's service.
    """  # fmt: skip
    with guarded():
        keys = _KeyFiles(operator_key, new, passphrase_file)
        _write("key.end", actor, manifest, changes, keys=keys, as_json=as_json)


@dataclass(frozen=True)
class _KeyFiles:
    """The files of the key that signs and of the key that follows, and of the passphrase of both."""

    author: Path
    new: Path | None
    passphrase: Path | None


def _write(
    kind: str,
    name: str,
    manifest: Path,
    folder: Path,
    *,
    keys: _KeyFiles,
    as_json: bool,
) -> None:
    """Make the statement, check it as its readers will, and write it."""
    from echelon.config.reading import read_file
    from echelon.errors import ConfigError
    from echelon.laws.keys import Keys
    from echelon.messages.envelope import Signer, key_id
    from echelon.messages.keys import StatementFile, state_change
    from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest
    from echelon.messages.wire import Refused
    from echelon.passphrase import read_optional
    from echelon.provision.identities import read_key
    from echelon.provision.pki import write_public
    from echelon.services.key_changes import SUFFIX, read_changes

    passphrase = read_optional(keys.passphrase)
    author = Signer(read_key(keys.author, passphrase, "--passphrase-file"))
    sealed = read_file(manifest, "run manifest", 2 * MAX_MANIFEST_BYTES, advice="Name it with --manifest")
    terms = RunManifest.open(sealed)
    actor = actor_of(name, terms)
    standing = Keys.of(terms).stated((one.change, one.statement()) for one in read_changes(folder))
    line = standing.line(actor)
    statement = state_change(
        kind,
        run=terms.run_id,
        actor=actor,
        number=len(line),
        former=line[-1].public,
        following=None if keys.new is None else _following(keys.new, passphrase),
        author=author,
    )
    try:
        standing.check(kind, statement)
    except Refused as error:
        raise ConfigError(
            f"{name}: {error.detail}. Give the right key, and with --changes the folder of all earlier changes"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / f"{name}-{statement.number}{SUFFIX}"
    if place.exists():
        raise ConfigError(
            f"{place} is there already, and does not follow the others: look at it, and move it away"
        )
    write_public(place, StatementFile.of(kind, statement).encode())
    following = "" if keys.new is None else key_id(statement.public)
    if as_json:
        print_json(
            {
                "change": kind,
                "actor": name,
                "number": statement.number,
                "former": key_id(statement.former),
                "following": following or None,
                "file": str(place),
            }
        )
        return
    typer.echo(f"{place}: {kind} number {statement.number} of {name}, key {key_id(statement.former)}")
    typer.echo(f"followed by key {following}, {keys.new}" if following else "followed by no key")


def _following(path: Path, passphrase: Passphrase | None) -> Signer:
    """The key that follows: from its file, or a new one that is written there."""
    import os

    from echelon.messages.envelope import Signer
    from echelon.private import create_private
    from echelon.provision.identities import key_pem, read_key

    if not path.exists():
        create_private(path, key_pem(os.urandom(32), passphrase))
    return Signer(read_key(path, passphrase, "--passphrase-file"))


def actor_of(name: str, manifest: RunManifest) -> Actor:
    """The actor of the exchange that a name stands for.

    Raises:
        ConfigError: the run has none of that name.
    """
    from echelon.errors import ConfigError
    from echelon.laws.keys import CONTROLLER, gate_of_place
    from echelon.messages.keys import KeyRole
    from echelon.messages.names import gate_of, witness_of

    actors = {"controller": CONTROLLER}
    actors |= {gate_of(terms.name): gate_of_place(place) for place, terms in enumerate(manifest.boundaries)}
    actors |= {
        witness_of(terms.name): (KeyRole.WITNESS, place) for place, terms in enumerate(manifest.witnesses)
    }
    if name not in actors:
        raise ConfigError(
            f"{name}: no key of the exchange in this run; there are {', '.join(actors)}. Keys of a boundary's roster "
            "are changed by a new run"
        )
    return actors[name]
