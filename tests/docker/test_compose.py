"""Who is on which network, who mounts what, and what no container may do; read from compose.yaml itself."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import PurePosixPath

import pytest
import yaml

from echelon.config.run import load as load_run
from echelon.services.config import ServiceConfig
from tests.docker.composed import DOCKER, GPU, MAIN, MONITORING, RUN, SPLIT, SPLIT_RUN, Mount, Service, load
from tests.docker.dockerfile import Folder, folders
from tests.docker.initialiser import healthcheck, init

PROJECT = load()
SERVICES = PROJECT.services
OURS = [service for service in SERVICES.values() if service.ours]
BROKERS = [service for service in SERVICES.values() if service.broker]
FILES = sorted(path.name for path in DOCKER.glob("compose*.yaml"))
PLANES = ("boundary-a", "boundary-b", "exchange")
LONG_RUNNING = ("controller", "aggregator-a", "aggregator-b", "gate-a", "gate-b", "device-a", "device-b")


def names(services: list[Service]) -> list[str]:
    return [service.name for service in services]


def seconds(text: str) -> int:
    found = re.fullmatch(r"(\d+)s", text)
    assert found is not None, text
    return int(found[1])


# ---------------------------------------------------------------------------------------------------------- networks


def test_only_the_gates_are_on_two_networks() -> None:
    several = {name for name, service in SERVICES.items() if len(service.networks) > 1}
    assert several == {"gate-a", "gate-b"}
    assert set(SERVICES["gate-a"].networks) == {"boundary-a", "exchange"}
    assert set(SERVICES["gate-b"].networks) == {"boundary-b", "exchange"}


def test_no_service_is_on_the_default_network_or_the_hosts() -> None:
    for service in SERVICES.values():
        if service.name == "init":
            assert service.fields["network_mode"] == "none"
        else:
            assert service.networks, f"{service.name} would be on compose's default network, with all others"
            assert "network_mode" not in service.fields


def test_networks_lead_nowhere() -> None:
    assert PROJECT.networks == {plane: {"internal": True} for plane in PLANES}


def test_each_service_is_on_its_own_planes_network() -> None:
    for service in SERVICES.values():
        plane = service.name.rpartition("-")[2]
        if plane in {"a", "b"} and not service.name.startswith("gate"):
            assert service.networks == (f"boundary-{plane}",), service.name
    for name in ("exchange", "controller", "topics-exchange", "operator-exchange", "auditor"):
        assert SERVICES[name].networks == ("exchange",), name


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_no_port_is_published(service: Service) -> None:
    assert not {"ports", "expose"} & service.fields.keys()


# ------------------------------------------------------------------------------------------------------------ secrets


def test_a_folder_of_the_deployment_is_mounted_by_one_service_and_read_only() -> None:
    holders: dict[str, set[str]] = defaultdict(set)
    for service in SERVICES.values():
        for mount in service.mounts:
            if service.name != "init":
                holders[mount.source].add(service.name)
                if mount.source.startswith(("conf-", "broker-")):
                    assert mount.read_only, (service.name, mount)
    assert holders["owner"] == set()  # the authorities' keys
    expected = {
        "conf-controller": {"controller"},
        "conf-auditor-exchange": {"auditor"},
        "conf-auditor-a": set(),
        "conf-auditor-b": set(),
    }
    for plane in ("a", "b", "exchange"):
        expected[f"conf-admin-{plane}"] = {f"topics-{plane}"}
        expected[f"conf-operator-{plane}"] = {f"operator-{plane}"}
        expected[f"broker-{plane}"] = {"exchange" if plane == "exchange" else f"boundary-{plane}"}
    for plane in ("a", "b"):
        expected[f"conf-operator-{plane}"] |= {f"shards-{plane}"}
        for role in ("aggregator", "gate"):
            expected[f"conf-{role}-{plane}"] = {f"{role}-{plane}"}
        expected[f"conf-devices-{plane}"] = {f"device-{plane}"}
    declared = {name for name in PROJECT.fields["volumes"] if name.startswith(("conf-", "broker-"))}
    assert {name: holders[name] for name in declared} == expected


def test_state_belongs_to_one_service() -> None:
    holders: dict[str, list[str]] = defaultdict(list)
    for service in SERVICES.values():
        for mount in service.mounts:
            if mount.source.startswith(("state-", "log-", "exports")):
                assert not mount.read_only, (service.name, mount)
            if mount.source.startswith(("state-", "log-")):
                holders[mount.source].append(service.name)
    assert all(len(found) == 1 for found in holders.values()), holders
    assert len(holders) == len(LONG_RUNNING) + len(BROKERS)


def test_no_volume_outlives_its_removal_and_none_is_left_behind_by_a_start() -> None:
    # `down --volumes` passes over volumes that only services of a profile mount.
    started = [service for service in SERVICES.values() if "profiles" not in service.fields]
    assert {mount.source for service in started for mount in service.mounts if mount.named} == set(
        PROJECT.fields["volumes"]
    )
    # A volume that an image declares is made anew at each start unless something is mounted there.
    for broker in BROKERS:
        covered = {mount.target for mount in broker.mounts} | set(broker.fields["tmpfs"])
        assert covered == {"/etc/kafka/secrets", "/var/lib/kafka/data", "/mnt/shared/config"}, broker.name


def test_only_init_mounts_anything_of_the_host_and_only_the_run_file() -> None:
    found = [(s.name, m.source, m.read_only) for s in SERVICES.values() for m in s.mounts if not m.named]
    assert found == [("init", "./run.yaml", True)]


def test_every_volume_is_declared_and_used() -> None:
    used = {mount.source for service in SERVICES.values() for mount in service.mounts if mount.named}
    assert used == set(PROJECT.fields["volumes"])


def test_nothing_secret_stands_in_the_environment() -> None:
    for service in SERVICES.values():
        for name, value in service.environment.items():
            assert not re.search(r"PASSWORD|SECRET|TOKEN|KEY", name), (service.name, name)
            assert "BEGIN" not in value, (service.name, name)


# ------------------------------------------------------------------------------------------------------------- rights


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_no_container_has_more_rights_than_it_needs(service: Service) -> None:
    fields = service.fields
    assert fields["cap_drop"] == ["ALL"]
    assert fields["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "devices", "pid", "ipc", "userns_mode", "group_add"} & fields.keys()
    assert not any("docker.sock" in mount.source for mount in service.mounts)
    if service.name == "init":
        # It hands new volumes to 1000 and goes on as 1000, without a network.
        assert fields["user"] == "0:0"
        assert fields["cap_add"] == ["CHOWN", "SETGID", "SETUID"]
    else:
        assert fields["user"] == "1000:1000"
        assert "cap_add" not in fields


@pytest.mark.parametrize("service", OURS, ids=names(OURS))
def test_our_root_file_system_is_read_only(service: Service) -> None:
    assert service.fields["read_only"] is True
    assert len(service.fields["tmpfs"]) == 1
    assert service.fields["tmpfs"][0].startswith("/tmp:size=")


@pytest.mark.parametrize("service", SERVICES.values(), ids=list(SERVICES))
def test_memory_and_logs_are_bounded(service: Service) -> None:
    limit = service.fields["deploy"]["resources"]["limits"]["memory"]
    assert re.fullmatch(r"\d+[mg]", limit)
    assert set(service.fields["logging"]["options"]) == {"max-size", "max-file"}


@pytest.mark.parametrize("name", [MAIN, MONITORING, SPLIT])
def test_images_are_pinned(name: str) -> None:
    for service in load(name).services.values():
        if service.name == "init" and name == SPLIT:
            continue  # mounts alone
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+", service.image), service.image


def may_enter(service: Service, folder: Folder) -> bool:
    """Whether a container's process may pass through a folder: by its mode alone, unless it may pass over modes."""
    uid, _, gid = str(service.fields["user"]).partition(":")
    if "DAC_OVERRIDE" in service.fields.get("cap_add", ()):
        return True
    bits = 6 if int(uid) == folder.uid else 3 if int(gid) == folder.gid else 0
    return bool(folder.mode >> bits & 1)


@pytest.mark.parametrize("files", [(MAIN,), (MAIN, SPLIT)], ids=["compose", "split"])
def test_every_container_may_enter_the_folders_that_its_mounts_stand_in(files: tuple[str, ...]) -> None:
    made = folders()
    stood_in = set()
    for service in load(*files).services.values():
        # Where a mount covers the folder itself, what counts is who owns the volume.
        covered = {mount.target for mount in service.mounts}
        for mount in service.mounts if service.ours else ():
            for parent in map(str, PurePosixPath(mount.target).parents):
                if parent in made and parent not in covered:
                    stood_in.add((service.name, parent))
                    assert may_enter(service, made[parent]), f"{service.name} cannot reach {mount.target}"
    assert stood_in == {("init", "/etc/echelon")}


def test_root_without_capabilities_does_not_pass_over_modes() -> None:
    init_, device = SERVICES["init"], SERVICES["device-a"]
    assert not may_enter(init_, Folder(1000, 1000, 0o700))
    assert not may_enter(init_, Folder(1000, 1000, 0o770))
    assert may_enter(init_, Folder(1000, 1000, 0o711))
    assert may_enter(
        Service("init", {**init_.fields, "cap_add": ["DAC_OVERRIDE"]}), Folder(1000, 1000, 0o700)
    )
    assert may_enter(device, Folder(1000, 1000, 0o700))
    assert not may_enter(device, Folder(0, 0, 0o700))


@pytest.mark.parametrize("name", FILES)
def test_our_image_is_built_here_and_asked_of_no_registry(name: str) -> None:
    services = load(*dict.fromkeys((MAIN, name))).services.values()
    assert [service.name for service in services if "build" in service.fields] == ["init"]
    for service in services:
        # Whoever builds it must not refuse to; what others make has to be fetched.
        local = service.ours and "build" not in service.fields
        assert service.fields.get("pull_policy") == ("never" if local else None), service.name


# ------------------------------------------------------------------------------------------------------ life and order


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_services_are_watched_restarted_and_given_time_to_stop(name: str) -> None:
    fields = SERVICES[name].fields
    assert fields["restart"] == "on-failure"  # one that ended well, since the run closed, stays down
    check = fields["healthcheck"]
    assert check["test"] == ["CMD", "python", "/opt/echelon/healthcheck.py", "livez"]
    assert (seconds(check["timeout"]), seconds(check["interval"])) == (15, 30)
    assert seconds(check["timeout"]) > healthcheck.TIMEOUT  # its own answer comes before docker's
    shutdown = ServiceConfig.model_fields["shutdown"].default
    assert seconds(fields["stop_grace_period"]) >= shutdown + 5


def test_every_other_service_of_ours_is_a_job_without_a_check() -> None:
    jobs = {service.name for service in OURS} - set(LONG_RUNNING)
    assert jobs == {
        "init",
        *(f"topics-{plane}" for plane in ("a", "b", "exchange")),
        *(f"operator-{plane}" for plane in ("a", "b", "exchange")),
        *(f"shards-{plane}" for plane in ("a", "b")),
        "auditor",
    }
    for name in jobs:
        assert SERVICES[name].job
        assert SERVICES[name].fields["healthcheck"] == {"disable": True}


def test_jobs_try_for_minutes_and_an_open_run_is_no_finding() -> None:
    for name in ("topics-a", "topics-b", "topics-exchange", "shards-a", "shards-b"):
        command = SERVICES[name].command
        assert float(command[command.index("--wait") + 1]) >= 180, name
    assert "--allow-open" in SERVICES["auditor"].command


@pytest.mark.parametrize("service", OURS, ids=names(OURS))
def test_the_name_of_a_broker_that_is_down_is_not_asked_for_long(service: Service) -> None:
    waits = dict(option.split(":") for option in service.fields["dns_opt"])
    assert int(waits["timeout"]) * int(waits["attempts"]) <= 2


def test_a_busy_broker_is_not_taken_for_gone() -> None:
    text = (DOCKER / "kafka" / "server.properties").read_text("utf-8")
    (session,) = re.findall(r"^broker\.session\.timeout\.ms=(\d+)$", text, re.MULTILINE)
    assert int(session) >= 9000
    for broker in BROKERS:
        assert broker.fields["restart"] == "unless-stopped"
        assert seconds(broker.fields["healthcheck"]["timeout"]) == 15


def test_nobody_starts_before_what_it_needs() -> None:
    done, healthy = "service_completed_successfully", "service_healthy"
    for plane in ("a", "b", "exchange"):
        broker = "exchange" if plane == "exchange" else f"boundary-{plane}"
        assert SERVICES[broker].after == {"init": done}
        assert SERVICES[f"topics-{plane}"].after == {"init": done, broker: healthy}
    for plane in ("a", "b"):
        assert SERVICES[f"shards-{plane}"].after == {f"topics-{plane}": done}
        assert SERVICES[f"aggregator-{plane}"].after == {f"topics-{plane}": done}
        assert SERVICES[f"gate-{plane}"].after == {f"topics-{plane}": done, "topics-exchange": done}
        assert SERVICES[f"device-{plane}"].after == {f"topics-{plane}": done, f"shards-{plane}": done}
    assert SERVICES["controller"].after == {"topics-exchange": done}


def test_people_tools_are_not_started_by_up() -> None:
    with_profile = {name for name, service in SERVICES.items() if "profiles" in service.fields}
    assert with_profile == {"auditor", "operator-a", "operator-b", "operator-exchange"}


def test_devices_can_be_scaled() -> None:
    for name in ("device-a", "device-b"):
        fields = SERVICES[name].fields
        assert SERVICES[name].environment["ECHELON_OWN_SLOT_ONLY"] == "true"
        assert fields["deploy"]["replicas"] == 4
        assert "container_name" not in fields
        assert "hostname" not in fields


# -------------------------------------------------------------------------------------------------- agreement with init


def test_init_mounts_a_volume_for_every_folder_that_it_fills() -> None:
    places = init.Places(init.Path("/deployment"), ("a", "b"))
    mounted = {mount.target for mount in SERVICES["init"].mounts if mount.target.startswith("/deployment/")}
    assert mounted == {str(path) for path in places.all()}
    assert SERVICES["init"].command[-2:] == ("--folder", "/deployment")


def test_a_folder_goes_to_the_container_that_its_path_names() -> None:
    at = {mount.source: mount.target for mount in SERVICES["init"].mounts}
    for service in OURS:
        if service.name == "init":
            continue
        (folder,) = [mount.source for mount in service.mounts if mount.target == "/etc/echelon"]
        plane, role = at[folder].removeprefix("/deployment/").split("/")
        assert {"exchange": "exchange"}.get(plane, f"boundary-{plane}") in service.networks
        expected = {"topics": "admin", "shards": "operator", "device": "devices"}
        kind = service.name.partition("-")[0]
        assert role == expected.get(kind, kind)


def test_brokers_find_their_files_where_init_says() -> None:
    at = {mount.source: mount.target for mount in SERVICES["init"].mounts}
    hosts = {init.host_of(name): name for name in ("exchange", "a", "b")}
    assert set(hosts) == set(names(BROKERS))
    clusters = set()
    for broker in BROKERS:
        plane = hosts[broker.name]
        targets = {mount.target: mount.source for mount in broker.mounts}
        assert targets == {str(init.SECRETS): f"broker-{plane}", str(init.DATA): f"log-{plane}"}
        assert at[f"broker-{plane}"] == f"/deployment/brokers/{plane}"
        assert broker.networks == (broker.name,)
        assert broker.fields["healthcheck"]["test"][-1].endswith(f"/127.0.0.1/{init.PORT}")
        # The image takes any other KAFKA_ variable for a property and would write it over the mounted file.
        assert set(broker.environment) == {"CLUSTER_ID", "KAFKA_HEAP_OPTS"}
        assert re.fullmatch(r"[A-Za-z0-9_-]{22}", broker.environment["CLUSTER_ID"])
        clusters.add(broker.environment["CLUSTER_ID"])
    assert len(clusters) == len(BROKERS)


# ----------------------------------------------------------------------------------------------------------- overrides


def test_monitoring_alone_publishes_ports_and_on_loopback() -> None:
    project = load(MONITORING)
    published = {name: service.fields["ports"] for name, service in project.services.items()}
    assert published == {"prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}
    assert project.services["grafana"].networks == ("monitoring",)
    for service in project.services.values():
        assert service.fields["cap_drop"] == ["ALL"]
        assert service.fields["read_only"] is True
        assert not {"privileged", "user", "devices", "network_mode"} & service.fields.keys()
        for mount in service.mounts:
            assert mount.read_only != mount.named, (service.name, mount)
            assert not mount.source.startswith(("conf-", "broker-", "owner"))


def test_overrides_change_no_network_user_or_mount_of_a_service() -> None:
    for name in (MONITORING, GPU):
        for service in load(name).services.values():
            if service.name in SERVICES:
                assert service.fields.keys() == {"deploy"}, (name, service.name)
    assert set(load(MONITORING).services) & set(SERVICES) == set()


# ------------------------------------------------------------------------------------------------------------- edges

SPLIT_SERVICES = load(MAIN, SPLIT).services
EDGES = {"edge-0-a": "a", "edge-0-b": "b"}


def test_the_split_override_adds_edges_and_mounts_and_changes_nothing_else() -> None:
    assert set(SPLIT_SERVICES) == {*SERVICES, *EDGES}
    assert {
        name: service for name, service in SPLIT_SERVICES.items() if name in SERVICES and name != "init"
    } == {name: service for name, service in SERVICES.items() if name != "init"}
    before, after = SERVICES["init"], SPLIT_SERVICES["init"]
    assert {**after.fields, "volumes": ()} == {**before.fields, "volumes": ()}
    added = {
        Mount(f"conf-{name}", f"/deployment/{plane}/edges/edge-0", False) for name, plane in EDGES.items()
    }
    run = Mount("./run.split.yaml", "/etc/echelon/run.yaml", True)
    assert {*after.mounts} - {*before.mounts} == {*added, run}
    assert {*before.mounts} - {*after.mounts} == {Mount("./run.yaml", "/etc/echelon/run.yaml", True)}


@pytest.mark.parametrize("name", EDGES)
def test_an_edge_has_the_rights_life_and_place_of_its_boundarys_services(name: str) -> None:
    edge, other = SPLIT_SERVICES[name], SERVICES[f"aggregator-{EDGES[name]}"]
    same = (
        "cap_drop",
        "security_opt",
        "logging",
        "image",
        "user",
        "read_only",
        "tmpfs",
        "dns_opt",
        "restart",
        "healthcheck",
    )
    same += ("stop_grace_period", "networks", "depends_on")
    assert {key: edge.fields[key] for key in same} == {key: other.fields[key] for key in same}
    assert edge.fields.keys() == other.fields.keys()
    device = SERVICES[f"device-{EDGES[name]}"].environment
    assert edge.environment == {key: value for key, value in device.items() if key != "ECHELON_OWN_SLOT_ONLY"}
    assert edge.mounts == (
        Mount(f"conf-{name}", "/etc/echelon", True),
        Mount(f"state-{name}", "/var/lib/echelon", False),
    )
    holders = {
        one.name for one in SPLIT_SERVICES.values() for mount in one.mounts if mount.source == f"conf-{name}"
    }
    assert holders == {"init", name}


def test_volumes_of_edges_are_declared_and_used() -> None:
    project = load(MAIN, SPLIT)
    used = {mount.source for one in project.services.values() for mount in one.mounts if mount.named}
    assert used == set(project.fields["volumes"])


def test_init_mounts_a_volume_for_every_edge_of_its_run_file() -> None:
    places = init.Places.of(init.Path("/deployment"), load_run(SPLIT_RUN))
    mounted = {
        mount.target for mount in SPLIT_SERVICES["init"].mounts if mount.target.startswith("/deployment/")
    }
    assert mounted == {str(path) for path in places.all()}
    assert {"/deployment/a/edges/edge-0", "/deployment/b/edges/edge-0"} < mounted


def test_the_split_run_is_the_other_one_but_for_its_edges() -> None:
    plain, split = load_run(RUN), load_run(SPLIT_RUN)
    assert all(boundary.split is not None for boundary in split.boundaries)
    whole = tuple(boundary.model_copy(update={"split": None}) for boundary in split.boundaries)
    assert split.model_copy(update={"boundaries": whole, "name": plain.name}) == plain


def test_the_gpu_override_is_for_devices_alone() -> None:
    assert set(load(GPU).services) == {"device-a", "device-b"}


def test_the_project_has_a_name_of_its_own() -> None:
    text = (init.Path(__file__).parents[2] / "docker" / ".env").read_text()
    assert "COMPOSE_PROJECT_NAME=echelon" in text.splitlines()
    assert yaml.safe_load((init.Path(__file__).parents[2] / "docker" / MAIN).read_text())
