"""`init`: what it puts where, that every service takes what it finds there, and what renewal changes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from cryptography import x509

from echelon.config.run import load as load_run
from echelon.errors import ConfigError
from echelon.services.config import (
    AggregatorConfig,
    ControllerConfig,
    DeviceConfig,
    EdgeConfig,
    GateConfig,
    load_service,
)
from tests.docker.composed import DOCKER, MAIN, ROOT, SPLIT, SPLIT_RUN, Service, load
from tests.docker.initialiser import init

SERVICES = load().services
KINDS = {
    "device": DeviceConfig,
    "aggregator": AggregatorConfig,
    "gate": GateConfig,
    "controller": ControllerConfig,
    "edge": EdgeConfig,
}
SPLIT_SERVICES = load(MAIN, SPLIT).services
EDGES = [service for service in SPLIT_SERVICES.values() if service.name not in SERVICES]
LONG_RUNNING = [service for service in SERVICES.values() if service.ours and not service.job]


def folders(folder: Path) -> Path:
    """What docker makes before `init` starts: an empty folder for each volume."""
    for path in init.Places(folder, ("a", "b")).all():
        path.mkdir(parents=True)
    return folder


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """docker/run.yaml with a learner that needs no model."""
    fields = yaml.safe_load((DOCKER / "run.yaml").read_text())
    path = tmp_path_factory.mktemp("run") / "run.yaml"
    path.write_text(yaml.safe_dump({**fields, "learner": {"kind": "quadratic", "dim": 8}}))
    return path


@pytest.fixture(scope="module")
def deployment(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a first `init` leaves in the volumes; it begins with an attempt that was interrupted."""
    folder = folders(tmp_path_factory.mktemp("volumes"))
    (folder / "a" / "gate" / "signing.pem").write_text("half")
    (folder / "owner" / "deployment").mkdir()
    (folder / "owner" / "deployment" / "left").write_text("over")
    init.make(run_file, init.Places(folder, ("a", "b")))
    return folder


@pytest.fixture(scope="module")
def split_deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `init` leaves with the run file of compose.split.yaml; split training needs the model itself."""
    pytest.importorskip("torch")
    places = init.Places.of(tmp_path_factory.mktemp("split"), load_run(SPLIT_RUN))
    for path in places.all():
        path.mkdir(parents=True)
    init.make(SPLIT_RUN, places)
    return places.folder


def folder_of(service: Service, deployment: Path) -> Path:
    """Where a container's /etc/echelon is, by the volume that it shares with `init`."""
    at = {mount.source: mount.target for mount in SPLIT_SERVICES["init"].mounts}
    (volume,) = [mount.source for mount in service.mounts if mount.target == "/etc/echelon"]
    return deployment / Path(at[volume]).relative_to("/deployment")


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_the_run_file_is_one() -> None:
    settings = load_run(DOCKER / "run.yaml")
    assert [boundary.name for boundary in settings.boundaries] == ["a", "b"]
    for boundary in settings.boundaries:
        assert len(boundary.device_list()) == 8
        replicas = SERVICES[f"device-{boundary.name}"].fields["deploy"]["replicas"]
        assert (
            settings.secure.k_min <= (settings.window.cohort or 0) <= replicas <= len(boundary.device_list())
        )
        assert (boundary.shards or 0) >= replicas


def takes_its_folder(service: Service, deployment: Path) -> None:
    """The schema of its role takes the folder and the variables; a service of boundary a is asked itself, too."""
    folder = folder_of(service, deployment)
    role = service.command[0]
    config = load_service(KINDS[role], folder / "service.yaml", service.environment)
    assert str(config.state) == "/var/lib/echelon"
    assert config.http.host == "0.0.0.0"
    assert config.http.port == 9464
    hosts = {broker.url for broker in config.brokers().values()}
    assert hosts == {f"kafka://{network}:9092" for network in service.networks}
    if service.name.endswith("-b"):
        return  # as boundary a; what follows starts a process
    command = [word.replace("/etc/echelon", str(folder)) for word in service.command]
    done = subprocess.run(
        [sys.executable, "-m", "echelon", *command, "--check"],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
        env={**os.environ, **service.environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("service", LONG_RUNNING, ids=[service.name for service in LONG_RUNNING])
def test_a_service_takes_its_folder_and_its_environment(service: Service, deployment: Path) -> None:
    takes_its_folder(service, deployment)


@pytest.mark.slow
@pytest.mark.timeout(400)  # the first one loads the model
@pytest.mark.parametrize("service", EDGES, ids=[service.name for service in EDGES])
def test_an_edge_takes_its_folder_and_its_environment(service: Service, split_deployment: Path) -> None:
    takes_its_folder(service, split_deployment)
    folder = folder_of(service, split_deployment)
    config = load_service(EdgeConfig, folder / "service.yaml", service.environment)
    assert config.edge == f"{service.name[-1]}.edge-0"
    assert init.common_name(folder / "tls.pem") == config.edge


@pytest.mark.slow
@pytest.mark.timeout(400)  # the first one loads the model
def test_topics_of_a_split_boundary_are_applied_with_its_edges_principals(split_deployment: Path) -> None:
    scope = yaml.safe_load((split_deployment / "a" / "admin" / "topics.yaml").read_text())
    assert scope["edges"] == ["a.edge-0"]
    assert yaml.safe_load((split_deployment / "a" / "operator" / "topics.yaml").read_text())["edges"] == [
        "a.edge-0"
    ]


@pytest.mark.slow
def test_a_device_can_have_one_slot_for_good_by_variables_alone(deployment: Path) -> None:
    folder = folder_of(SERVICES["device-a"], deployment)
    variables = {"ECHELON_SLOTS": "null", "ECHELON_SLOT": f"{folder}/slots/a-3"}
    config = load_service(DeviceConfig, folder / "service.yaml", variables)
    assert (config.slots, config.slot) == (None, folder / "slots" / "a-3")


def test_a_variable_that_no_schema_knows_is_refused(deployment: Path) -> None:
    folder = folder_of(SERVICES["gate-a"], deployment)
    with pytest.raises(ConfigError, match="ECHELON_HTTP__HOSTS"):
        load_service(GateConfig, folder / "service.yaml", {"ECHELON_HTTP__HOSTS": "0.0.0.0"})


@pytest.mark.slow
@pytest.mark.parametrize(
    "service", [s for s in SPLIT_SERVICES.values() if s.ours], ids=lambda service: service.name
)
def test_every_command_is_one_of_the_command_line(service: Service) -> None:
    if service.name == "init":
        assert service.entrypoint == ("python", "/opt/echelon/init.py")
        return
    assert service.entrypoint == ("echelon",)
    import click
    import typer

    from echelon.cli.app import app

    command: object = typer.main.get_command(app)
    words = list(service.command)
    context = None
    while hasattr(command, "get_command"):
        name = words.pop(0)
        command = command.get_command(click.Context(command), name)  # type: ignore[arg-type]
        assert command is not None, f"echelon {' '.join(service.command)}: there is no {name}"
    context = command.make_context(service.command[0], words)  # type: ignore[attr-defined]
    assert context.params


@pytest.mark.slow
def test_credentials_for_the_exchange_are_with_gates_and_its_own_people_alone(deployment: Path) -> None:
    authority = (deployment / "brokers" / "exchange" / "ca.pem").read_bytes()
    holders = {
        str(path.parent.relative_to(deployment))
        for path in deployment.rglob("*.pem")
        if path.read_bytes() == authority and not path.is_relative_to(deployment / "owner")
    }
    exchange = {f"exchange/{role}" for role in init.EXCHANGE_ROLES}
    assert holders == {"brokers/exchange", "a/gate", "b/gate", *exchange}


def test_no_private_key_is_in_two_volumes_or_left_with_the_owner(deployment: Path) -> None:
    seen: dict[bytes, Path] = {}
    for path in deployment.rglob("*.pem"):
        text = path.read_bytes()
        if b"PRIVATE KEY" in text:
            key = text.partition(b"-----BEGIN CERTIFICATE")[0]
            assert key not in seen, f"{path} and {seen.get(key)}"
            seen[key] = path
            assert path.stat().st_mode & 0o077 == 0, path
    owned = {str(path.relative_to(deployment / "owner")) for path in seen.values() if "owner" in path.parts}
    assert owned == {f"authorities/{name}/ca-key.pem" for name in ("exchange", "a", "b")}
    assert not (deployment / "owner" / "deployment").exists()
    assert len(seen) > 50


def test_a_broker_has_properties_and_a_certificate_for_its_name(deployment: Path) -> None:
    for name in ("exchange", "a", "b"):
        folder = deployment / "brokers" / name
        assert {path.name for path in folder.iterdir()} == {"server.properties", "broker.pem", "ca.pem"}
        lines = (folder / "server.properties").read_text().splitlines()
        host = init.host_of(name)
        assert f"advertised.listeners=CLIENT://{host}:9092" in lines
        assert "listeners=CLIENT://0.0.0.0:9092,CONTROLLER://localhost:9093" in lines
        assert "log.dirs=/var/lib/kafka/data" in lines
        assert "ssl.keystore.location=/mnt/shared/config/broker.pem" in lines
        certificate = x509.load_pem_x509_certificate((folder / "broker.pem").read_bytes())
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert host in names.get_values_for_type(x509.DNSName)


def test_run_again_it_changes_nothing(
    deployment: Path, run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)  # this process keeps its own user
    before = digests(deployment)
    assert init.main(["--run", str(run_file), "--folder", str(deployment)]) == 0
    assert digests(deployment) == before
    assert "the deployment is there" in capsys.readouterr().out


def test_another_run_file_is_refused(
    deployment: Path,
    run_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    other = tmp_path / "run.yaml"
    other.write_text(run_file.read_text().replace("seed: 1", "seed: 2"))
    before = digests(deployment)
    assert init.main(["--run", str(other), "--folder", str(deployment)]) == 2
    assert digests(deployment) == before
    assert "is not the run file that this deployment was made from" in capsys.readouterr().err


def test_renewal_issues_every_certificate_anew_and_nothing_else(
    deployment: Path, run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    before = digests(deployment)
    held = {path: init.common_name(path) for path in deployment.rglob("*tls.pem")}
    assert init.main(["--run", str(run_file), "--folder", str(deployment), "--renew"]) == 0
    after = digests(deployment)
    assert after.keys() == before.keys()
    changed = {path for path in after if after[path] != before[path]}
    assert changed == {path for path in after if path.endswith(("tls.pem", "broker.pem"))}
    # Controller, auditors, operators, admins; gates have two, each of sixteen slots one, and replicas without a slot
    # one for each boundary; three brokers.
    assert len(changed) == 4 + 2 * (1 + 2 + 8 + 1 + 3) + 3
    for path, name in held.items():
        assert init.common_name(path) == name
        plane = path.relative_to(deployment).parts[0]
        issuer = "exchange" if path.name == "exchange-tls.pem" else plane
        authority = x509.load_pem_x509_certificate((deployment / "brokers" / issuer / "ca.pem").read_bytes())
        x509.load_pem_x509_certificate(path.read_bytes()).verify_directly_issued_by(authority)
        assert path.stat().st_mode & 0o077 == 0


def test_what_is_missing_is_named(tmp_path: Path, run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folders(tmp_path / "volumes")
    (folder / "b" / "gate").rmdir()
    assert init.main(["--run", str(run_file), "--folder", str(folder)]) == 2
    assert f"there is no {folder}/b/gate" in capsys.readouterr().err
    (folder / "b" / "gate").mkdir()
    # A run file with edges asks for their volumes.
    assert init.main(["--run", str(SPLIT_RUN), "--folder", str(folder)]) == 2
    assert f"there is no {folder}/a/edges/edge-0" in capsys.readouterr().err
    assert init.main(["--run", str(folder / "none.yaml"), "--folder", str(folder)]) == 2
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_renewal_needs_a_deployment(
    tmp_path: Path, run_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder = folders(tmp_path / "volumes")
    assert init.main(["--run", str(run_file), "--folder", str(folder), "--renew"]) == 2
    assert "there is no deployment" in capsys.readouterr().err
    assert digests(folder) == {}
