"""`echelon keys rotate | revoke`, and services that find what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from echelon.cli.app import app
from echelon.errors import ConfigError
from echelon.messages.keys import StatementFile
from echelon.services.config import ControllerConfig, GateConfig, load_service
from echelon.services.key_changes import read_changes
from echelon.services.roles import ControllerRole, GateRole
from tests.services.deployed import deployed, edit


def echelon(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    deployed(folder, topics=False)
    return folder / "deployment"


def test_a_key_is_handed_on_revoked_and_found(place: Path, tmp_path: Path) -> None:
    """The service starts with the key that follows, and says what is wrong if it is given the former one."""
    manifest = place / "exchange" / "controller" / "manifest.dsse"
    gate, operator = place / "a" / "gate", place / "exchange" / "operator" / "signing.pem"
    common = ("--manifest", manifest, "--changes", gate / "key-changes")
    said = json.loads(
        echelon("keys", "rotate", "a.gate", *common, "--key", gate / "exchange-signing.pem", "--new",
                gate / "next.pem", "--json")
    )  # fmt: skip
    assert (said["change"], said["number"]) == ("key.next", 1)
    config = gate / "service.yaml"
    with pytest.raises(ConfigError, match=r"exchange_key .* is another key"):
        GateRole(load_service(GateConfig, config))
    edit(config, exchange_key="next.pem")
    GateRole(load_service(GateConfig, config))
    text = echelon(
        "keys", "revoke", "a.gate", *common, "--operator-key", operator, "--new", gate / "last.pem"
    )
    assert "key.end number 2 of a.gate" in text
    edit(config, exchange_key="last.pem")
    GateRole(load_service(GateConfig, config))
    assert [one.change for one in read_changes(gate / "key-changes")] == ["key.next", "key.end"]


def test_a_controller_finds_its_own_key(place: Path) -> None:
    folder = place / "exchange" / "controller"
    common = ("--manifest", folder / "manifest.dsse", "--changes", folder / "key-changes")
    echelon(
        "keys", "rotate", "controller", *common, "--key", folder / "signing.pem", "--new", folder / "next.pem"
    )
    with pytest.raises(ConfigError, match="is another key"):
        ControllerRole(load_service(ControllerConfig, folder / "service.yaml"))
    edit(folder / "service.yaml", key="next.pem")
    ControllerRole(load_service(ControllerConfig, folder / "service.yaml"))


def test_wrong_keys_and_names_are_said(place: Path, tmp_path: Path) -> None:
    manifest = place / "b" / "gate" / "manifest.dsse"
    common = ("--manifest", manifest, "--changes", tmp_path)
    right, wrong = place / "b" / "gate" / "exchange-signing.pem", place / "b" / "gate" / "signing.pem"
    new = ("--new", tmp_path / "new.pem")
    assert "is not signed by the key that ends" in echelon(
        "keys", "rotate", "b.gate", *common, "--key", wrong, *new, code=2
    )
    assert "is not signed by the operator" in echelon(
        "keys", "revoke", "b.gate", *common, "--operator-key", right, *new, code=2
    )
    assert "names no key that follows" in echelon(
        "keys",
        "revoke",
        "controller",
        *common,
        "--operator-key",
        place / "exchange/operator/signing.pem",
        code=2,
    )
    assert "no key of the exchange" in echelon(
        "keys", "rotate", "b.aggregator", *common, "--key", right, *new, code=2
    )
    assert "is, or was, in use" in " ".join(
        echelon("keys", "rotate", "b.gate", *common, "--key", right, "--new", right, code=2).split()
    )
    assert read_changes(tmp_path) == ()
    (tmp_path / "x.key-change.json").write_text("{}")
    with pytest.raises(ConfigError, match="no statement of a change of key"):
        read_changes(tmp_path)


def test_who_is_expelled_gets_no_key(place: Path, tmp_path: Path) -> None:
    operator = place / "exchange" / "operator" / "signing.pem"
    manifest = place / "b" / "gate" / "manifest.dsse"
    echelon(
        "keys", "revoke", "b.gate", "--manifest", manifest, "--changes", tmp_path, "--operator-key", operator
    )
    statement = StatementFile.decode(next(tmp_path.iterdir()).read_bytes())
    assert statement.public == "00" * 32
