"""What `echelon deploy` writes: whole folders, each with what its machine needs and nothing of anybody else's."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner, Result

from echelon.cli.app import app
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.broker import load_broker
from echelon.config.run import RunSettings, load, parse
from echelon.errors import ConfigError
from echelon.messages.envelope import Signer
from echelon.provision.broker_map import BrokerMap, load_brokers
from echelon.provision.deployment import Deployment, deploy
from echelon.provision.kafka.scope import load_scope
from echelon.provision.pki import Authority
from echelon.secagg.roster import Roster
from echelon.services.config import (
    AggregatorConfig,
    ControllerConfig,
    DeviceConfig,
    GateConfig,
    load_service,
)

BROKERS = ("exchange", "a", "b")
SERVICES = [
    "exchange/controller",
    *(f"{name}/{role}" for name in "ab" for role in ("aggregator", "gate", "devices")),
]
PEOPLE = [f"{broker}/{role}" for broker in BROKERS for role in ("auditor", "operator", "admin")]


def settings(**changes: Any) -> RunSettings:
    fields: dict[str, Any] = {
        "name": "small",
        "boundaries": [
            {"name": name, "devices": 4, "data": {"source": f"text:documents-of-{name}"}} for name in "ab"
        ],
        "budget": {"commits": 3},
        "learner": {"kind": "quadratic", "dim": 16},
    }
    return parse(fields | changes, "test")


def broker_map(folder: Path, *, keys: bool = True) -> BrokerMap:
    """Three brokers with an authority each."""
    entries = {}
    for place, name in enumerate(BROKERS):
        Authority.create(name).save(folder / name / "ca.pem", folder / name / "ca-key.pem")
        entry = {"url": f"kafka://127.0.0.1:{19092 + place}", "ca": f"{name}/ca.pem"}
        entries[name] = entry | ({"ca_key": f"{name}/ca-key.pem"} if keys else {})
    exchange = entries.pop("exchange")
    path = folder / "brokers.yaml"
    path.write_text(yaml.safe_dump({"exchange": exchange, "boundaries": entries}))
    return load_brokers(path)


def deployed(folder: Path, run: RunSettings | None = None, *, keys: bool = True) -> Deployment:
    run = run or settings()
    facts = facts_of(build_learner(spec_of(run), run.learner))
    return deploy(run, broker_map(folder / "stack", keys=keys), folder / "out", facts)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deployed(tmp_path_factory.mktemp("deploy"))


def private_keys(folder: Path) -> dict[bytes, list[Path]]:
    """Every private key below a folder, by its bytes."""
    found: dict[bytes, list[Path]] = {}
    for path in folder.rglob("*"):
        if path.is_file() and b"PRIVATE KEY" in path.read_bytes():
            found.setdefault(key_of(path), []).append(path)
    return found


def key_of(path: Path) -> bytes:
    key = load_pem_private_key(path.read_bytes(), None)
    return (
        key.public_key().public_bytes_raw() if hasattr(key.public_key(), "public_bytes_raw") else public(key)
    )


def public(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def test_every_private_key_lies_in_one_folder_and_only_its_owner_can_read_it(made: Deployment) -> None:
    keys = private_keys(made.folder)
    # Per broker: 3 people. Exchange: controller (2), operator's signature. Boundary: aggregator (2), gate (2 + 2,
    # and its key as a witness), four slots (2 each), replicas without a slot (1), the enrolment key.
    assert len(keys) == 3 * 3 + 3 + 2 * (2 + 5 + 8 + 1 + 1)
    for paths in keys.values():
        assert len(paths) == 1
        assert stat.S_IMODE(paths[0].stat().st_mode) == 0o600
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700


def test_only_gates_hold_credentials_of_two_brokers(made: Deployment) -> None:
    fingerprints = {
        name: hashlib.sha256(made.brokers.entries[name].ca.read_bytes()).digest()  # type: ignore[union-attr]
        for name in BROKERS
    }
    for place in SERVICES + PEOPLE:
        held = {
            name
            for path in (made.folder / place).rglob("*ca.pem")
            for name, digest in fingerprints.items()
            if hashlib.sha256(path.read_bytes()).digest() == digest
        }
        own = place.partition("/")[0]
        assert held == ({own, "exchange"} if place.endswith("/gate") else {own}), place


def test_certificates_name_their_principals_and_come_from_the_right_authority(made: Deployment) -> None:
    expected = {"exchange/controller/tls.pem": ("exchange", "controller")}
    for broker in BROKERS:
        for role, principal in (("auditor", "auditor"), ("operator", "operator"), ("admin", "break-glass")):
            expected[f"{broker}/{role}/tls.pem"] = (broker, principal)
    for name in "ab":
        expected[f"{name}/aggregator/tls.pem"] = (name, f"{name}.aggregator")
        expected[f"{name}/gate/tls.pem"] = (name, f"{name}.gate")
        expected[f"{name}/gate/exchange-tls.pem"] = ("exchange", f"{name}.gate")
        expected[f"{name}/devices/bootstrap-tls.pem"] = (name, f"{name}.replica")
        for number in range(4):
            expected[f"{name}/devices/slots/{name}-{number}/tls.pem"] = (name, f"{name}-{number}")
    found = {str(path.relative_to(made.folder)) for path in made.folder.rglob("*tls.pem")}
    assert found == set(expected)
    for path, (broker, principal) in expected.items():
        certificate = x509.load_pem_x509_certificate((made.folder / path).read_bytes())
        [name] = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        assert name.value == principal, path
        for other in BROKERS:
            authority = made.brokers.entries[other].ca
            assert authority is not None
            issuer = x509.load_pem_x509_certificate(authority.read_bytes())
            if other == broker:
                certificate.verify_directly_issued_by(issuer)
            else:
                with pytest.raises(ValueError, match="Issuer"):
                    certificate.verify_directly_issued_by(issuer)


def test_services_find_everything_in_their_own_folder(made: Deployment, tmp_path: Path) -> None:
    kinds = {
        "controller": ControllerConfig,
        "aggregator": AggregatorConfig,
        "gate": GateConfig,
        "devices": DeviceConfig,
    }
    for place in SERVICES:
        folder = made.folder / place
        config = load_service(kinds[folder.name], folder / "service.yaml", {})  # type: ignore[type-var]
        files = [config.settings, config.manifest]
        for name in ("roster", "key", "initial", "exchange_key", "slots"):
            files += [getattr(config, name)] if hasattr(config, name) else []
        for broker in config.brokers().values():
            assert broker.security is not None
            files.append(broker.security.ca)
            if not isinstance(config, DeviceConfig):
                assert broker.security.certificate is not None
                files.append(broker.security.certificate)
        for file in files:
            assert file.is_relative_to(folder), file
            assert file.exists(), file
        assert hashlib.sha256(config.manifest.read_bytes()).hexdigest() == config.manifest_sha256
        assert load(config.settings).name == "small"
        if isinstance(config, DeviceConfig):
            assert config.slots is not None
            for slot in config.slots.iterdir():
                security = config.broker_of(slot).security
                assert security is not None
                assert security.certificate == slot / "tls.pem"
                assert security.certificate.exists()
                assert security.ca == folder / "ca.pem"
    for place in PEOPLE:
        broker = load_broker(made.folder / place / "broker.yaml")
        assert broker.security is not None
        assert broker.security.certificate == made.folder / place / "tls.pem"


def test_keys_are_those_that_manifest_and_roster_name(made: Deployment) -> None:
    manifest = made.manifest()
    assert key_of(made.folder / "exchange/controller/signing.pem").hex() == manifest.controller_public
    assert key_of(made.folder / "exchange/operator/signing.pem").hex() == manifest.operator_public
    for terms in manifest.boundaries:
        folder = made.folder / terms.name
        roster = Roster.decode((folder / "gate/roster.bin").read_bytes())
        roster.verify(bytes.fromhex(terms.enrolment_public))
        assert roster.digest.hex() == terms.roster_sha256
        assert key_of(folder / "gate/exchange-signing.pem").hex() == terms.gate_public
        assert key_of(folder / "operator/enrolment.pem").hex() == terms.enrolment_public
        for entry in roster.entries:
            assert key_of(folder / "devices/slots" / entry.device / "signing.pem") == entry.public


def test_no_boundary_and_not_the_controller_sees_the_data_of_another(made: Deployment) -> None:
    for place, strangers in (("a", "b"), ("b", "a"), ("exchange", "ab")):
        text = b"".join(path.read_bytes() for path in (made.folder / place).rglob("*.yaml"))
        for stranger in strangers:
            assert f"documents-of-{stranger}".encode() not in text
        if place != "exchange":
            assert f"documents-of-{place}".encode() in text


def test_experiments_that_name_other_boundaries_are_in_no_run_file_of_a_service(tmp_path: Path) -> None:
    """Each is a run file of its own, in which the names of other boundaries would be unknown."""
    changing = {
        "exchange_links": [{"boundary": "b", "latency": 1.0}],
        "speeds": [{"at": 1, "boundary": "a", "factor": 0.5}, {"at": 2, "device": "b-1", "factor": 0.5}],
    }
    made = deployed(tmp_path, settings(simulation=changing))
    files = [made.folder / place / "run.yaml" for place in SERVICES]
    assert [load(path).simulation.exchange_links for path in files] == [()] * len(SERVICES)
    assert [load(path).simulation.speeds for path in files] == [()] * len(SERVICES)


def test_topics_files_say_what_provisioning_needs(made: Deployment) -> None:
    boundary = yaml.safe_load(made.topics("a").read_text())
    assert boundary.pop("broker")["url"] == made.brokers.boundaries["a"].url
    assert boundary == {
        "plane": "boundary",
        "boundary": "a",
        "devices": ["a-0", "a-1", "a-2", "a-3"],
        "edges": [],
        "shards": None,
        "manifest_sha256": made.manifest_sha256,
    }
    exchange = yaml.safe_load(made.topics("exchange", "operator").read_text())
    del exchange["broker"]
    assert exchange == {
        "plane": "exchange",
        "boundaries": ["a", "b"],
        "witnesses": ["a", "b"],
        "manifest_sha256": made.manifest_sha256,
    }


def test_the_exchange_is_told_that_commits_are_relayed(tmp_path: Path) -> None:
    made = deployed(tmp_path, settings(sync={"inward": "relay"}))
    exchange = yaml.safe_load(made.topics("exchange", "operator").read_text())
    assert exchange["relay"] is True
    assert "relay" not in yaml.safe_load(made.topics("a").read_text())


def test_without_an_authority_keys_stay_and_requests_are_listed(tmp_path: Path) -> None:
    made = deployed(tmp_path, keys=False)
    assert not list(made.folder.rglob("*tls.pem"))
    assert len(made.requests) == 3 * 3 + 1 + 2 * (1 + 2 + 4 + 1)
    for asked in made.requests:
        request = x509.load_pem_x509_csr(asked.read_bytes())
        key = asked.with_suffix(".key")
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert public(load_pem_private_key(key.read_bytes(), None)) == _public_of(request)
        # Whoever has the authority signs; then the deployment is complete.
        [name] = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        parts = asked.relative_to(made.folder).parts
        broker = "exchange" if asked.name.startswith("exchange-") else parts[0]
        place = tmp_path / "stack" / broker
        authority = Authority.load(place / "ca.pem", place / "ca-key.pem")
        signed = authority.sign_request(asked.read_bytes(), str(name.value))
        asked.with_name(asked.name.replace("tls.csr", "tls.pem")).write_bytes(signed)
    assert Deployment.load(made.folder).requests == ()
    gate = load_service(GateConfig, made.config("a", "gate"), {})
    for broker in gate.brokers().values():
        assert broker.security is not None
        assert broker.security.key is not None
        assert broker.security.key.exists()


def _public_of(request: x509.CertificateSigningRequest) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return bytes(request.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def test_it_never_overwrites_and_a_failure_leaves_nothing(made: Deployment, tmp_path: Path) -> None:
    run = made.settings
    facts = facts_of(build_learner(spec_of(run), run.learner))
    with pytest.raises(ConfigError, match="never overwritten"):
        deploy(run, made.brokers, made.folder, facts)
    brokers = broker_map(tmp_path / "stack")
    (tmp_path / "stack" / "b" / "ca-key.pem").write_text("garbage")
    with pytest.raises(ConfigError, match=r"ca-key\.pem"):
        deploy(run, brokers, tmp_path / "out", facts)
    assert [path.name for path in tmp_path.iterdir()] == ["stack"]


def test_run_file_and_broker_map_must_fit_together(made: Deployment, tmp_path: Path) -> None:
    facts = facts_of(build_learner(spec_of(made.settings), made.settings.learner))
    brokers = made.brokers
    less = BrokerMap(exchange=brokers.exchange, boundaries={"a": brokers.boundaries["a"]})
    with pytest.raises(ConfigError, match="no broker for boundary b"):
        deploy(made.settings, less, tmp_path / "x", facts)
    more = BrokerMap(
        exchange=brokers.exchange,
        boundaries={
            **brokers.boundaries,
            "c": brokers.exchange.model_copy(update={"url": "kafka://127.0.0.1:1"}),
        },
    )
    with pytest.raises(ConfigError, match="c is no boundary"):
        deploy(made.settings, more, tmp_path / "x", facts)
    with pytest.raises(ConfigError, match="clock: real"):
        deploy(settings(clock="virtual"), brokers, tmp_path / "x", facts)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("exchange: {url: 'kafka://h:1'}\nboundaries: {a: {url: 'kafka://h:1'}}", "two brokers have one url"),
        ("exchange: {url: 'http://h'}\nboundaries: {}", "use kafka://"),
        ("exchange: {url: 'kafka://h:1', ca_key: k}\nboundaries: {}", "ca_key belongs to a ca"),
        ("exchange: {url: 'sqlite:///x', ca: k}\nboundaries: {}", "has no TLS"),
        (
            "exchange: {url: 'kafka://h:1', min_insync: 2}\nboundaries: {}",
            "min_insync 2 is above replication 1",
        ),
        ("exchange: {url: 'sqlite:///x', replication: 3}\nboundaries: {}", "leave out replication"),
        ("exchange: {url: 'kafka://h:1', password: x}\nboundaries: {}", "exchange.password"),
        ("{", "not YAML"),
    ],
)
def test_wrong_broker_maps_are_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "brokers.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_brokers(path)


def test_embedded_logs_are_found_from_the_map_and_need_no_certificates(tmp_path: Path) -> None:
    path = tmp_path / "brokers.yaml"
    path.write_text(
        "exchange: {url: 'sqlite:///logs/exchange.sqlite'}\n"
        "boundaries: {a: {url: 'sqlite:///logs/a.sqlite'}, b: {url: 'sqlite:///logs/b.sqlite?synchronous=normal'}}"
    )
    brokers = load_brokers(path)
    assert brokers.boundaries["b"].url == f"sqlite:///{tmp_path}/logs/b.sqlite?synchronous=normal"
    run = settings()
    made = deploy(run, brokers, tmp_path / "out", facts_of(build_learner(spec_of(run), run.learner)))
    assert not list(made.folder.rglob("*tls*"))
    assert load_service(AggregatorConfig, made.config("a", "aggregator"), {}).broker.security is None


def deploys(folder: Path, *options: str) -> Result:
    """What `echelon deploy` answers for the settings of these tests and the broker map in `folder`/stack."""
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump(settings().model_dump(mode="json")))
    places = ["--brokers", str(folder / "stack/brokers.yaml"), "--out", str(folder / "out")]
    return CliRunner().invoke(app, ["deploy", str(run), *places, *options])


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    broker_map(tmp_path / "stack")
    found = deploys(tmp_path, "--set", "budget.commits=5", "--json")
    assert found.exit_code == 0, found.output
    said = json.loads(found.stdout)
    made = Deployment.load(tmp_path / "out")
    assert said == {"folder": str(made.folder), "manifest_sha256": made.manifest_sha256, "requests": []}
    assert made.manifest().budget.commits == 5
    again = deploys(tmp_path)
    assert again.exit_code == 2
    assert "never overwritten" in again.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "scope"),
    [
        ([], {}),
        (["--replication", "3"], {"replication": 3, "min_insync": 2}),
        (["--replication", "3", "--min-insync", "1"], {"replication": 3, "min_insync": 1}),
        (["--replication", "1"], {}),
    ],
)
def test_what_a_cluster_of_several_nodes_needs_stands_in_its_topics_files(
    tmp_path: Path, options: list[str], scope: dict[str, int]
) -> None:
    brokers = broker_map(tmp_path / "stack")
    found = deploys(tmp_path, *options)
    assert found.exit_code == 0, found.output
    made = Deployment.load(tmp_path / "out")
    for place in ("exchange", *brokers.boundaries):
        text = yaml.safe_load(made.topics(place).read_text())
        assert {name: text[name] for name in ("replication", "min_insync") if name in text} == scope
        assert load_scope(made.topics(place)).replication == scope.get("replication", 1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--min-insync", "2"], "give both"),
        (["--replication", "2", "--min-insync", "3"], "min_insync 3 is above replication 2"),
    ],
)
def test_replication_that_cannot_be_is_refused(tmp_path: Path, options: list[str], said: str) -> None:
    broker_map(tmp_path / "stack")
    found = deploys(tmp_path, *options)
    assert found.exit_code == 2
    assert said in " ".join(found.stderr.split())
    assert not (tmp_path / "out").exists()


def test_a_deployment_checks_its_pin(tmp_path: Path) -> None:
    made = deployed(tmp_path)
    (made.folder / "manifest.dsse").write_bytes(b"{}")
    with pytest.raises(ConfigError, match="is not the manifest"):
        made.manifest()
    with pytest.raises(ConfigError, match="no deployment"):
        Deployment.load(tmp_path)


def test_signers_of_two_deployments_differ(made: Deployment, tmp_path: Path) -> None:
    other = deployed(tmp_path)
    assert not set(private_keys(other.folder)) & set(private_keys(made.folder))
    assert Signer(bytes(32)).public.hex() != other.manifest().controller_public


def with_sasl(folder: Path, entry: dict[str, Any], **more: Any) -> Path:
    """A broker map whose boundary a has such an entry, beside the authority of the others."""
    path = broker_map(folder) and folder / "brokers.yaml"
    fields = yaml.safe_load(path.read_text())
    fields["boundaries"]["a"] = {"url": "kafka://127.0.0.1:1", "ca": "a/ca.pem", **entry}
    path.write_text(yaml.safe_dump({**fields, **more}))
    return path


def test_where_a_broker_takes_passwords_or_tokens_each_configuration_names_its_own(tmp_path: Path) -> None:
    run = settings()
    facts = facts_of(build_learner(spec_of(run), run.learner))
    endpoint = {"url": "https://x/token", "client_id": "echelon-{principal}", "client_secret_file": "secret"}
    exchange = {
        "url": "kafka://127.0.0.1:2",
        "ca": "exchange/ca.pem",
        "sasl": {"mechanism": "OAUTHBEARER", "token": endpoint},
        "authorizer": None,
    }
    entry = {"sasl": {"mechanism": "PLAIN"}, "one_device_principal": True}
    path = with_sasl(tmp_path / "stack", entry, exchange=exchange)
    made = deploy(run, load_brokers(path), tmp_path / "out", facts)
    gate = load_service(GateConfig, made.config("a", "gate"))
    inside, outside = gate.broker.security.sasl, gate.exchange.security.sasl
    assert (inside.mechanism, inside.username) == ("PLAIN", "a.gate")
    assert inside.password_file == made.folder / "a" / "gate" / "password"
    assert (outside.mechanism, outside.token.client_id) == ("OAUTHBEARER", "echelon-a.gate")
    assert outside.token.client_secret_file == made.folder / "a" / "gate" / "secret"
    devices = load_service(DeviceConfig, made.config("a", "devices"))
    assert devices.one_principal
    of_slot = devices.broker_of(devices.slots / "a-0").security
    assert of_slot.sasl.username == "a.devices"
    assert of_slot.sasl.password_file == made.folder / "a" / "devices" / "password", "one file for all slots"
    assert not list((made.folder / "a").rglob("tls.pem"))
    assert load_scope(made.topics("a")).device_principals == ("a.devices",)
    assert load_scope(made.topics("exchange")).authorizer is None
    assert load_scope(made.topics("b")).device_principals == ("b-0", "b-1", "b-2", "b-3")


def test_devices_that_share_a_principal_have_certificates_of_their_own_with_its_name(tmp_path: Path) -> None:
    run = settings()
    facts = facts_of(build_learner(spec_of(run), run.learner))
    path = with_sasl(tmp_path / "stack", {"ca_key": "a/ca-key.pem", "one_device_principal": True})
    made = deploy(run, load_brokers(path), tmp_path / "out", facts)
    found = [
        x509.load_pem_x509_certificate(
            (made.folder / "a/devices/slots" / f"a-{slot}" / "tls.pem").read_bytes()
        )
        for slot in range(4)
    ]
    names = {one.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value for one in found}
    assert names == {"a.devices"}
    assert len({one.serial_number for one in found}) == len({public(one) for one in found}) == 4


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"sasl": {"mechanism": "PLAIN"}}, "boundary a: with sasl .* one_device_principal: true"),
        ({"sasl": {}, "ca_key": "a/ca-key.pem"}, "no ca_key"),
        ({"sasl": {}, "ca": None}, "sasl needs ca"),
        ({"sasl": {"mechanism": "PLAIN", "token": {"file": "t"}}}, "takes a password"),
        ({"sasl": {"mechanism": "MD5"}}, "mechanism"),
    ],
)
def test_a_way_of_logging_in_that_cannot_be_is_named(
    tmp_path: Path, entry: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_brokers(with_sasl(tmp_path, entry))


def test_the_command_says_which_files_owners_put_where(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(
            {
                "name": "small",
                "boundaries": [{"name": name, "devices": 4, "data": {"source": "text:x"}} for name in "ab"],
                "budget": {"commits": 3},
                "learner": {"kind": "quadratic", "dim": 16},
            }
        )
    )
    exchange = {"url": "kafka://127.0.0.1:2", "ca": "exchange/ca.pem", "sasl": {"mechanism": "OAUTHBEARER"}}
    entry = {"sasl": {"mechanism": "PLAIN"}, "one_device_principal": True}
    path = with_sasl(tmp_path / "stack", entry, exchange=exchange)
    command = ["deploy", str(tmp_path / "run.yaml"), "--brokers", str(path), "--out", str(tmp_path / "out")]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert (
        "Clients of exchange log in with OAUTHBEARER: put files named exchange-token in every" in said.output
    )
    assert "Clients of a log in with PLAIN: put files named password into each folder of a" in said.output
