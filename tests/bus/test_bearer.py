"""Tokens: where they come from, how long they hold, and what is no token."""

from __future__ import annotations

import json
import time

import pytest
from pydantic import ValidationError

from echelon.bus.bearer import UNKNOWN_S, Bearer, ends, granted
from echelon.bus.tls import Identity
from echelon.config.broker import SaslSettings, SecuritySettings, TokenSettings
from echelon.errors import BusError, ConfigError
from echelon.provision.pki import Authority
from tests.kafka.tokens import Issuer, endpoint


@pytest.fixture(scope="module")
def issuer():
    return Issuer()


def test_a_token_says_itself_when_it_ends(issuer):
    assert ends(issuer.token("a", 100)) == pytest.approx(time.time() + 100, abs=30)
    for opaque in ("opaque", "a.b.c", "a.!!.c", "a.W10.c", "a.eyJleHAiOnRydWV9.c"):
        assert ends(opaque) == pytest.approx(time.time() + UNKNOWN_S, abs=30)


def test_a_file_is_read_each_time_and_must_hold_one_token(tmp_path, issuer):
    path = tmp_path / "token"
    bearer = Bearer(TokenSettings(file=path))
    with pytest.raises(ConfigError, match=r"token\.file: .*cannot be read"):
        bearer.check()
    for name in ("a", "b"):
        token = issuer.token(name)
        path.write_text(f"{token}\n")
        bearer.check()
        assert bearer.token()[0] == token
    for wrong in ("", "two tokens", "x\x01auth=Bearer y", "Bearer x"):
        path.write_text(wrong)
        with pytest.raises(ConfigError, match="holds no bearer token"):
            bearer.token()


def test_an_endpoints_token_is_kept_for_most_of_its_time(tmp_path, issuer, monkeypatch):
    secret = tmp_path / "secret"
    secret.write_text("secret of me\n")
    with endpoint(tmp_path, issuer) as made:
        settings = TokenSettings(
            url=made.url, client_id="me", client_secret_file=secret, ca=tmp_path / "ca.pem"
        )
        bearer = Bearer(settings)
        bearer.check()
        assert made.asked == [], "a check sends nothing"
        first = bearer.token()
        assert bearer.token() == first
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 0.9 * made.seconds)
        assert bearer.token() != first
        assert made.asked == ["me", "me"]
        monkeypatch.undo()
        made.answer = b'{"error": "none for you"}'
        with pytest.raises(BusError, match="without an access_token"):
            Bearer(settings).token()
        made.answer = b" " * (1 << 17)
        with pytest.raises(BusError, match="more than 65536 bytes"):
            Bearer(settings).token()
        secret.write_text("wrong")
        with pytest.raises(BusError, match="refuses client 'me' with status 401"):
            Bearer(settings).token()
        secret.write_text("")
        with pytest.raises(ConfigError, match=r"client_secret_file: .* is empty"):
            bearer.check()
    secret.write_text("secret of me")
    with pytest.raises(BusError, match="does not answer"):
        Bearer(settings).token()
    (tmp_path / "ca.pem").write_text("none")
    with pytest.raises(ConfigError, match=r"sasl\.token\.ca"):
        Bearer(settings)


def test_an_endpoint_that_another_authority_vouches_for_gets_no_secret(tmp_path, issuer):
    (tmp_path / "secret").write_text("secret of me")
    with endpoint(tmp_path, issuer) as made:
        (tmp_path / "other.pem").write_bytes(Authority.create("other").pem)
        settings = TokenSettings(
            url=made.url, client_id="me", client_secret_file=tmp_path / "secret", ca=tmp_path / "other.pem"
        )
        with pytest.raises(BusError, match=r"does not answer: .*CERTIFICATE_VERIFY_FAILED"):
            Bearer(settings).token()
        assert made.asked == []


def test_what_an_endpoint_says_of_the_time_counts_before_what_the_token_says(issuer):
    token = issuer.token("a", 100)
    body = {"access_token": token, "expires_in": 1000}
    assert granted(json.dumps(body).encode(), "x")[1] == pytest.approx(time.time() + 1000, abs=30)
    for odd in (None, True, "1000", -1, 1e12):
        found = granted(json.dumps({**body, "expires_in": odd}).encode(), "x")
        assert found == (token, pytest.approx(time.time() + 100, abs=30))
    for wrong in (b"", b"[]", b"{", b'{"access_token": 1}', b'{"access_token": "a b"}', b"[" * 10_000):
        with pytest.raises(BusError, match="without an access_token"):
            granted(wrong, "x")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"mechanism": "PLAIN", "username": "a"}, "PLAIN needs username and password_file"),
        ({"mechanism": "PLAIN", "password_file": "p"}, "PLAIN needs username and password_file"),
        ({"mechanism": "OAUTHBEARER", "username": "a", "password_file": "p"}, "OAUTHBEARER needs token"),
        ({"username": "a", "password_file": "p", "token": {"file": "t"}}, "and no token"),
        ({"mechanism": "OAUTHBEARER", "token": {}}, "either file"),
        ({"mechanism": "OAUTHBEARER", "token": {"file": "t", "url": "https://x"}}, "either file"),
        ({"mechanism": "OAUTHBEARER", "token": {"file": "t", "scope": "s"}}, "belong to url"),
        ({"mechanism": "OAUTHBEARER", "token": {"url": "https://x"}}, "needs client_id"),
        (
            {
                "mechanism": "OAUTHBEARER",
                "token": {"url": "http://x", "client_id": "a", "client_secret_file": "s"},
            },
            "use https://",
        ),
        ({"mechanism": "GSSAPI", "username": "a", "password_file": "p"}, "mechanism"),
    ],
)
def test_fields_that_do_not_fit_the_mechanism_are_named(fields, words):
    with pytest.raises(ValidationError, match=words):
        SaslSettings.model_validate(fields)


def test_paths_are_taken_from_the_configurations_folder(tmp_path):
    token = {"url": "https://x", "client_id": "me", "client_secret_file": "secret", "ca": "roots.pem"}
    sasl = {"mechanism": "OAUTHBEARER", "token": token}
    found = SecuritySettings.model_validate({"ca": "ca.pem", "sasl": sasl}).beside(tmp_path)
    assert found.ca == tmp_path / "ca.pem"
    assert found.sasl.token.client_secret_file == tmp_path / "secret"
    assert found.sasl.token.ca == tmp_path / "roots.pem"
    assert (found.sasl.token.file, found.sasl.password_file, found.key) == (None, None, None)
    assert found.sasl.principal == "me"


def test_an_identity_with_a_token_has_no_password(tmp_path, issuer):
    (tmp_path / "ca.pem").write_bytes(Authority.create("a").pem)
    (tmp_path / "token").write_text(issuer.token("a"))
    sasl = {"mechanism": "OAUTHBEARER", "token": {"file": "token"}}
    security = SecuritySettings.model_validate({"ca": "ca.pem", "sasl": sasl}).beside(tmp_path)
    identity = Identity(security)
    assert identity.password is None
    assert identity.bearer is not None
    assert identity.bearer.token()[0] == (tmp_path / "token").read_text()
    assert identity.refresh() is False
