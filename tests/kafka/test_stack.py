"""The native stack starts, answers, dies and comes back; and it touches no process but its own."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from echelon.errors import BusError, ConfigError
from echelon.provision.kafka.admin import Connection
from echelon.provision.pki import Authority
from tools.kafka import artifacts as kafka_artifacts
from tools.kafka.properties import templates
from tools.kafka.stack import Stack, main
from tools.kafka.wipe import PATIENCE


def test_every_broker_answers_those_of_its_own_authority(stack):
    for broker in stack.brokers.values():
        assert broker.running
        assert Connection(broker.settings("break-glass")).metadata().brokers


def test_the_broker_map_says_where_each_is_and_what_its_authority_is(stack):
    found = yaml.safe_load(stack.brokers_yaml.read_text())
    assert list(found["boundaries"]) == ["a", "b"]
    for name, entry in {"exchange": found["exchange"], **found["boundaries"]}.items():
        assert entry["url"] == stack[name].url
        loaded = Authority.load(stack.folder / entry["ca"], stack.folder / entry["ca_key"])
        assert loaded.pem == stack[name].authority.pem
    assert len({stack[name].authority.pem for name in stack.brokers}) == 3


def test_a_user_with_a_password_is_the_principal_of_that_name(stack):
    settings = stack["a"].scram_settings("break-glass")
    assert Connection(settings).metadata().brokers
    settings.security.sasl.password_file.write_text("another")
    try:
        with pytest.raises(BusError, match=r"(?i)authentication"):
            Connection(settings).metadata(timeout=10)
    finally:
        settings.security.sasl.password_file.unlink()


def test_up_again_leaves_what_runs_alone(stack):
    before = {name: broker.pid for name, broker in stack.brokers.items()}
    again = Stack(stack.folder)
    again.up()
    assert {name: broker.pid for name, broker in again.brokers.items()} == before


def test_a_killed_broker_comes_back_with_its_topics(stack):
    from confluent_kafka.admin import NewTopic

    broker = stack["b"]
    admin = Connection(broker.settings("break-glass")).client
    admin.create_topics([NewTopic("survives", 1, 1)])["survives"].result(PATIENCE)
    broker.kill()
    assert not broker.running
    with pytest.raises(BusError, match="no answer"):
        Connection(broker.settings("break-glass")).metadata(timeout=1)
    stack.start("b")
    assert "survives" in Connection(broker.settings("break-glass")).metadata().topics
    Connection(broker.settings("break-glass")).client.delete_topics(["survives"])["survives"].result(PATIENCE)


def test_a_paused_broker_is_silent_and_answers_when_it_goes_on(stack):
    broker = stack["b"]
    connection = Connection(broker.settings("break-glass"))
    connection.metadata()
    broker.pause()
    try:
        assert broker.running
        with pytest.raises(BusError, match="no answer"):
            connection.metadata(timeout=1)
    finally:
        broker.resume()
    broker.wait_ready()


def test_a_stale_pid_file_names_nobody(stack, tmp_path):
    other = Stack(tmp_path, ["a"])
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "a" / "pid").write_text(f"{sleeper.pid}\n")
        assert not other["a"].running
        assert not other["a"].signal(signal.SIGKILL)
        other.down()
        assert sleeper.poll() is None
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_taken_port_is_named(stack, tmp_path):
    other = Stack(tmp_path, ["c"], first_port=22_900)
    with (
        socket.create_server(("127.0.0.1", other["c"].ports.client)),
        pytest.raises(ConfigError, match=f"port {other['c'].ports.client} is taken"),
    ):
        other.up()
    assert not other["c"].running


def test_a_broker_that_cannot_start_says_why(stack, tmp_path):
    other = Stack(tmp_path, ["c"])
    (tmp_path / "c" / "broker.pem").write_text("not a key")
    started = time.monotonic()
    with pytest.raises(BusError, match=r"(?s)ended before it was ready.*PEM"):
        other.up()
    assert time.monotonic() - started < 60


def test_the_command_line_starts_says_and_stops(stack, tmp_path, capsys):
    folder = str(tmp_path / "stack")
    assert main(["status", "--folder", folder]) == 0
    assert "there is no stack" in capsys.readouterr().out
    try:
        command = [sys.executable, "-m", "tools.kafka", "up", "--folder", folder, "c"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
        pid = Stack(Path(folder))["c"].pid
        assert pid is not None  # it outlives the command that started it
        assert f"pid {pid}" in said
        assert "python -m tools.kafka down" in said
    finally:
        assert main(["down", "--folder", folder]) == 0
    assert "stopped" in capsys.readouterr().out
    assert Stack(Path(folder))["c"].pid is None
    assert not (Path("/proc") / str(pid) / "exe").exists()
    assert main(["up", "--folder", folder, "Bad_Name"]) == 2
    assert "lower-case" in capsys.readouterr().err


def test_a_server_certificate_says_localhost(stack):
    broker = stack["a"]
    context = ssl.create_default_context(cafile=str(broker.folder / "ca.pem"))
    context.load_cert_chain(broker.settings("auditor").security.certificate)
    for host in ("localhost", "127.0.0.1", "boundary-a"):
        with (
            socket.create_connection(("127.0.0.1", broker.ports.client), 10) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            assert secure.version() == "TLSv1.3"
    with (
        socket.create_connection(("127.0.0.1", broker.ports.client), 10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        context.wrap_socket(plain, server_hostname="exchange")


def test_jar_files_that_are_not_the_listed_ones_are_refused(stack, tmp_path, monkeypatch):
    wanted = kafka_artifacts.listed()
    real = kafka_artifacts.jars()
    copy = tmp_path / "libs"
    copy.mkdir()
    for name in wanted:
        (copy / name).symlink_to(real / name)
    monkeypatch.setenv("ECHELON_KAFKA_CACHE", str(copy))
    assert kafka_artifacts.jars() == copy
    victim = copy / "slf4j-api-1.7.36.jar"
    content = bytearray(victim.read_bytes())
    victim.unlink()
    content[1000] ^= 1
    victim.write_bytes(content)
    with pytest.raises(ConfigError, match=r"slf4j-api-1\.7\.36\.jar differs"):
        kafka_artifacts.jars()
    victim.unlink()
    with pytest.raises(ConfigError, match="1 of 46 files are missing"):
        kafka_artifacts.jars()
    victim.symlink_to(real / victim.name)
    (copy / "evil.jar").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"evil\.jar is not listed"):
        kafka_artifacts.jars()


def test_without_java_or_maven_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("ECHELON_KAFKA_CACHE", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="needs Java 17 or newer"):
        kafka_artifacts.java()
    with pytest.raises(ConfigError, match="no mvn on PATH"):
        kafka_artifacts.jars()
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    old.chmod(0o755)
    with pytest.raises(ConfigError, match=r"11\.0\.2.*Java 17 or newer"):
        kafka_artifacts.java()


def test_the_templates_are_where_the_code_looks():
    assert {path.name for path in templates().iterdir()} >= {
        "server.properties",
        "pom.xml",
        "artifacts.sha256",
    }
