"""From a run file and a broker map to the folders of every service, each holding what its machine gets and no more.

Whoever runs this plays all owners once: it makes every key and certificate. In earnest the folders then go to their
owners and are deleted here. Nothing is ever overwritten.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from echelon.compute.planning import planned
from echelon.compute.pool import Facts
from echelon.config.boundary import BoundarySettings
from echelon.config.broker import STANDARD_AUTHORIZER, BrokerSettings, SecuritySettings, load_broker
from echelon.config.experiments import DeviceFault, SimulationSettings
from echelon.config.reading import read_file, read_text
from echelon.config.run import RunSettings, dump, load
from echelon.config.training import DataSettings
from echelon.errors import ConfigError
from echelon.messages.manifest import MAX_MANIFEST_BYTES, RunManifest
from echelon.messages.names import aggregator_of, devices_of, gate_of, replica_of, witness_of
from echelon.passphrase import Passphrase, read_optional
from echelon.private import private_folder
from echelon.provision.broker_map import EXCHANGE, BrokerEntry, BrokerMap, load_brokers
from echelon.provision.identities import ROSTER_FILE, BoundaryKeys, Identities, key_pem
from echelon.provision.manifest_from_settings import build_manifest
from echelon.provision.pki import (
    BREAK_GLASS,
    MAX_FILE_BYTES,
    Authority,
    request,
    write_private,
    write_public,
)
from echelon.wiring.metrics import named_metrics
from echelon.wiring.plugins import copy_metrics, copy_rules

RUN_FILE, BROKERS_FILE, MANIFEST_FILE, PIN_FILE, INITIAL_FILE = (
    "run.yaml",
    "brokers.yaml",
    "manifest.dsse",
    "manifest.sha256",
    "initial.f32",
)
SERVICE_FILE, BROKER_FILE, TOPICS_FILE, SLOTS = "service.yaml", "broker.yaml", "topics.yaml", "slots"
CA_FILE, TLS_FILE, TLS_KEY_FILE, REQUEST_FILE, SIGNING_FILE = (
    "ca.pem",
    "tls.pem",
    "tls.key",
    "tls.csr",
    "signing.pem",
)
ENROLMENT_FILE = "enrolment.pem"
BOOTSTRAP = "bootstrap-"
"""What the names of files begin with that replicas without a slot need."""
CONTROLLER, AGGREGATOR, GATE, DEVICES, EDGES = "controller", "aggregator", "gate", "devices", "edges"
WITNESS, WITNESSES = "witness", "witnesses"
AUDITOR, OPERATOR, ADMIN = "auditor", "operator", "admin"
MAX_PIN_BYTES = 1024
"""Largest file of a pin: a digest has 64 characters."""
ELSEWHERE = DataSettings(source="text:elsewhere")
"""Stands in the controller's run file for every boundary's data, which is none of its business."""


@dataclass(frozen=True)
class Deployment:
    """A deployment folder.

    Attributes:
        folder: where it is.
        settings: the run file as used.
        brokers: every broker.
        manifest_sha256: the pin of the signed run manifest, 64 hex digits.
        requests: certificate requests that the owners of brokers must sign before services can connect.
    """

    folder: Path
    settings: RunSettings
    brokers: BrokerMap
    manifest_sha256: str
    requests: tuple[Path, ...] = ()

    @classmethod
    def load(cls, folder: Path) -> Deployment:
        """Read a folder that `deploy` wrote.

        Raises:
            ConfigError: it is none, or a file of it is damaged.
        """
        folder = folder.absolute()
        pin = read_text(
            folder / PIN_FILE, "no deployment:", MAX_PIN_BYTES, advice="`echelon deploy` makes one"
        ).strip()
        asked = tuple(
            path
            for path in sorted(folder.rglob(f"*{REQUEST_FILE}"))
            if not path.with_name(path.name.replace(REQUEST_FILE, TLS_FILE)).exists()
        )
        return cls(folder, load(folder / RUN_FILE), load_brokers(folder / BROKERS_FILE), pin, asked)

    @property
    def boundaries(self) -> tuple[str, ...]:
        """Names of the boundaries."""
        return tuple(boundary.name for boundary in self.settings.boundaries)

    def config(self, broker: str, role: str) -> Path:
        """A service's configuration: role `controller` or `witnesses/NAME` on the exchange; `aggregator`, `gate`,
        `devices`, `edges/ID` elsewhere."""
        return self.folder / broker / role / SERVICE_FILE

    def state(self, broker: str, role: str) -> Path:
        """Where that service keeps its state as long as nobody says otherwise."""
        return self.folder / broker / role / "state"

    def broker(self, broker: str, role: str) -> BrokerSettings:
        """A broker as `auditor`, `operator` or `admin` (the break-glass principal) reaches it.

        Raises:
            ConfigError: the file is missing or damaged.
        """
        return load_broker(self.folder / broker / role / BROKER_FILE)

    def topics(self, broker: str, role: str = ADMIN) -> Path:
        """The file that `echelon topics apply|check` and `echelon shards publish` take."""
        return self.folder / broker / role / TOPICS_FILE

    def manifest(self) -> RunManifest:
        """The run manifest.

        Raises:
            ConfigError: it is not the pinned one.
        """
        sealed = read_file(self.folder / MANIFEST_FILE, "run manifest", 2 * MAX_MANIFEST_BYTES)
        if hashlib.sha256(sealed).hexdigest() != self.manifest_sha256:
            raise ConfigError(f"{self.folder / MANIFEST_FILE} is not the manifest that {PIN_FILE} pins")
        return RunManifest.open(sealed)


def deploy(
    settings: RunSettings,
    brokers: BrokerMap,
    out: Path,
    facts: Facts,
    *,
    token: Callable[[int], bytes] = os.urandom,
    passphrase: Passphrase | None = None,
) -> Deployment:
    """Make every key and certificate, sign roster and manifest, and write the folders of all services.

    Args:
        settings: the run file.
        brokers: where each boundary's broker and the exchange's are.
        out: the folder to make; it appears whole or not at all.
        facts: of the model, see `compute.facts_of`.
        token: source of secret bytes.
        passphrase: what every private key is encrypted with; each configuration names its file. None: none is.

    Raises:
        ConfigError: the two files do not fit together, `out` is there already, or a folder cannot be written.
    """
    _check(settings, brokers)
    settings = planned(settings)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already: a deployment is never overwritten, name another folder")
    identities = Identities.create(settings, token)
    _, sealed = build_manifest(settings, facts, identities, token(16))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            writer = _Folders(
                settings=settings,
                brokers=brokers,
                identities=identities,
                sealed=sealed,
                facts=facts,
                place=place,
                passphrase=passphrase,
            )
            writer.write()
            place.rename(out)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
    except OSError as error:
        raise ConfigError(f"{out} cannot be written ({error.strerror}): choose a folder that can") from error
    return Deployment.load(out)


def _check(settings: RunSettings, brokers: BrokerMap) -> None:
    if settings.clock != "real":
        raise ConfigError("clock: virtual is for one process; a deployment needs clock: real")
    wanted, given = {boundary.name for boundary in settings.boundaries}, set(brokers.boundaries)
    if wanted - given:
        raise ConfigError(
            f"broker map: no broker for boundary {', '.join(sorted(wanted - given))}; add it under `boundaries`"
        )
    if given - wanted:
        raise ConfigError(
            f"broker map: {', '.join(sorted(given - wanted))} is no boundary of the run file; take it out"
        )


@dataclass
class _Folders:
    """Writes one deployment."""

    settings: RunSettings
    brokers: BrokerMap
    identities: Identities
    sealed: bytes
    facts: Facts
    place: Path
    passphrase: Passphrase | None
    authorities: dict[str, Authority] = field(default_factory=dict)

    def write(self) -> None:
        self._text(self.place / RUN_FILE, dump(self.settings))
        self._text(self.place / BROKERS_FILE, self.brokers.dump())
        self._text(self.place / PIN_FILE, self._pin() + "\n")
        write_public(self.place / MANIFEST_FILE, self.sealed)
        write_public(self.place / INITIAL_FILE, self._initial())
        self._exchange()
        for boundary in self.settings.boundaries:
            self._boundary(boundary, self.identities.boundaries[boundary.name])
        # Each folder goes to an owner of its own, and most of them hold keys.
        for folder in (self.place, *self.place.rglob("*/")):
            if folder.is_dir():
                private_folder(folder)

    # ---- the two planes --------------------------------------------------------------------------

    def _exchange(self) -> None:
        folder = self.place / EXCHANGE
        controller = folder / CONTROLLER
        self._service(controller, _for_controller(self.settings))
        copy_rules(self.settings, controller)
        write_public(controller / INITIAL_FILE, self._initial())
        write_private(controller / SIGNING_FILE, self._key(self.identities.controller))
        broker = self._connect(EXCHANGE, controller, CONTROLLER)
        self._yaml(controller / SERVICE_FILE, self._common(broker))
        for name, key in self.identities.witnesses.items():
            witness = folder / WITNESSES / name
            self._service(witness, _for_controller(self.settings))
            write_private(witness / SIGNING_FILE, self._key(key))
            broker = self._connect(EXCHANGE, witness, witness_of(name))
            self._yaml(witness / SERVICE_FILE, {**self._common(broker), "witness": name, "key": SIGNING_FILE})
        names = [boundary.name for boundary in self.settings.boundaries]
        witnesses = list(self.settings.witness_names())
        scope: dict[str, object] = {"plane": "exchange", "boundaries": names, "witnesses": witnesses}
        if self.settings.sync.inward == "relay":
            scope["relay"] = True
        self._people(EXCHANGE, folder, scope)
        write_private(folder / OPERATOR / SIGNING_FILE, self._key(self.identities.operator))

    def _boundary(self, boundary: BoundarySettings, keys: BoundaryKeys) -> None:
        name = boundary.name
        folder = self.place / name
        own = _for_boundary(self.settings, name)
        common = {"boundary": name, "roster": ROSTER_FILE}

        aggregator = folder / AGGREGATOR
        self._service(aggregator, own, keys)
        write_private(aggregator / SIGNING_FILE, self._key(keys.aggregator))
        broker = self._connect(name, aggregator, aggregator_of(name))
        self._yaml(aggregator / SERVICE_FILE, {**common, **self._common(broker), "key": SIGNING_FILE})

        gate = folder / GATE
        self._service(gate, own, keys)
        write_private(gate / SIGNING_FILE, self._key(keys.gate))
        write_private(gate / f"exchange-{SIGNING_FILE}", self._key(keys.exchange))
        if self.settings.witnesses.gates:
            write_private(gate / f"witness-{SIGNING_FILE}", self._key(keys.witness))
        broker = self._connect(name, gate, gate_of(name))
        outward = self._connect(EXCHANGE, gate, gate_of(name), "exchange-")
        both = {
            **self._common(broker),
            "exchange": _plain(outward),
            "exchange_key": f"exchange-{SIGNING_FILE}",
        }
        if self.settings.witnesses.gates:
            both["witness_key"] = f"witness-{SIGNING_FILE}"
        self._yaml(gate / SERVICE_FILE, {**common, **both, "key": SIGNING_FILE})

        shared = self.brokers.entries[name].one_device_principal
        devices = folder / DEVICES
        self._service(devices, own, keys)
        for device, key in keys.devices.items():
            slot = devices / SLOTS / device
            write_private(slot / SIGNING_FILE, self._key(key))
            # Every slot reaches the broker alike: with the certificate that lies in it, or as all others do.
            broker = self._connect(name, slot, devices_of(name) if shared else device, ca_at=devices)
        more = ({"one_principal": True} if shared else {}) | self._metrics(devices)
        self._yaml(
            devices / SERVICE_FILE,
            {**common, **self._common(broker), **more, "slots": SLOTS, **self._leases(name, devices)},
        )

        for edge in () if boundary.split is None else boundary.split.edge_list():
            place, principal = folder / EDGES / edge.id, boundary.edge_name(edge)
            self._service(place, _without_data(own), keys)
            write_private(place / SIGNING_FILE, self._key(keys.edges[principal]))
            broker = self._connect(name, place, principal)
            self._yaml(
                place / SERVICE_FILE,
                {**common, **self._common(broker), "edge": principal, "key": SIGNING_FILE},
            )

        scope: dict[str, object] = {
            "plane": "boundary",
            "boundary": name,
            "devices": [device.id for device in boundary.device_list()],
            "edges": list(boundary.edge_names()),
            "shards": boundary.shards,
        }
        self._people(name, folder, scope)
        # What `echelon topics trim` may delete stands in the signed terms.
        write_public(folder / ADMIN / MANIFEST_FILE, self.sealed)
        write_public(folder / ADMIN / ROSTER_FILE, keys.roster.encode())
        operator = folder / OPERATOR
        write_private(operator / "enrolment.pem", self._key(keys.enrolment))
        self._service(operator, own)  # what `echelon shards publish` has to agree with the devices on

    def _metrics(self, devices: Path) -> dict[str, object]:
        """Put the functions of the run's metrics beside its devices; by which digests they are allowed there."""
        copy_metrics(self.settings, devices)
        allowed = {name: code.sha256.hex() for name, code in named_metrics(self.settings).items()}
        return {"metrics": allowed} if allowed else {}

    def _leases(self, name: str, devices: Path) -> dict[str, object]:
        """What replicas need besides to lease slots from the broker of a boundary; nothing where it leases none."""
        entry = self.brokers.entries[name]
        if not entry.url.startswith("kafka://"):
            return {}
        principal = (devices_of if entry.one_device_principal else replica_of)(name)
        prefix = "" if entry.sasl is not None else BOOTSTRAP  # one user has one password
        reached = _plain(self._connect(name, devices, principal, prefix))
        return {"leases": True} | ({"bootstrap": reached["security"]} if "security" in reached else {})

    def _service(self, folder: Path, settings: RunSettings, keys: BoundaryKeys | None = None) -> None:
        """What every service of the folder's kind has, without its keys."""
        self._text(folder / RUN_FILE, dump(settings))
        write_public(folder / MANIFEST_FILE, self.sealed)
        if keys is not None:
            write_public(folder / ROSTER_FILE, keys.roster.encode())

    def _people(self, broker: str, folder: Path, scope: dict[str, object]) -> None:
        """Credentials of auditors, of the operator, and of the principal that may do everything."""
        for role, principal in ((AUDITOR, AUDITOR), (OPERATOR, OPERATOR), (ADMIN, BREAK_GLASS)):
            place = folder / role
            reached = self._connect(broker, place, principal)
            self._yaml(place / BROKER_FILE, _plain(reached))
            if role != AUDITOR:
                self._yaml(
                    place / TOPICS_FILE,
                    {
                        "broker": _plain(reached),
                        **scope,
                        **self._of_cluster(broker),
                        "manifest_sha256": self._pin(),
                    },
                )

    def _of_cluster(self, broker: str) -> dict[str, object]:
        """What is not as on a single node of one's own."""
        entry = self.brokers.entries[broker]
        several = {"replication": entry.replication, "min_insync": entry.min_insync}
        shared = {"one_device_principal": True} if entry.one_device_principal and broker != EXCHANGE else {}
        others = {} if entry.authorizer == STANDARD_AUTHORIZER else {"authorizer": entry.authorizer}
        return {**(several if entry.replication > 1 else {}), **shared, **others}

    # ---- one broker ------------------------------------------------------------------------------

    def _connect(
        self, broker: str, folder: Path, principal: str, prefix: str = "", ca_at: Path | None = None
    ) -> BrokerSettings:
        """Write what `principal` needs to reach a broker; how its configuration names that."""
        entry = self.brokers.entries[broker]
        if entry.ca is None:
            return BrokerSettings(url=entry.url)
        authority = (ca_at or folder) / f"{prefix}{CA_FILE}"
        if not authority.exists():
            write_public(authority, _read(entry.ca))
        if entry.sasl is not None:
            security = SecuritySettings(ca=Path(f"{prefix}{CA_FILE}"), sasl=entry.sasl.of(principal, prefix))
            return BrokerSettings(url=entry.url, security=security)
        key: Path | None = None
        if entry.ca_key is None:
            private, asked = request(principal, self.passphrase)
            write_private(folder / f"{prefix}{TLS_KEY_FILE}", private)
            write_public(folder / f"{prefix}{REQUEST_FILE}", asked)
            key = Path(f"{prefix}{TLS_KEY_FILE}")
        else:
            issued = self._authority(broker, entry).issue(principal, passphrase=self.passphrase)
            write_private(folder / f"{prefix}{TLS_FILE}", issued)
        security = SecuritySettings(
            ca=Path(f"{prefix}{CA_FILE}"),
            certificate=Path(f"{prefix}{TLS_FILE}"),
            key=key,
            passphrase_file=self._named(),
        )
        return BrokerSettings(url=entry.url, security=security)

    def _key(self, private: bytes) -> bytes:
        return key_pem(private, self.passphrase)

    def _authority(self, broker: str, entry: BrokerEntry) -> Authority:
        if broker not in self.authorities:
            assert entry.ca is not None
            assert entry.ca_key is not None
            self.authorities[broker] = Authority.load(
                entry.ca, entry.ca_key, read_optional(entry.ca_passphrase_file)
            )
        return self.authorities[broker]

    # ---- files -----------------------------------------------------------------------------------

    def _common(self, broker: BrokerSettings) -> dict[str, object]:
        return {
            "settings": RUN_FILE,
            "manifest": MANIFEST_FILE,
            "manifest_sha256": self._pin(),
            "broker": _plain(broker),
            **({} if self.passphrase is None else {"passphrase_file": str(self._named())}),
        }

    def _named(self) -> Path | None:
        """The passphrase's file, as configurations name it: where it is now, and in no folder that is handed over."""
        return None if self.passphrase is None else self.passphrase.path.absolute()

    def _pin(self) -> str:
        return hashlib.sha256(self.sealed).hexdigest()

    def _initial(self) -> bytes:
        return np.ascontiguousarray(self.facts.initial, "<f4").tobytes()

    def _yaml(self, path: Path, content: dict[str, object]) -> None:
        self._text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    @staticmethod
    def _text(path: Path, content: str) -> None:
        write_public(path, content.encode())


def _plain(broker: BrokerSettings) -> dict[str, object]:
    return broker.model_dump(mode="json", exclude_defaults=True)


def _read(path: Path) -> bytes:
    return read_file(path, "key or certificate", MAX_FILE_BYTES, advice="The broker map names it")


def _for_boundary(settings: RunSettings, name: str) -> RunSettings:
    """The run file as the services of one boundary see it: no other boundary is in it."""
    own = tuple(boundary for boundary in settings.boundaries if boundary.name == name)
    members = {device.id for boundary in own for device in boundary.device_list()}
    faults = tuple(fault for fault in settings.simulation.faults if fault.device in members)
    return settings.model_copy(update={"boundaries": own, "simulation": _known(settings, faults)})


def _for_controller(settings: RunSettings) -> RunSettings:
    """The run file as the controller sees it: boundaries by name and size, without their data."""
    blind = tuple(
        BoundarySettings(name=boundary.name, devices=len(boundary.device_list()), data=ELSEWHERE)
        for boundary in settings.boundaries
    )
    return settings.model_copy(update={"boundaries": blind, "simulation": _known(settings, ())})


def _known(settings: RunSettings, faults: tuple[DeviceFault, ...]) -> SimulationSettings:
    """The experiments without what names other boundaries or their devices; links of services are real ones anyway."""
    return settings.simulation.model_copy(update={"faults": faults, "exchange_links": (), "speeds": ()})


def _without_data(settings: RunSettings) -> RunSettings:
    """The run file as an edge sees it: where devices' data is, is none of its business."""
    blind = tuple(boundary.model_copy(update={"data": ELSEWHERE}) for boundary in settings.boundaries)
    return settings.model_copy(update={"boundaries": blind})
