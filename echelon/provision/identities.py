"""Keys and the signed roster: made once per federation, kept in one folder, one file per key.

Every key is Ed25519, stored as PKCS#8 PEM with mode 0600, encrypted where there is a passphrase. In a
deployment each folder goes to the machine of its owner; `echelon run` keeps them side by side and in
the clear, because it plays all parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from echelon.config.reading import read_file
from echelon.config.run import RunSettings
from echelon.errors import ConfigError, EchelonError
from echelon.messages.envelope import Signer
from echelon.passphrase import Passphrase, check_encrypted
from echelon.private import create_private, private_folder, write_private
from echelon.provision.device_ranks import device_ranks
from echelon.secagg.roster import MAX_ROSTER_BYTES, EdgeEntry, Roster, RosterEntry

ROSTER_FILE = "roster.bin"
MAX_KEY_BYTES = 1 << 14
"""Largest file of one key: an encrypted Ed25519 key has some 400 bytes."""
WITNESSES = "_witnesses"
"""Folder of the keys of witnesses that are no gates; no boundary can be called so."""


@dataclass(frozen=True)
class BoundaryKeys:
    """One boundary's identities. Only the gate holds `exchange` and `witness`."""

    enrolment: bytes
    aggregator: bytes
    gate: bytes
    exchange: bytes
    witness: bytes
    devices: Mapping[str, bytes]
    roster: Roster
    edges: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Identities:
    """Private keys (32 bytes each) of every party, and the signed rosters."""

    operator: bytes
    controller: bytes
    boundaries: Mapping[str, BoundaryKeys]
    witnesses: Mapping[str, bytes] = field(default_factory=dict)
    """Of witnesses that are no gates, by name."""

    def witness(self, name: str) -> bytes:
        """The key of a witness: a boundary's gate's by the boundary's name, or that of a service of its own."""
        return self.boundaries[name].witness if name in self.boundaries else self.witnesses[name]

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
            ranks = device_ranks(settings, boundary)
            entries = tuple(
                RosterEntry(device=device, public=Signer(key).public, slot=slot, rank=ranks[device])
                for slot, (device, key) in enumerate(devices.items())
            )
            aggregator, gate, exchange, witness = token(32), token(32), token(32), token(32)
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
                enrolment=enrolment,
                aggregator=aggregator,
                gate=gate,
                exchange=exchange,
                witness=witness,
                devices=devices,
                roster=roster,
                edges=edges,
            )
        witnesses = {name: token(32) for name in settings.witnesses.names}
        return cls(token(32), token(32), boundaries, witnesses)

    def save(self, folder: Path, passphrase: Passphrase | None = None) -> None:
        """Write one file per key, readable by the owner alone, and encrypted if there is a passphrase.

        Raises:
            ConfigError: the folder cannot be written, or holds keys already.
        """
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} is not empty: keys are never overwritten, name another folder")

        def _write(path: Path, private: bytes) -> None:
            private_folder(path.parent)
            create_private(path, key_pem(private, passphrase))

        try:
            _write(folder / "operator.pem", self.operator)
            _write(folder / "controller.pem", self.controller)
            for name, key in self.witnesses.items():
                _write(folder / WITNESSES / f"{name}.pem", key)
            for name, keys in self.boundaries.items():
                place = folder / name
                _write(place / "enrolment.pem", keys.enrolment)
                _write(place / "aggregator.pem", keys.aggregator)
                _write(place / "gate.pem", keys.gate)
                _write(place / "gate-exchange.pem", keys.exchange)
                _write(place / "gate-witness.pem", keys.witness)
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
    def load(cls, folder: Path, settings: RunSettings, passphrase: Passphrase | None = None) -> Identities:
        """Read what `save` wrote.

        Args:
            folder: as `save` wrote it: one folder for each boundary, one for witnesses.
            settings: the run file, for the names of boundaries, devices, edges and witnesses.
            passphrase: what the keys are encrypted with; None: they are not.

        Raises:
            ConfigError: a key is missing, not readable or not under that passphrase, or a roster is not signed by its
                enrolment key.
        """
        boundaries = {}
        for boundary in settings.boundaries:
            place = folder / boundary.name
            enrolment = read_key(place / "enrolment.pem", passphrase)
            sealed = read_file(place / ROSTER_FILE, "roster", MAX_ROSTER_BYTES)
            try:
                roster = Roster.decode(sealed)
                roster.verify(Signer(enrolment).public)
            except EchelonError as error:
                raise ConfigError(f"roster {place / ROSTER_FILE}: {error}") from error
            boundaries[boundary.name] = BoundaryKeys(
                enrolment=enrolment,
                aggregator=read_key(place / "aggregator.pem", passphrase),
                gate=read_key(place / "gate.pem", passphrase),
                exchange=read_key(place / "gate-exchange.pem", passphrase),
                witness=read_key(place / "gate-witness.pem", passphrase),
                devices={
                    device.id: read_key(place / "devices" / f"{device.id}.pem", passphrase)
                    for device in boundary.device_list()
                },
                roster=roster,
                edges={
                    edge: read_key(place / "edges" / f"{edge}.pem", passphrase)
                    for edge in boundary.edge_names()
                },
            )
        witnesses = {
            name: read_key(folder / WITNESSES / f"{name}.pem", passphrase)
            for name in settings.witnesses.names
        }
        return cls(
            read_key(folder / "operator.pem", passphrase),
            read_key(folder / "controller.pem", passphrase),
            boundaries,
            witnesses,
        )


def encryption(passphrase: Passphrase | None) -> KeySerializationEncryption:
    """How a private key is encrypted: with the passphrase, or not at all."""
    return NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase.secret)


def key_pem(private: bytes, passphrase: Passphrase | None = None) -> bytes:
    """A private key's 32 bytes as a file holds them: PKCS#8 in PEM."""
    key = Ed25519PrivateKey.from_private_bytes(private)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption(passphrase))


def read_key(path: Path, passphrase: Passphrase | None = None, setting: str = "passphrase_file") -> bytes:
    """The 32 bytes of a private key file.

    Args:
        path: the file, PKCS#8 in PEM.
        passphrase: of an encrypted one.
        setting: where the passphrase's file is named, for messages.

    Raises:
        ConfigError: it cannot be read, the passphrase is missing or wrong, or it holds another kind of key.
    """
    advice = "Run `echelon keys init`, or name the right folder"
    pem = read_file(path, "key", MAX_KEY_BYTES, advice=advice)
    check_encrypted(f"key {path}", pem, passphrase, setting)
    try:
        key = load_pem_private_key(pem, password=None if passphrase is None else passphrase.secret)
    except (ValueError, TypeError, UnsupportedAlgorithm, InternalError) as error:
        if passphrase is not None:
            raise ConfigError(
                f"key {path} cannot be opened with the passphrase in {passphrase.path}: it is another one's, or the "
                "key's file is damaged"
            ) from error
        raise ConfigError(
            f"key {path} cannot be read ({error}): run `echelon keys init`, or name the right folder"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key {path} is not an Ed25519 key")
    return key.private_bytes_raw()
