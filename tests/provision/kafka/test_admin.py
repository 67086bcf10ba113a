"""A broker and a principal in librdkafka's words, and what is said when they cannot be used."""

from __future__ import annotations

import sys

import pytest

from echelon.config.broker import BrokerSettings, SaslSettings, SecuritySettings
from echelon.errors import BusError, ConfigError
from echelon.provision.kafka.admin import Connection, client_settings
from echelon.provision.pki import Authority


@pytest.fixture
def security(tmp_path):
    authority = Authority.create("a")
    authority.save(tmp_path / "ca.pem", tmp_path / "ca-key.pem")
    (tmp_path / "tls.pem").write_bytes(authority.issue("operator"))
    return SecuritySettings(ca=tmp_path / "ca.pem", certificate=tmp_path / "tls.pem")


def test_a_certificate_and_its_key_may_stand_in_one_file_or_in_two(security, tmp_path):
    found = client_settings(BrokerSettings(url="kafka://a:1,b:2", security=security))
    assert (found["bootstrap.servers"], found["security.protocol"]) == ("a:1,b:2", "SSL")
    assert found["ssl.key.location"] == found["ssl.certificate.location"] == str(tmp_path / "tls.pem")
    (tmp_path / "tls.key").write_text("key")
    two = security.model_copy(update={"key": tmp_path / "tls.key"})
    assert client_settings(BrokerSettings(url="kafka://a:1", security=two))["ssl.key.location"].endswith(
        "tls.key"
    )


def test_a_password_comes_from_its_file_without_the_final_new_line(security, tmp_path):
    (tmp_path / "password").write_bytes(b" secret \r\n")
    sasl = SaslSettings(username="operator", password_file=tmp_path / "password")
    settings = BrokerSettings(url="kafka://a:1", security=SecuritySettings(ca=security.ca, sasl=sasl))
    found = client_settings(settings)
    assert found["security.protocol"] == "SASL_SSL"
    assert (found["sasl.mechanism"], found["sasl.username"], found["sasl.password"]) == (
        "SCRAM-SHA-512",
        "operator",
        " secret ",
    )
    for content, word in ((b"", "is empty"), (b"x" * 2000, "larger than"), (b"\xff", "UTF-8")):
        (tmp_path / "password").write_bytes(content)
        with pytest.raises(ConfigError, match=word):
            client_settings(settings)
    (tmp_path / "password").unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        client_settings(settings)


def test_what_cannot_be_used_is_named(security, tmp_path):
    for url in ("sqlite:///x", "kafka:", "kafka://", "127.0.0.1:9092"):
        with pytest.raises(ConfigError, match="needs a URL"):
            client_settings(BrokerSettings(url=url))
    (tmp_path / "tls.pem").unlink()
    with pytest.raises(ConfigError, match=r"there is no file .*tls\.pem"):
        Connection(BrokerSettings(url="kafka://a:1", security=security))
    (tmp_path / "tls.pem").write_text("not a certificate")
    with pytest.raises(ConfigError, match="not usable"):
        Connection(BrokerSettings(url="kafka://a:1", security=security))


def test_without_confluent_kafka_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "confluent_kafka", None)
    with pytest.raises(ConfigError, match=r"pip install 'echelon\[admin\]'"):
        Connection(BrokerSettings(url="kafka://a:1"))


def test_a_broker_that_is_away_is_named_with_the_reason():
    with pytest.raises(BusError, match=r"kafka://127\.0\.0\.1:9: no answer within 3 s: .*(refused|failed)"):
        Connection(BrokerSettings(url="kafka://127.0.0.1:9")).metadata(timeout=3)
