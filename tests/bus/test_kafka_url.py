"""What may stand in a `kafka://` URL, and in the files beside it. No broker is needed to say no."""

from __future__ import annotations

from pathlib import Path

import pytest

from echelon.bus import open_bus
from echelon.config.broker import SaslSettings, SecuritySettings
from echelon.errors import ConfigError, ConnectionLost
from echelon.provision.pki import Authority, write_private, write_public
from echelon.virtual_loop import run_virtual


@pytest.fixture
def security(tmp_path: Path) -> SecuritySettings:
    authority = Authority.create("ours")
    write_public(tmp_path / "ca.pem", authority.pem)
    write_private(tmp_path / "me.pem", authority.issue("me"))
    return SecuritySettings(ca=tmp_path / "ca.pem", certificate=tmp_path / "me.pem")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://", "no address"),
        ("kafka://host", "no address"),
        ("kafka://host:0", "no address"),
        ("kafka://host:70000", "no address"),
        ("kafka://a:1,,b:2", "no address"),
        ("kafka://user@127.0.0.1:9092", "no address"),
        ("kafka://127.0.0.1:9092?acks=1", "no others"),
        ("kafka://127.0.0.1:9092?plaintext=yes", "no others"),
        ("kafka://127.0.0.1:9092?timeout=never", "timeout"),
        ("kafka://127.0.0.1:9092?timeout=0", "timeout"),
        ("kafka://127.0.0.1:9092?timeout=nan", "timeout"),
        ("kafka://broker.example:9092", "without TLS only a broker on this machine"),
        ("kafka://127.0.0.1:9092,10.0.0.1:9092", "without TLS only a broker on this machine"),
        ("kafka://127.0.0.1.example:9092", "without TLS only a broker on this machine"),
    ],
)
async def test_urls_that_cannot_be_used(url, says):
    with pytest.raises(ConfigError, match=says):
        await open_bus(url)


@pytest.mark.parametrize(
    "url",
    [
        "kafka://127.0.0.1:1",
        "kafka://localhost:1",
        "kafka://[::1]:1",
        "kafka://10.255.255.1:1?plaintext=allow",
        "kafka://127.0.0.1:1,127.0.0.2:1/",
    ],
)
async def test_opening_needs_no_broker(url):
    async with await open_bus(url) as bus:
        assert not bus.connected
        assert bus.away_seconds >= 0


async def test_a_call_to_nobody_ends_in_time():
    async with await open_bus("kafka://127.0.0.1:1?timeout=3") as bus:
        with pytest.raises(
            ConnectionLost, match=r"127.0.0.1:1 did not answer within 3 s \(.*refused|Connect call"
        ):
            await bus.topics()
        assert not bus.connected


async def test_security_is_for_kafka_alone(tmp_path, security):
    for url in ("memory://x", f"sqlite:///{tmp_path}/x.sqlite"):
        with pytest.raises(ConfigError, match="kafka:// only"):
            await open_bus(url, security=security)
    with pytest.raises(ConfigError, match="contradict"):
        await open_bus("kafka://127.0.0.1:1?plaintext=allow", security=security)
    async with await open_bus("kafka://broker.example:1", security=security):
        pass


async def test_files_that_are_missing_or_wrong_are_named(tmp_path, security):
    other = Authority.create("other")
    (tmp_path / "text").write_text("hello")
    (tmp_path / "empty").write_text("\n")
    write_private(tmp_path / "you.pem", other.issue("you"))
    key = (tmp_path / "you.pem").read_bytes().split(b"-----BEGIN CERTIFICATE")[0]
    write_private(tmp_path / "key.pem", key)
    sasl = SaslSettings(username="u", password_file=tmp_path / "empty")
    wrong = [
        ({"ca": tmp_path / "missing"}, "security.ca: .*missing cannot be read"),
        ({"ca": tmp_path / "text"}, "security.ca: .*not a certificate"),
        ({"certificate": tmp_path / "ca.pem"}, "security.certificate: .*private key"),
        ({"key": tmp_path / "key.pem"}, "security.certificate: .*me.pem with .*key.pem"),
        ({"certificate": None, "sasl": sasl}, "password_file: .*is empty"),
    ]
    for change, says in wrong:
        with pytest.raises(ConfigError, match=says):
            await open_bus("kafka://127.0.0.1:1", security=security.model_copy(update=change))


def test_kafka_does_not_run_on_a_virtual_clock():
    async def main() -> None:
        with pytest.raises(ConfigError, match="virtual clock"):
            await open_bus("kafka://127.0.0.1:1")

    run_virtual(main)
