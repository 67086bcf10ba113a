"""Private keys at rest under a passphrase: nothing is in the clear, and who has another one gets one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from typer.testing import CliRunner

from echelon.bus.tls import Identity
from echelon.cli.app import app
from echelon.config.broker import SecuritySettings, load_broker
from echelon.errors import ConfigError
from echelon.messages.envelope import Signer
from echelon.passphrase import MAX_BYTES, Passphrase, read_passphrase
from echelon.private import write_private as put
from echelon.provision.broker_map import load_brokers
from echelon.provision.identities import Identities, key_pem, read_key
from echelon.provision.kafka.admin import client_settings
from echelon.provision.kafka.scope import load_scope
from echelon.provision.pki import Authority, request, write_private
from tests.provision.test_deployment import broker_map, settings

SECRET = b"correct horse"
SERVICES = {
    "controller": "exchange/controller",
    "aggregator": "a/aggregator",
    "gate": "a/gate",
    "device": "a/devices",
}


def written(path: Path, content: bytes, mode: int = 0o600) -> Path:
    put(path, content)
    path.chmod(mode)
    return path


def cli(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "1000"})
    return result.exit_code, result.output


# ---- the file ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"word", b"word"),
        (b"word\n", b"word"),
        (b"word\r\n", b"word"),
        (b"word\n\n", b"word\n"),
        (b" two words \n", b" two words "),
        (b"word\r", b"word\r"),
        ("Straße\n".encode(), "Straße".encode()),
        (b"x" * MAX_BYTES + b"\r\n", b"x" * MAX_BYTES),
    ],
)
@pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
def test_one_newline_at_the_end_is_left_out(tmp_path: Path, content: bytes, secret: bytes, mode: int) -> None:
    found = read_passphrase(written(tmp_path / "p", content, mode))
    assert found.secret == secret
    assert "word" not in repr(found)


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (b"", 0o600, "is empty"),
        (b"\n", 0o600, "is empty"),
        (b"\r\n", 0o600, "is empty"),
        (b"x" * (MAX_BYTES + 1), 0o600, "more than 1023 bytes"),
        (b"x" * (MAX_BYTES + 1) + b"\n", 0o600, "more than 1023 bytes"),
        (b"x" * (1 << 20), 0o600, "more than 1023 bytes"),
        (b"word", 0o644, r"every user \(mode 0644\): chmod 600"),
        (b"word", 0o604, "every user"),
        (b"word", 0o602, "every user"),
    ],
)
def test_a_file_that_cannot_be_one_is_refused(tmp_path: Path, content: bytes, mode: int, said: str) -> None:
    path = written(tmp_path / "p", content, mode)
    with pytest.raises(ConfigError, match=said) as raised:
        read_passphrase(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("name", ["none", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"passphrase file .* cannot be read"):
        read_passphrase(tmp_path / name)


# ---- keys --------------------------------------------------------------------------------------------


def test_keys_are_pkcs8_that_others_read_and_hold_nothing_in_the_clear(tmp_path: Path) -> None:
    run = settings()
    count = iter(range(1, 200))
    made = Identities.create(run, lambda size: bytes([next(count)]) * size)
    passphrase = Passphrase(tmp_path / "p", SECRET)
    made.save(tmp_path / "keys", passphrase)
    assert Identities.load(tmp_path / "keys", run, passphrase) == made
    keys = sorted((tmp_path / "keys").rglob("*.pem"))
    assert len(keys) == 2 + 2 * (4 + 5)
    for path in keys:
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        load_pem_private_key(path.read_bytes(), SECRET)
    for call in (lambda: Identities.load(tmp_path / "keys", run), lambda: read_key(keys[0])):
        with pytest.raises(
            ConfigError, match="is encrypted: name the file of its passphrase with passphrase_file"
        ):
            call()


def test_a_wrong_passphrase_and_a_damaged_file_are_one_sentence_each(tmp_path: Path) -> None:
    right, wrong = Passphrase(tmp_path / "p", SECRET), Passphrase(tmp_path / "p", b"wrong")
    path = written(tmp_path / "key.pem", key_pem(bytes(32), right))
    assert read_key(path, right) == bytes(32)
    with pytest.raises(
        ConfigError, match=r"cannot be opened with the passphrase in .*p: it is another one's"
    ):
        read_key(path, wrong)
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:60] + b"AAAA" + whole[64:]):
        put(path, cut)
        with pytest.raises(ConfigError, match=r"key .*key\.pem"):
            read_key(path, right)
    put(path, key_pem(bytes(32)))
    with pytest.raises(ConfigError, match="is not encrypted, and passphrase_file names"):
        read_key(path, right)
    put(path, b"x" * (1 << 20))
    with pytest.raises(ConfigError, match="is larger than"):
        read_key(path)


def test_an_authority_whose_key_is_encrypted_issues_as_any_other(tmp_path: Path) -> None:
    right, wrong = Passphrase(tmp_path / "p", SECRET), Passphrase(tmp_path / "p", b"wrong")
    Authority.create("a").save(tmp_path / "ca.pem", tmp_path / "key.pem", right)
    assert b"BEGIN PRIVATE" not in (tmp_path / "key.pem").read_bytes()
    assert Authority.load(tmp_path / "ca.pem", tmp_path / "key.pem", right).issue("me")
    with pytest.raises(
        ConfigError, match="is encrypted: name the file of its passphrase with ca_passphrase_file"
    ):
        Authority.load(tmp_path / "ca.pem", tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="it is another one's"):
        Authority.load(tmp_path / "ca.pem", tmp_path / "key.pem", wrong)


@pytest.mark.parametrize("apart", [False, True])
def test_tls_takes_an_encrypted_key_and_notices_another_passphrase(tmp_path: Path, apart: bool) -> None:
    authority, passphrase = Authority.create("a"), Passphrase(tmp_path / "p", SECRET)
    written(tmp_path / "p", SECRET + b"\n")
    written(tmp_path / "ca.pem", authority.pem)
    if apart:
        key, asked = request("me", passphrase)
        write_private(tmp_path / "tls.key", key)
        write_private(tmp_path / "tls.pem", authority.sign_request(asked, "me"))
    else:
        write_private(tmp_path / "tls.pem", authority.issue("me", passphrase=passphrase))

    def identity(passphrase: Path | None) -> Identity:
        return Identity(
            SecuritySettings(
                ca=tmp_path / "ca.pem",
                certificate=tmp_path / "tls.pem",
                key=tmp_path / "tls.key" if apart else None,
                passphrase_file=passphrase,
            )
        )

    found = identity(tmp_path / "p")
    assert found.principal == "me"
    with pytest.raises(ConfigError, match=r"is encrypted: name the file .* with security\.passphrase_file"):
        identity(None)
    written(tmp_path / "wrong", b"wrong")
    with pytest.raises(ConfigError, match=r"that the passphrase in .*wrong opens"):
        identity(tmp_path / "wrong")
    # A passphrase that is replaced by one that does not open the key leaves the connection as it is.
    put(tmp_path / "p", b"wrong")
    assert not found.refresh()
    assert found.principal == "me"
    put(tmp_path / ("tls.key" if apart else "tls.pem"), authority.issue("me"))
    with pytest.raises(ConfigError, match=r"is not encrypted, and security\.passphrase_file names"):
        identity(tmp_path / "p")


# ---- commands and services ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment under a passphrase, made by the command, with an authority's key under another."""
    folder = tmp_path_factory.mktemp("deployed")
    broker_map(folder / "stack")
    stack = folder / "stack"
    own = Passphrase(written(folder / "ca-passphrase", b"of the authority\n"), b"of the authority")
    authority = Authority.load(stack / "a" / "ca.pem", stack / "a" / "ca-key.pem")
    (stack / "a" / "ca.pem").unlink()
    (stack / "a" / "ca-key.pem").unlink()
    authority.save(stack / "a" / "ca.pem", stack / "a" / "ca-key.pem", own)
    fields = yaml.safe_load((stack / "brokers.yaml").read_text())
    fields["boundaries"]["a"]["ca_passphrase_file"] = "../ca-passphrase"
    (stack / "brokers.yaml").write_text(yaml.safe_dump(fields))
    assert load_brokers(stack / "brokers.yaml").boundaries["a"].ca_passphrase_file is not None
    boundaries = [
        {"name": name, "devices": 4, "shards": 4, "data": {"source": "text:documents"}} for name in "ab"
    ]
    run = settings(boundaries=boundaries)
    (folder / "run.yaml").write_text(yaml.safe_dump(run.model_dump(mode="json")))
    written(folder / "passphrase", SECRET + b"\n")
    code, output = cli(
        *("deploy", folder / "run.yaml", "--brokers", stack / "brokers.yaml", "--out", folder / "out"),
        *("--passphrase-file", folder / "passphrase"),
    )
    assert code == 0, output
    assert "encrypted with the passphrase in" in output
    return folder / "out"


def test_no_key_of_a_deployment_is_in_the_clear(original: Path) -> None:
    keys = [path for path in original.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]
    assert len(keys) == 3 * 3 + 3 + 2 * (3 + 4 + 8 + 1 + 1)
    for path in keys:
        assert b"-----BEGIN PRIVATE KEY-----" not in path.read_bytes()
        load_pem_private_key(path.read_bytes(), SECRET)
    assert not [path for path in original.rglob("*") if path.is_file() and SECRET in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("role", SERVICES)
def test_every_service_reads_its_passphrase_from_a_file_and_says_what_is_wrong_with_it(
    original: Path, tmp_path: Path, role: str
) -> None:
    shutil.copytree(original, tmp_path / "out")
    config = tmp_path / "out" / SERVICES[role] / "service.yaml"
    assert cli(role, "--config", config, "--check")[0] == 0
    fields = yaml.safe_load(config.read_text())

    def edited(change: Callable[[dict[str, object]], object]) -> tuple[int, str]:
        changed = yaml.safe_load(yaml.safe_dump(fields))
        change(changed)
        config.write_text(yaml.safe_dump(changed))
        return cli(role, "--config", config, "--check")

    written(tmp_path / "wrong", b"wrong")
    written(tmp_path / "open", SECRET, 0o644)
    for change, said in (
        (lambda it: it.pop("passphrase_file"), "is encrypted: name the file of its passphrase"),
        (lambda it: it.update(passphrase_file=str(tmp_path / "wrong")), "it is another one's"),
        (lambda it: it.update(passphrase_file=str(tmp_path / "none")), "cannot be read"),
        (lambda it: it.update(passphrase_file=str(tmp_path / "open")), "every user"),
        (lambda it: it["broker"]["security"].pop("passphrase_file"), "with security.passphrase_file"),
        (
            lambda it: it["broker"]["security"].update(passphrase_file=str(tmp_path / "wrong")),
            "that the passphrase",
        ),
    ):
        code, output = edited(change)
        assert code == 2, output
        assert said in output
        assert "Traceback" not in output
        assert len(output.strip().splitlines()) == 1
    # Relative to the configuration, as every path in it; a device's slots have one for all.
    written(config.parent / "mine", SECRET)

    def relative(it: dict[str, object]) -> None:
        it["passphrase_file"] = "mine"
        it["broker"]["security"]["passphrase_file"] = "mine"  # type: ignore[index]

    assert edited(relative)[0] == 0


def test_people_and_administration_have_it_too(original: Path, tmp_path: Path) -> None:
    for role in ("auditor", "operator", "admin"):
        broker = load_broker(original / "a" / role / "broker.yaml")
        assert broker.security is not None
        assert Identity(broker.security).principal == {"admin": "break-glass"}.get(role, role)
    broker = load_scope(original / "a" / "admin" / "topics.yaml").broker
    assert client_settings(broker)["ssl.key.password"] == SECRET.decode()
    assert broker.security is not None
    without = broker.security.model_copy(update={"passphrase_file": None})
    with pytest.raises(ConfigError, match=r"with security\.passphrase_file"):
        client_settings(broker.model_copy(update={"security": without}))


def test_keys_init_encrypts_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings().model_dump(mode="json")))
    written(tmp_path / "p", SECRET)
    code, output = cli(
        "keys", "init", tmp_path / "run.yaml", tmp_path / "keys", "--passphrase-file", tmp_path / "p"
    )
    assert code == 0, output
    assert "encrypted with one passphrase" in output
    key = read_key(tmp_path / "keys" / "a" / "gate.pem", read_passphrase(tmp_path / "p"))
    assert len(Signer(key).public) == 32
    written(tmp_path / "p", b"")
    code, output = cli(
        "keys", "init", tmp_path / "run.yaml", tmp_path / "more", "--passphrase-file", tmp_path / "p"
    )
    assert (code, "is empty" in output) == (2, True)
    assert not (tmp_path / "more").exists()


def test_publishing_shards_needs_the_enrolment_keys_passphrase(original: Path, tmp_path: Path) -> None:
    command = ("shards", "publish", "--config", original / "a" / "operator" / "topics.yaml")
    code, output = cli(*command)
    assert (code, "with --passphrase-file" in output) == (2, True), output
    written(tmp_path / "wrong", b"wrong")
    code, output = cli(*command, "--passphrase-file", tmp_path / "wrong")
    assert (code, "it is another one's" in output) == (2, True), output
