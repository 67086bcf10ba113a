"""Certificates in time: one that has ended, or begins later, is not taken, nor one worse than the one in use."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from echelon.bus.tls import Identity
from echelon.config.broker import SecuritySettings
from echelon.errors import ConfigError
from echelon.provision.pki import Authority, write_private, write_public
from echelon.services.health import Health, State

OURS = Authority.create("ours")


def put(path: Path | None, certificate: bytes) -> None:
    assert path is not None
    path.write_bytes(certificate)


class Clock:
    """A time that tests set."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@pytest.fixture
def settings(tmp_path: Path) -> SecuritySettings:
    write_public(tmp_path / "ca.pem", OURS.pem)
    write_private(tmp_path / "me.pem", OURS.issue("me", days=10))
    return SecuritySettings(ca=tmp_path / "ca.pem", certificate=tmp_path / "me.pem")


def test_a_certificate_that_has_ended_or_begins_later_is_not_taken(settings: SecuritySettings) -> None:
    clock = Clock()
    ends = Identity(settings, clock).ends
    assert ends is not None
    assert timedelta(days=9) < ends - clock() < timedelta(days=11)
    clock.ahead = timedelta(days=11)
    with pytest.raises(ConfigError, match=r"me\.pem ended at .*have a new one signed for the same principal"):
        Identity(settings, clock)
    clock.ahead = timedelta(days=-11)
    with pytest.raises(ConfigError, match=r"is not valid yet.*Compare the clocks"):
        Identity(settings, clock)


def test_a_worse_certificate_does_not_replace_the_one_in_use(
    settings: SecuritySettings, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    clock = Clock()
    identity = Identity(settings, clock)
    first, ends, path = identity.context.current, identity.ends, settings.certificate
    put(path, OURS.issue("you", days=100))
    assert not identity.refresh()
    assert "they name 'you', and this process is 'me'" in caplog.text
    put(path, OURS.issue("me", days=3))
    clock.ahead = timedelta(days=4)
    assert not identity.refresh()
    assert not identity.refresh()
    assert caplog.text.count("ended at") == 1
    assert (identity.context.current, identity.ends, identity.principal) == (first, ends, "me")
    # One that was not valid yet is taken once it is, without another change of the file.
    clock.ahead = timedelta(days=-4)
    put(path, OURS.issue("me", days=100))
    assert not identity.refresh()
    assert "Compare the clocks" in caplog.text
    clock.ahead = timedelta(0)
    assert identity.refresh()
    assert identity.ends is not None
    assert ends is not None
    assert identity.ends > ends


def test_a_service_whose_certificate_has_ended_is_not_ready() -> None:
    health = Health({"service": "gate"}, state=State.RUNNING, brokers={"exchange": True})
    health.certificates = {"exchange": 0.5}
    assert health.ready()[0]
    health.certificates = {"exchange": -0.1, "boundary": 20.0}
    ready, said = health.ready()
    assert not ready
    assert "certificate for the broker of the exchange has ended" in str(said["why"])
    assert said["certificate_days"] == {"exchange": -0.1, "boundary": 20.0}
