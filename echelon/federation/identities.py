"""Keys and the signed roster: made once per federation, kept in one folder, one file per key.

Every key is Ed25519, stored as unencrypted PKCS#8 PEM with mode 0600. In a deployment each folder goes to the machine
of its owner; `echelon run` keeps them side by side because it plays all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from echelon.config.run import RunSettings
from echelon.errors import ConfigError
from echelon.messages.envelope import Signer
from echelon.private import create_private, private_folder, write_private
from echelon.secagg.roster import EdgeEntry, Roster, RosterEntry

ROSTER_FILE = "roster.bin"


@dataclass(frozen=True)
class BoundaryKeys:
    """One boundary's identities. Only the gate holds `exchange`."""

    enrolment: bytes
    aggregator: bytes
    gate: bytes
    exchange: bytes
    devices: Mapping[str, bytes]
    roster: Roster
    edges: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Identities:
    """Private keys (32 bytes each) of every party, and the signed rosters."""

    operator: bytes
    controller: bytes
    boundaries: Mapping[str, BoundaryKeys]

    @classmethod
    def create(cls, settings: RunSettings, token: Callable[[int], bytes]) -> Identities:
        """New keys for every party of a run file.

        Args:
            settings: names boundaries and devices.
            token: source of secret bytes; the operating system's outside of simulations.
        """
        boundaries = {}
        for boundary in settings.boundaries:
            devices = {device.id: token(32) for device in boundary.device_list()}
            enrolment = token(32)
            entries = tuple(
                RosterEntry(device=device, public=Signer(key).public, slot=slot)
                for slot, (device, key) in enumerate(devices.items())
            )
            aggregator, gate, exchange = token(32), token(32), token(32)
            edges = {edge: token(32) for edge in boundary.edge_names()}
            roster = Roster.enrol(
                boundary.name,
                entries,
                Signer(enrolment),
                aggregator=Signer(aggregator).public,
                gate=Signer(gate).public,
                edges=(EdgeEntry(edge=edge, public=Signer(key).public) for edge, key in edges.items()),
            )
            boundaries[boundary.name] = BoundaryKeys(
                enrolment, aggregator, gate, exchange, devices, roster, edges
            )
        return cls(token(32), token(32), boundaries)

    def save(self, folder: Path) -> None:
        """Write one file per key, readable by the owner alone.

        Raises:
            ConfigError: the folder cannot be written, or holds keys already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: keys are never overwritten, name another folder")
        try:
            _write(folder / "operator.pem", self.operator)
            _write(folder / "controller.pem", self.controller)
            for name, keys in self.boundaries.items():
                place = folder / name
                _write(place / "enrolment.pem", keys.enrolment)
                _write(place / "aggregator.pem", keys.aggregator)
                _write(place / "gate.pem", keys.gate)
                _write(place / "gate-exchange.pem", keys.exchange)
                for device, key in keys.devices.items():
                    _write(place / "devices" / f"{device}.pem", key)
                for edge, key in keys.edges.items():
                    _write(place / "edges" / f"{edge}.pem", key)
                write_private(place / ROSTER_FILE, keys.roster.encode())
        except OSError as error:
            raise ConfigError(
                f"keys cannot be written to {folder}: {error.strerror}. Choose a folder that can"
            ) from error

    @classmethod
    def load(cls, folder: Path, settings: RunSettings) -> Identities:
        """Read what `save` wrote.

        Raises:
            ConfigError: a key is missing or not readable, or a roster is not signed by its enrolment key.
        """
        boundaries = {}
        for boundary in settings.boundaries:
            place = folder / boundary.name
            enrolment = read_key(place / "enrolment.pem")
            try:
                roster = Roster.decode((place / ROSTER_FILE).read_bytes())
            except OSError as error:
                raise ConfigError(f"roster {place / ROSTER_FILE} cannot be read: {error.strerror}") from error
            roster.verify(Signer(enrolment).public)
            boundaries[boundary.name] = BoundaryKeys(
                enrolment,
                read_key(place / "aggregator.pem"),
                read_key(place / "gate.pem"),
                read_key(place / "gate-exchange.pem"),
                {
                    device.id: read_key(place / "devices" / f"{device.id}.pem")
                    for device in boundary.device_list()
                },
                roster,
                {edge: read_key(place / "edges" / f"{edge}.pem") for edge in boundary.edge_names()},
            )
        return cls(read_key(folder / "operator.pem"), read_key(folder / "controller.pem"), boundaries)


def key_pem(private: bytes) -> bytes:
    """A private key's 32 bytes as a file holds them."""
    key = Ed25519PrivateKey.from_private_bytes(private)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, private: bytes) -> None:
    private_folder(path.parent)
    create_private(path, key_pem(private))


def read_key(path: Path) -> bytes:
    """The 32 bytes of a private key file.

    Raises:
        ConfigError: it cannot be read, or holds another kind of key.
    """
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"key {path} cannot be read ({error}): run `echelon keys init`, or name the right folder"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key {path} is not an Ed25519 key")
    return key.private_bytes_raw()
