"""Service configurations: a file and the environment, errors that say what to do, no place for foreign secrets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from echelon.config.broker import BrokerSettings
from echelon.errors import ConfigError
from echelon.services.config import (
    AggregatorConfig,
    ControllerConfig,
    DeviceConfig,
    GateConfig,
    ServiceConfig,
    WitnessConfig,
    load_service,
)

ROLES: tuple[type[ServiceConfig], ...] = (
    DeviceConfig,
    AggregatorConfig,
    GateConfig,
    ControllerConfig,
    WitnessConfig,
)
PIN = "ab" * 32
TLS = {"ca": "ca.pem", "certificate": "tls.pem"}


def fields_of(kind: type[ServiceConfig], **changes: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "manifest_sha256": PIN,
        "broker": {"url": "kafka://b:9093", "security": dict(TLS)},
    }
    if kind not in (ControllerConfig, WitnessConfig):
        fields["boundary"] = "a"
    if kind is WitnessConfig:
        fields["witness"] = "w"
    if kind is DeviceConfig:
        fields["slots"] = "slots"
    if kind is GateConfig:
        fields["exchange"] = {
            "url": "kafka://x:9093",
            "security": {"ca": "xca.pem", "certificate": "xtls.pem"},
        }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def written(folder: Path, kind: type[ServiceConfig], **changes: Any) -> Path:
    path = folder / "service.yaml"
    path.write_text(yaml.safe_dump(fields_of(kind, **changes)))
    return path


def refusal(path: Path, kind: type[ServiceConfig], environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as found:
        load_service(kind, path, environ or {})
    return str(found.value)


# ---- what each may hold ------------------------------------------------------------------------------


def places(kind: type[BaseModel], at: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The path of every setting that a schema has, however deep."""
    for name, field in kind.model_fields.items():
        yield (*at, name)
        for part in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from places(part, (*at, name))


def brokers_in(kind: type[ServiceConfig]) -> set[str]:
    return {
        name
        for name, field in kind.model_fields.items()
        if BrokerSettings in (field.annotation, *getattr(field.annotation, "__args__", ()))
    }


def test_only_the_gate_has_a_place_for_a_second_broker_and_for_a_second_key() -> None:
    assert {kind: brokers_in(kind) for kind in ROLES} == {
        DeviceConfig: {"broker"},
        AggregatorConfig: {"broker"},
        GateConfig: {"broker", "exchange"},
        ControllerConfig: {"broker"},
        WitnessConfig: {"broker"},
    }
    secrets = {
        kind: {
            ".".join(at)
            for at in places(kind)
            if at[-1] in {"key", "slot", "slots"} or at[-1].endswith("_key")
        }
        for kind in ROLES
    }
    assert secrets == {
        DeviceConfig: {"slot", "slots", "bootstrap.key", "broker.security.key"},
        AggregatorConfig: {"key", "broker.security.key"},
        GateConfig: {"key", "exchange_key", "witness_key", "broker.security.key", "exchange.security.key"},
        ControllerConfig: {"key", "broker.security.key"},
        WitnessConfig: {"key", "broker.security.key"},
    }
    for kind in ROLES:
        named = {".".join(at) for at in places(kind)}
        assert {at for at in named if "exchange" in at} == {
            at for at in named if kind is GateConfig and at.startswith("exchange")
        }


@pytest.mark.slow
@pytest.mark.parametrize("kind", [DeviceConfig, AggregatorConfig, ControllerConfig, WitnessConfig])
@pytest.mark.parametrize("field", ["exchange", "exchange_key", "gate_key", "witness_key", "enrolment"])
def test_others_are_refused_with_credentials_of_the_gate(
    tmp_path: Path, kind: type[ServiceConfig], field: str
) -> None:
    said = refusal(written(tmp_path, kind, **{field: "secret.pem"}), kind)
    assert f"{field} is no setting" in said
    said = refusal(written(tmp_path, kind), kind, {f"ECHELON_SET_{field.upper()}": "secret.pem"})
    assert f"{field} (from the environment, ECHELON_SET_{field.upper()}) is no setting" in said


# ---- reading -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROLES)
def test_paths_are_relative_to_the_file_and_defaults_stand_beside_it(
    tmp_path: Path, kind: type[ServiceConfig]
) -> None:
    found = load_service(kind, written(tmp_path, kind, state="/var/lib/echelon"), {})
    assert found.settings == tmp_path / "run.yaml"
    assert found.manifest == tmp_path / "manifest.dsse"
    assert found.state == Path("/var/lib/echelon")
    assert (found.http.host, found.http.port, found.shutdown) == ("127.0.0.1", 9464, 20.0)
    security = found.broker.security
    assert security is not None
    assert security.ca == tmp_path / "ca.pem"
    if isinstance(found, DeviceConfig):
        assert found.slots == tmp_path / "slots"
        in_slot = found.broker_of(tmp_path / "slots" / "a-3").security
        assert in_slot is not None
        assert (in_slot.ca, in_slot.certificate) == (
            tmp_path / "ca.pem",
            tmp_path / "slots" / "a-3" / "tls.pem",
        )
    else:
        assert security.certificate == tmp_path / "tls.pem"
    if isinstance(found, GateConfig):
        assert found.exchange.security is not None
        assert found.exchange.security.certificate == tmp_path / "xtls.pem"
        assert found.exchange_key == tmp_path / "exchange-signing.pem"


def test_a_device_needs_no_word_about_its_certificate(tmp_path: Path) -> None:
    path = written(tmp_path, DeviceConfig, broker={"url": "kafka://b:1", "security": {"ca": "ca.pem"}})
    found = load_service(DeviceConfig, path, {}).broker_of(tmp_path / "slots" / "a-0").security
    assert found is not None
    assert found.certificate == tmp_path / "slots" / "a-0" / "tls.pem"


def test_the_environment_lies_over_the_file(tmp_path: Path) -> None:
    environ = {
        "ECHELON_BROKER__URL": "kafka://other:1",
        "ECHELON_HTTP__PORT": "0",
        "ECHELON_LOG__LEVEL": "debug",
        "ECHELON_SHUTDOWN": "3.5",
        "ECHELON_BROKER__SECURITY__CA": "/etc/ca.pem",
        "PATH": "/bin",
        "ECHELONX": "of somebody else",
    }
    found = load_service(GateConfig, written(tmp_path, GateConfig), environ)
    assert (found.broker.url, found.http.port, found.log.level, found.shutdown) == (
        "kafka://other:1", 0, "debug", 3.5,
    )  # fmt: skip
    assert found.broker.security is not None
    assert found.broker.security.ca == Path("/etc/ca.pem")
    assert found.broker.security.certificate == tmp_path / "tls.pem"
    none = load_service(GateConfig, written(tmp_path, GateConfig), {"ECHELON_HTTP__PORT": "null"})
    assert none.http.port is None


@pytest.mark.parametrize(
    "name", ["ECHELON_IMAGE", "ECHELON_KAFKA_CACHE", "ECHELON_", "ECHELON_UPDATE_GOLDEN", "ECHELON_SVC__PORT"]
)
def test_variables_of_somebody_else_are_passed_over(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, GateConfig)
    assert load_service(GateConfig, path, {name: "[not YAML"}) == load_service(GateConfig, path, {})


def test_the_long_prefix_counts_more_than_the_short_one(tmp_path: Path) -> None:
    environ = {"ECHELON_SET_SHUTDOWN": "7", "ECHELON_SHUTDOWN": "5"}
    assert load_service(GateConfig, written(tmp_path, GateConfig), environ).shutdown == 7


def test_what_the_file_lacks_may_come_from_the_environment(tmp_path: Path) -> None:
    path = written(tmp_path, AggregatorConfig, broker=None, boundary=None)
    environ = {"ECHELON_BROKER__URL": "sqlite:////x", "ECHELON_BOUNDARY": "a"}
    assert load_service(AggregatorConfig, path, environ).broker.url == "sqlite:////x"
    said = refusal(path, AggregatorConfig)
    assert "broker: is missing; add it to the file, or set ECHELON_SET_BROKER" in said
    assert "boundary: is missing" in said


def test_a_replica_reaches_the_broker_for_leases_as_its_bootstrap_certificate_says(tmp_path: Path) -> None:
    bootstrap = {"ca": "bootstrap-ca.pem", "certificate": "bootstrap-tls.pem"}
    path = written(tmp_path, DeviceConfig, leases=True, bootstrap=bootstrap)
    broker = load_service(DeviceConfig, path, {}).broker_of_leases()
    assert broker.security is not None
    assert (broker.url, broker.security.ca) == ("kafka://b:9093", tmp_path / "bootstrap-ca.pem")
    assert broker.security.certificate == tmp_path / "bootstrap-tls.pem"


# ---- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"manifest_sha256": "abc"}, ["manifest_sha256", "64 hexadecimal digits"]),
        ({"broker": {"url": "kafka://b:1", "securty": {}}}, ["broker.securty is no setting; did you mean security?"]),
        ({"http": {"port": 70000}}, ["http.port", "65535"]),
        ({"log": {"format": "xml"}}, ["log.format", "json"]),
        ({"shutdown": 0}, ["shutdown"]),
        ({"boundary": "A B"}, ["boundary", "lower-case"]),
        ({"slot": "slots/a-0"}, ["give either slots", "or slot"]),
        ({"slots": None}, ["give either slots", "or slot"]),
        ({"leases": True}, ["bootstrap is for leases", "give leases and bootstrap"]),
        ({"bootstrap": dict(TLS, certificate="b.pem")}, ["bootstrap is for leases", "or none of them"]),
        ({"leases": True, "broker": {"url": "sqlite:///x"}}, ["Kafka alone leases slots", "leave leases out"]),
        ({"lease_seconds": 4}, ["lease_seconds", "5"]),
        (
            {"broker": {"url": "kafka://b:1", "security": {
                "ca": "ca.pem", "sasl": {"username": "a-0", "password_file": "p"}}}},
            ["sasl", "needs `slot`"],
        ),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_place(
    tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    path = written(tmp_path, DeviceConfig, **changes)
    said = refusal(path, DeviceConfig)
    assert str(path) in said
    assert all(word in said for word in words), said


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ECHELON_SET_BROKR__URL", "x", ["brokr", "ECHELON_SET_BROKR__URL", "is no setting"]),
        ("ECHELON_SET_IMAGE", "x", ["image", "ECHELON_SET_IMAGE", "is no setting"]),
        ("ECHELON_EXCHANGE_KEY", "x", ["exchange_key", "ECHELON_EXCHANGE_KEY", "is no setting"]),
        ("ECHELON_HTTP__PORT", "many", ["http.port", "ECHELON_HTTP__PORT", "integer"]),
        ("ECHELON_HTTP__PORT", "[", ["ECHELON_HTTP__PORT", "not YAML"]),
        ("ECHELON_BOUNDARY__NAME", "x", ["ECHELON_BOUNDARY__NAME", "no settings below it"]),
        ("ECHELON_SET_", "x", ["ECHELON_SET_", "is no setting"]),
    ],
)
def test_a_wrong_variable_is_named(tmp_path: Path, name: str, value: str, words: list[str]) -> None:
    said = refusal(written(tmp_path, AggregatorConfig), AggregatorConfig, {name: value})
    assert all(word in said for word in words), said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "none.yaml", GateConfig)
    (tmp_path / "list.yaml").write_text("- 1")
    assert "not a map" in refusal(tmp_path / "list.yaml", GateConfig)
    (tmp_path / "bad.yaml").write_text("a: [")
    assert "not YAML" in refusal(tmp_path / "bad.yaml", GateConfig)
    (tmp_path / "large.yaml").write_text("#" * 70_000)
    assert "larger than 65536 bytes" in refusal(tmp_path / "large.yaml", GateConfig)
