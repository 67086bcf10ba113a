"""The properties of a broker: complete, strict, and never built from what cannot stand in them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from echelon.errors import ConfigError
from tools.kafka import properties as templating
from tools.kafka.properties import Listening, render

HERE = Listening(
    bind="0.0.0.0",
    host="boundary-a",
    port=9092,
    controller_port=9093,
    data=Path("/var/lib/kafka/data"),
    secrets=Path("/etc/kafka/secrets"),
)


def properties(text: str) -> dict[str, str]:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def test_a_broker_is_closed_to_whoever_has_no_rule():
    found = properties(render(HERE))
    assert found["allow.everyone.if.no.acl.found"] == "false"
    assert found["auto.create.topics.enable"] == "false"
    assert found["authorizer.class.name"].endswith("StandardAuthorizer")
    assert found["super.users"] == "User:broker;User:break-glass"
    assert found["ssl.client.auth"] == "required"
    assert "PLAINTEXT" not in "".join(found.values())
    assert found["log.retention.ms"] == "-1"


def test_only_the_client_listener_is_reached_from_outside():
    found = properties(render(HERE))
    assert found["listeners"] == "CLIENT://0.0.0.0:9092,CONTROLLER://localhost:9093"
    assert found["advertised.listeners"] == "CLIENT://boundary-a:9092"
    assert found["listener.security.protocol.map"] == "CLIENT:SSL,CONTROLLER:SSL"


def test_the_mapping_rule_is_kafkas_own_after_the_holes_are_filled():
    assert properties(render(HERE))["ssl.principal.mapping.rules"] == (
        "RULE:^CN=([A-Za-z0-9._-]+)(,.*)?$/$1/"
    )
    assert "${" not in render(HERE)


def test_passwords_are_taken_where_they_are_wanted_and_over_tls_alone():
    found = properties(render(replace(HERE, scram_port=9094)))
    assert found["listeners"].split(",")[1] == "SCRAM://0.0.0.0:9094"
    assert found["listener.security.protocol.map"] == "CLIENT:SSL,SCRAM:SASL_SSL,CONTROLLER:SSL"
    assert found["listener.name.scram.sasl.enabled.mechanisms"] == "SCRAM-SHA-512"
    assert found["listener.name.scram.ssl.client.auth"] == "none"
    assert found["ssl.client.auth"] == "required"
    assert "scram" not in render(HERE).lower()


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"host": "a b"}, "host name"),
        ({"host": "a\nsuper.users=User:mallory"}, "host name"),
        ({"bind": ""}, "host name"),
        ({"port": 0}, "ports"),
        ({"port": 70_000}, "ports"),
        ({"controller_port": 9092}, "ports"),
        ({"scram_port": 9093}, "ports"),
        ({"data": Path("relative")}, "absolute"),
        ({"data": Path("/a,b")}, "comma"),
        ({"secrets": Path("/a\nsuper.users=User:mallory")}, "new line"),
        ({"secrets": Path("/a\\b")}, "backslash"),
    ],
)
def test_what_cannot_stand_there_is_refused(change, word):
    with pytest.raises(ConfigError, match=word):
        render(replace(HERE, **change))


def test_a_template_with_another_hole_is_named(tmp_path, monkeypatch):
    for name in ("server.properties", "scram.properties"):
        (tmp_path / name).write_text("a=${unknown}\n")
    monkeypatch.setattr(templating, "templates", lambda: tmp_path)
    with pytest.raises(ConfigError, match=r"server\.properties.*unknown"):
        render(HERE)
