"""What `init` of compose.yaml runs: makes a whole deployment once, and puts each part where one container mounts it.

It plays all owners, for one machine: an authority for each broker, the broker's certificate and `server.properties`,
then `echelon deploy`, whose folders it moves to the places below. Run again, it does nothing; `--renew` issues every
certificate anew from the authorities, and touches no other key.

    FOLDER/owner/                        authorities, run file, manifest and its pin; nobody else mounts it
    FOLDER/brokers/{exchange,NAME}/      server.properties, broker.pem, ca.pem
    FOLDER/{exchange,NAME}/ROLE/         what `echelon deploy` wrote for that role

Exit status: 0 done, 2 something is wrong, and a line says what.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from echelon.config.run import RunSettings, load
from echelon.errors import ConfigError
from echelon.provision.pki import BROKER, Authority
from tools.kafka.properties import Listening, render

OWNER_ID = 1000
"""Uid and gid of every container, the brokers' among them."""
PORT, CONTROLLER_PORT = 9092, 9093
DATA, SECRETS = Path("/var/lib/kafka/data"), Path("/mnt/shared/config")
"""Where a broker's container mounts its log and its folder of FOLDER/brokers."""
EXCHANGE = "exchange"
EXCHANGE_ROLES = ("controller", "auditor", "operator", "admin")
BOUNDARY_ROLES = ("aggregator", "gate", "devices", "auditor", "operator", "admin")
KEPT = ("manifest.dsse", "manifest.sha256", "run.yaml", "brokers.yaml")
DONE = "done"
RENEW_BELOW_DAYS = 60


def say(text: str) -> None:
    """One line for the container's log."""
    print(f"init: {text}", flush=True)


def host_of(broker: str) -> str:
    """The service name under which compose's network knows a broker."""
    return EXCHANGE if broker == EXCHANGE else f"boundary-{broker}"


class Places:
    """The folders that containers mount.

    Args:
        folder: where the volumes are mounted.
        boundaries: their names.
        edges: ids of a boundary's edges, by its name; a boundary without an entry has none.
        witnesses: names of the witnesses that are services of their own.
    """

    def __init__(
        self,
        folder: Path,
        boundaries: tuple[str, ...],
        edges: Mapping[str, tuple[str, ...]] | None = None,
        witnesses: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.edges = dict(edges or {})
        self.witnesses = witnesses
        self.owner = folder / "owner"
        self.brokers = (EXCHANGE, *boundaries)

    @classmethod
    def of(cls, folder: Path, settings: RunSettings) -> Places:
        """Those of a run file."""
        edges = {
            boundary.name: tuple(edge.id for edge in boundary.split.edge_list())
            for boundary in settings.boundaries
            if boundary.split is not None
        }
        names = tuple(boundary.name for boundary in settings.boundaries)
        return cls(folder, names, edges, settings.witnesses.names)

    def broker(self, name: str) -> Path:
        """Of a broker's own files."""
        return self.folder / "brokers" / name

    def roles(self) -> Iterator[tuple[str, str]]:
        """(broker, role) of every folder that `echelon deploy` writes."""
        for broker in self.brokers:
            for role in EXCHANGE_ROLES if broker == EXCHANGE else BOUNDARY_ROLES:
                yield broker, role
            for edge in self.edges.get(broker, ()):
                yield broker, f"edges/{edge}"
            for witness in self.witnesses if broker == EXCHANGE else ():
                yield broker, f"witnesses/{witness}"

    def all(self) -> list[Path]:
        """Every folder that must be a mounted volume."""
        return [
            self.owner,
            *(self.broker(name) for name in self.brokers),
            *(self.folder / broker / role for broker, role in self.roles()),
        ]

    def check(self) -> None:
        """Raises ConfigError where a volume is missing."""
        missing = [str(path) for path in self.all() if not path.is_dir()]
        if missing:
            raise ConfigError(
                f"there is no {missing[0]} ({len(missing)} folders are missing): mount a volume there; the run file "
                f"names the boundaries {', '.join(self.brokers[1:])}, and compose.yaml has volumes for a and b; "
                "edges have theirs in compose.split.yaml"
            )


def become_owner(places: Places) -> None:
    """Started as root: hand over the volumes, which may be new and root's, and be root no longer."""
    if os.geteuid() != 0:
        return
    for path in places.all():
        os.chown(path, OWNER_ID, OWNER_ID)
    os.setgroups([])
    os.setresgid(OWNER_ID, OWNER_ID, OWNER_ID)
    os.setresuid(OWNER_ID, OWNER_ID, OWNER_ID)


def empty(folder: Path) -> None:
    """Remove what an earlier attempt left."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def put(path: Path, content: bytes, mode: int) -> None:
    """Write a file whole or not at all, over an earlier one: whoever reads it sees the old or the new one."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def broker_certificate(authority: Authority, name: str) -> bytes:
    """A new key and certificate of a broker, for the names under which it is reached."""
    return authority.issue(BROKER, [host_of(name), "localhost", "127.0.0.1"])


def make(run: Path, places: Places) -> None:
    """Make everything; the mark that it is done is written last."""
    for path in places.all():
        empty(path)
        path.chmod(0o700)
    entries = {}
    for name in places.brokers:
        authority = Authority.create(f"echelon {host_of(name)}")
        own = places.owner / "authorities" / name
        authority.save(own / "ca.pem", own / "ca-key.pem")
        listening = Listening(
            bind="0.0.0.0",  # the container's own networks
            host=host_of(name),
            port=PORT,
            controller_port=CONTROLLER_PORT,
            data=DATA,
            secrets=SECRETS,
        )
        put(places.broker(name) / "server.properties", render(listening).encode(), 0o644)
        put(places.broker(name) / "ca.pem", authority.pem, 0o644)
        put(places.broker(name) / "broker.pem", broker_certificate(authority, name), 0o600)
        entries[name] = {
            "url": f"kafka://{host_of(name)}:{PORT}",
            "ca": str(own / "ca.pem"),
            "ca_key": str(own / "ca-key.pem"),
        }
        say(f"broker {host_of(name)}: authority, certificate, server.properties")
    brokers = places.owner / "brokers.yaml"
    exchange = entries.pop(EXCHANGE)
    put(brokers, yaml.safe_dump({"exchange": exchange, "boundaries": entries}).encode(), 0o644)

    fresh = places.owner / "deployment"
    subprocess.run(
        [sys.executable, "-m", "echelon", "deploy", str(run), "--brokers", str(brokers), "--out", str(fresh)],
        check=True,
    )
    for broker, role in places.roles():
        target = places.folder / broker / role
        shutil.copytree(fresh / broker / role, target, dirs_exist_ok=True)
        target.chmod(0o700)
    for name in KEPT:
        shutil.copy2(fresh / name, places.owner / name)
    shutil.rmtree(fresh)  # each private key is now in the one volume whose service needs it
    put(places.owner / DONE, digest(run).encode(), 0o644)
    pin = (places.owner / "manifest.sha256").read_text().strip()
    say(f"the deployment is made; SHA-256 of its manifest: {pin}")


def digest(run: Path) -> str:
    """SHA-256 of the run file, 64 hex digits."""
    return hashlib.sha256(run.read_bytes()).hexdigest()


def renew(places: Places) -> None:
    """Issue every certificate anew. Services take a new one within seconds, brokers at their next start."""
    count = 0
    authorities = {}
    for name in places.brokers:
        own = places.owner / "authorities" / name
        authorities[name] = Authority.load(own / "ca.pem", own / "ca-key.pem")
        put(places.broker(name) / "broker.pem", broker_certificate(authorities[name], name), 0o600)
        count += 1
    for broker, role in places.roles():
        for path in sorted((places.folder / broker / role).rglob("*tls.pem")):
            issuer = EXCHANGE if path.name == "exchange-tls.pem" else broker
            put(path, authorities[issuer].issue(common_name(path)), 0o600)
            count += 1
    say(f"{count} certificates are new; restart the brokers one after another for theirs")


def common_name(path: Path) -> str:
    """The principal that a certificate (PEM, its key before it) names.

    Raises:
        ConfigError: there is no certificate in it, or no single common name.
    """
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no certificate can be read from it: {error}") from error
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1:
        raise ConfigError(f"{path}: its certificate has {len(names)} common names, and needs one")
    return str(names[0].value)


def soonest_end(places: Places) -> int:
    """Days until the first certificate of a broker ends."""
    import datetime

    now = datetime.datetime.now(datetime.UTC)
    ends = [
        x509.load_pem_x509_certificate((places.broker(name) / "broker.pem").read_bytes()).not_valid_after_utc
        for name in places.brokers
    ]
    return (min(ends) - now).days


def main(arguments: list[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="init.py", description="Make a deployment for compose.yaml, once.")
    parser.add_argument("--run", type=Path, required=True, help="run file")
    parser.add_argument("--folder", type=Path, required=True, help="where the volumes are mounted")
    parser.add_argument("--renew", action="store_true", help="issue every certificate anew, nothing else")
    given = parser.parse_args(arguments)
    os.umask(0o077)
    try:
        settings = load(given.run)
        places = Places.of(given.folder, settings)
        places.check()
        become_owner(places)
        done = places.owner / DONE
        if given.renew:
            if not done.exists():
                raise ConfigError(f"there is no deployment in {given.folder}: run it without --renew first")
            renew(places)
        elif not done.exists():
            make(given.run, places)
        elif done.read_text().strip() != digest(given.run):
            raise ConfigError(
                f"{given.run} is not the run file that this deployment was made from, and a signed run cannot change: "
                "give the old file again, or remove the volumes (`docker compose down --volumes`) for a new run"
            )
        else:
            days = soonest_end(places)
            say(f"the deployment is there; the brokers' certificates end in {days} days")
            if days < RENEW_BELOW_DAYS:
                say("renew them: docker compose run --rm init --run … --folder … --renew")
    except ConfigError as error:
        print(f"init: {error}", file=sys.stderr)
        return 2
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"init: {error}; it begins anew when it is run again", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
