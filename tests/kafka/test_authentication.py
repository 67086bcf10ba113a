"""Every way of logging in, against real brokers: certificates, SCRAM, PLAIN and signed tokens; and no access rules.

The exchange takes tokens, and boundary a passwords by PLAIN; its devices are one principal. One more broker has no
authorizer. Certificates and SCRAM are what all other tests on brokers log in with.
"""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from echelon.bus import open_bus
from echelon.bus.base import Outgoing, TopicPartition
from echelon.cli.app import app
from echelon.config.broker import BrokerSettings, SaslSettings, SecuritySettings, TokenSettings
from echelon.errors import BusDenied, BusError, ConnectionLost
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import Deployment
from echelon.provision.kafka import Kind, apply, check, load_scope
from echelon.provision.kafka.admin import Connection
from echelon.provision.pki import BREAK_GLASS
from tests.kafka import clients
from tests.kafka.federations import Left, deployed, fleet
from tests.kafka.tokens import AUDIENCE, ISSUER, Issuer, endpoint
from tools.kafka.properties import templates
from tools.kafka.stack import JVM, Stack
from tools.kafka.wipe import PATIENCE

USERS = (
    *("a.devices", "a.aggregator", "a.gate", "a.edge-0"),
    *("operator", "auditor", BREAK_GLASS),
)
"""Who has a password of boundary a's broker."""


def password(user: str) -> str:
    return f"{user}-pass"


@pytest.fixture(scope="module")
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture(scope="module")
def brokers(requires_kafka: None, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("sasl")
    jwks = folder / "jwks.json"
    jwks.write_text(issuer.jwks())
    users = " ".join(f'user_{user}="{password(user)}"' for user in USERS)
    template = string.Template((templates() / "sasl.properties").read_text())
    sasl = template.substitute(users=users, jwks=jwks.as_uri(), audience=AUDIENCE, issuer=ISSUER)
    options = (*JVM, f"-Dorg.apache.kafka.sasl.oauthbearer.allowed.urls={jwks.as_uri()}")
    extra = {EXCHANGE: sasl, "a": sasl, "open": "authorizer.class.name="}
    with Stack(folder, (EXCHANGE, "a", "open"), scram=True, jvm=options, extra=extra) as stack:
        yield stack


@pytest.fixture(scope="module")
def deployment(brokers: Stack, issuer: Issuer, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    """One boundary, as `deploy` makes it, and the files that owners put beside the configurations."""
    folder = tmp_path_factory.mktemp("deployment")
    known = yaml.safe_load(brokers.brokers_yaml.read_text())
    for entry in (known[EXCHANGE], *known["boundaries"].values()):
        entry["ca"] = str(brokers.folder / entry["ca"])
        entry["ca_key"] = str(brokers.folder / entry["ca_key"])
    del known["boundaries"]["open"]
    known[EXCHANGE] = {
        "url": known[EXCHANGE]["scram_url"],
        "ca": known[EXCHANGE]["ca"],
        "sasl": {"mechanism": "OAUTHBEARER"},
    }
    a = known["boundaries"]["a"]
    known["boundaries"]["a"] = {
        "url": a["scram_url"], "ca": a["ca"], "sasl": {"mechanism": "PLAIN"}, "one_device_principal": True,
    }  # fmt: skip
    (folder / "brokers.yaml").write_text(yaml.safe_dump(known))
    boundaries = [{"name": "a", "devices": 4, "data": {"source": "text:unused"}}]
    made = deployed(folder / "run", folder / "brokers.yaml", boundaries=boundaries)
    for path in made.folder.rglob("*.yaml"):
        fields = yaml.safe_load(path.read_text())
        for broker, prefix in (("broker", ""), ("exchange", "exchange-")) if "broker" in fields else ():
            sasl = (fields.get(broker, {}).get("security") or {}).get("sasl")
            if sasl is not None:
                put(path.parent, prefix, sasl, issuer)
        if "url" in fields and "sasl" in fields["security"]:
            put(path.parent, "", fields["security"]["sasl"], issuer)
    return made


def put(folder: Path, prefix: str, sasl: dict[str, object], issuer: Issuer) -> None:
    """The password or the token that a configuration names."""
    user = str(sasl["username"])
    if sasl.get("mechanism") == "OAUTHBEARER":
        (folder / f"{prefix}token").write_text(issuer.token(user) + "\n")
    else:
        (folder / f"{prefix}password").write_text(password(user) + "\n")


def with_password(brokers: Stack, folder: Path, user: str, text: str) -> BrokerSettings:
    (folder / "password").write_text(text)
    sasl = SaslSettings(mechanism="PLAIN", username=user, password_file=folder / "password")
    return BrokerSettings(
        url=brokers["a"].scram_url, security=SecuritySettings(ca=brokers["a"].folder / "ca.pem", sasl=sasl)
    )


def with_token(brokers: Stack, token: TokenSettings, username: str | None = None) -> BrokerSettings:
    sasl = SaslSettings(mechanism="OAUTHBEARER", token=token, username=username)
    security = SecuritySettings(ca=brokers[EXCHANGE].folder / "ca.pem", sasl=sasl)
    return BrokerSettings(url=brokers[EXCHANGE].scram_url, security=security)


@pytest.mark.timeout(900)
def test_a_federation_whose_brokers_take_tokens_and_passwords(deployment: Deployment) -> None:
    with fleet(deployment) as running:
        running.start()
        codes = running.wait(600)
    assert set(codes.values()) == {0}, f"{codes}\n{running.tails([n for n, c in codes.items() if c])}"
    assert Left.read(deployment).faults == []
    for broker in (EXCHANGE, *deployment.boundaries):
        assert check(load_scope(deployment.topics(broker, "operator"))) == []


def test_devices_that_share_a_principal_may_do_what_a_device_may_and_no_more(deployment: Deployment) -> None:
    apply(load_scope(deployment.topics("a")), patience=PATIENCE)
    config = yaml.safe_load(deployment.config("a", "devices").read_text())
    settings = BrokerSettings.model_validate(config["broker"]).beside(
        deployment.config("a", "devices").parent
    )
    assert settings.security.sasl.username == "a.devices"
    codes = clients.write(settings, ["masked", "checkin", "control", "delta"])
    assert codes == {"masked": 0, "checkin": 0, "control": clients.DENIED, "delta": clients.DENIED}


async def test_a_wrong_password_is_denied_by_name(brokers: Stack, tmp_path: Path) -> None:
    settings = with_password(brokers, tmp_path, "operator", "wrong")
    async with await open_bus(settings.url, security=settings.security) as bus:
        with pytest.raises(BusDenied, match="password of principal 'operator'"):
            await bus.topics()
    with pytest.raises(BusError, match=r"(?i)authentication"):
        Connection(settings).metadata(timeout=10)


async def test_a_token_is_read_again_and_one_that_is_refused_is_denied_with_the_brokers_words(
    brokers: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    path = tmp_path / "token"
    settings = with_token(brokers, TokenSettings(file=path))
    for wrong, words in (
        (Issuer().token(BREAK_GLASS), "invalid_token"),
        (issuer.token(BREAK_GLASS, -600), "invalid_token"),
        (issuer.token(BREAK_GLASS, aud="another"), "invalid_token"),
    ):
        path.write_text(wrong)
        async with await open_bus(settings.url, security=settings.security) as bus:
            with pytest.raises(
                BusDenied, match=rf"does not accept the token of principal 'of the token in .*{words}"
            ):
                await bus.topics()
    path.write_text(issuer.token(BREAK_GLASS))
    async with await open_bus(settings.url, security=settings.security) as bus:
        await bus.create_topic("t")
        await bus.publish(Outgoing("t", b"with a token"))
        reader = bus.reader({TopicPartition("t"): 0})
        assert [record.value for record in await reader.next()] == [b"with a token"]
    assert "t" in Connection(settings).metadata().topics
    Connection(settings).client.delete_topics(["t"])["t"].result(20)


async def test_a_token_is_asked_for_with_a_secret_and_kept_while_it_holds(
    brokers: Stack, issuer: Issuer, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"secret of {BREAK_GLASS}\n")
    with endpoint(tmp_path, issuer) as made:
        token = TokenSettings(
            url=made.url, client_id=BREAK_GLASS, client_secret_file=secret, ca=tmp_path / "ca.pem"
        )
        settings = with_token(brokers, token)
        async with await open_bus(settings.url, security=settings.security) as bus:
            await bus.create_topic("asked")
            await bus.publish(Outgoing("asked", b"x"))
            assert len(await bus.reader({TopicPartition("asked"): 0}).next()) == 1
        assert made.asked == [BREAK_GLASS], (
            "each client of a bus has connections of its own, and one token does for all"
        )
        assert Connection(settings).metadata().topics.keys() >= {"asked"}
        Connection(settings).client.delete_topics(["asked"])["asked"].result(20)
        secret.write_text("wrong")
        async with await open_bus(f"{settings.url}?timeout=3", security=settings.security) as bus:
            with pytest.raises(
                ConnectionLost, match=r"refuses client 'break-glass' with status 401: .*invalid_client"
            ):
                await bus.topics()


def test_a_broker_without_access_rules_is_said_and_the_rest_is_checked(
    brokers: Stack, tmp_path: Path
) -> None:
    config = tmp_path / "topics.yaml"
    broker = brokers["open"].settings("operator").model_dump(mode="json", exclude_none=True)
    fields = {"broker": broker, "plane": "boundary", "boundary": "a", "devices": ["a-0"]}
    config.write_text(yaml.safe_dump(fields))
    scope = load_scope(config)
    found = check(scope)
    assert [drift.kind for drift in found if drift.kind is not Kind.TOPIC_MISSING] == [
        Kind.BROKER,
        Kind.NO_RULES,
    ]
    assert {drift.subject for drift in found} >= {"control", "masked", "delta"}
    done = apply(scope, patience=PATIENCE)
    assert {drift.kind for drift in done.done} == {Kind.TOPIC_MISSING}
    said = CliRunner().invoke(app, ["topics", "check", "--config", str(config), "--json"])
    assert said.exit_code == 1
    assert [drift["kind"] for drift in json.loads(said.output)["drift"]] == [
        "broker setting",
        "no access rules",
    ]
    config.write_text(yaml.safe_dump({**fields, "authorizer": None}))
    said = CliRunner().invoke(app, ["topics", "check", "--config", str(config)])
    assert said.exit_code == 0, said.output
    assert "no drift" in said.output
    assert "access rules were not looked at" in said.output
