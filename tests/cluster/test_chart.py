"""The Helm chart on a real cluster: installed by the page's commands, scaled, killed, evicted, audited, removed.

The tests are one story and run in this order, on one release of the exchange and one of a boundary.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from echelon.config.run import load as load_run
from tests.cluster.cluster import WORLD_ADDRESS, Cluster, wait_for
from tests.containers.conftest import Figures
from tests.containers.stack import ASK, IMAGE, metrics_in
from tests.docker.composed import ROOT, RUN
from tests.docker.initialiser import init

pytestmark = [pytest.mark.nightly, pytest.mark.xdist_group("containers"), pytest.mark.timeout(3600)]

EXCHANGE, BOUNDARY = "exchange", "boundary-a"
ENROLLED, REPLICAS, FLOOR = 8, 4, 3
PODS = {EXCHANGE: ("broker-0", "controller-0"), BOUNDARY: ("broker-0", "aggregator-0", "gate-0", "a-0")}
COMMANDS = re.findall(
    r"```\n(kubectl create namespace.*?)```", (ROOT / "docs" / "deployment.md").read_text(), re.DOTALL
)
"""Of the page, one block for each plane."""
SMALL = {
    "devices": {
        "enrolled": ENROLLED, "replicas": REPLICAS, "floor": FLOOR,
        "resources": {"requests": {"cpu": "50m", "memory": "512Mi"}, "limits": {"memory": "2Gi"}},
    },
    "services": {"resources": {"requests": {"cpu": "20m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}},
    "broker": {"resources": {"requests": {"cpu": "100m", "memory": "512Mi"}, "limits": {"memory": "1Gi"}}},
    "shards": True,
}  # fmt: skip
"""Values for a node of two cores: what is asked for in advance, not what may be used."""


@dataclass(frozen=True)
class Releases:
    """Both releases, and the folder from which they were made."""

    cluster: Cluster
    folder: Path

    def commit(self) -> int:
        """The number of the newest commit; -1 while the controller does not answer."""
        code, said = self.cluster.execute(EXCHANGE, "controller-0", "python", "-c", ASK)
        return -1 if code else int(metrics_in(said).get("echelon_commit", -1))

    def goes_on(self, commits: int = 1) -> float:
        """Wait until the run has so many commits more; seconds."""
        wait_for(lambda: self.commit() >= 0, "the controller answers")
        before = self.commit()
        return wait_for(lambda: self.commit() >= before + commits, f"commit {before + commits}")

    def pods(self, namespace: str) -> dict[str, Any]:
        """Pods of StatefulSets, by name."""
        found = self.cluster.get("-n", namespace, "pods")["items"]
        return {
            one["metadata"]["name"]: one
            for one in found
            if any(owner["kind"] == "StatefulSet" for owner in one["metadata"].get("ownerReferences", ()))
        }

    def ready(self, namespace: str, *, devices: int = REPLICAS) -> bool:
        """Whether every pod of a plane is there and ready, and no other."""
        found = self.pods(namespace)
        wanted = set(PODS[namespace])
        if namespace == BOUNDARY:
            wanted |= {f"a-{number}" for number in range(devices)}
        return set(found) == wanted and all(is_ready(one) for one in found.values())

    def all_ready(self, *, devices: int = REPLICAS) -> bool:
        return self.ready(EXCHANGE) and self.ready(BOUNDARY, devices=devices)


def is_ready(pod: Mapping[str, Any]) -> bool:
    conditions = pod["status"].get("conditions", ())
    gone = "deletionTimestamp" in pod["metadata"]
    return not gone and any((one["type"], one["status"]) == ("Ready", "True") for one in conditions)


@pytest.fixture(scope="module")
def releases(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Releases:
    """The folders that owners have before they begin: what `echelon deploy` wrote, and the brokers' own."""
    folder = tmp_path_factory.mktemp("owner")
    settings = yaml.safe_load(RUN.read_text("utf-8")) | {"name": "cluster", "budget": {"commits": 2000}}
    settings["boundaries"] = settings["boundaries"][:1]
    settings["sync"] = {"steps": 2, "windows": 1}  # short windows: what is tried here is not the training
    run = folder / "run.yaml"
    run.write_text(yaml.safe_dump(settings))
    places = init.Places.of(folder / "deployment", load_run(run))
    for path in places.all():
        path.mkdir(parents=True)
    init.make(run, places)
    (folder / "brokers").symlink_to(folder / "deployment" / "brokers")
    (folder / "docker").symlink_to(ROOT / "docker")
    (folder / "small.yaml").write_text(yaml.safe_dump(SMALL))
    return Releases(cluster, folder)


def test_the_commands_of_the_page_install_both_planes(releases: Releases, figures: Figures) -> None:
    assert len(COMMANDS) == 2
    for block in COMMANDS:
        lines = re.sub(r"(helm install \S+ \S+)", r"\1 --values small.yaml", block)
        lines = lines.replace("clusterId=ID", "clusterId=6_DRM_rNQROyEE9Jz7qMUg")
        done = releases.cluster.client(
            ["bash", "-euo", "pipefail", "-c", lines], folder=releases.folder, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
    took = wait_for(releases.all_ready, "all pods are ready")
    figures["ready_after_install_seconds"] = round(took)


def test_jobs_have_ended_well_and_commits_are_made(releases: Releases, figures: Figures) -> None:
    for namespace, jobs in ((EXCHANGE, {"topics-1"}), (BOUNDARY, {"topics-1", "shards-1"})):
        found = {
            one["metadata"]["name"]: one["status"]
            for one in releases.cluster.get("-n", namespace, "jobs")["items"]
        }
        assert {name for name, status in found.items() if status.get("succeeded") == 1} == jobs, found
    took = wait_for(lambda: releases.commit() >= 1, "the first commit")
    figures["first_commit_after_ready_seconds"] = round(took)


@pytest.fixture(scope="module")
def world(cluster: Cluster) -> Iterator[str]:
    """A listener where the cluster's one link leads; `HOST/PORT`."""
    listen = "import socket; s = socket.create_server(('0.0.0.0', 8080))\nwhile True: s.accept()[0].close()"
    with subprocess.Popen(cluster.outside("python3", "-c", listen)) as process:
        try:
            yield f"{WORLD_ADDRESS}/8080"
        finally:
            process.kill()


def reaches(releases: Releases, namespace: str, pod: str, target: str) -> bool:
    connect = ("timeout", "5", "bash", "-c", f"exec 3<>/dev/tcp/{target}")
    return releases.cluster.execute(namespace, pod, *connect)[0] == 0


def test_only_gates_reach_two_planes_and_nothing_leads_out(releases: Releases, world: str) -> None:
    cluster = releases.cluster
    node = ["bash", "-c", f"exec 3<>/dev/tcp/{world}"]
    wait_for(lambda: cluster.client(node).returncode == 0, "the listener is there, and the node reaches it")
    address = {name: cluster.get("-n", name, "pod", "broker-0")["status"]["podIP"] for name in PODS}
    names = {
        EXCHANGE: "exchange.exchange.svc.cluster.local",
        BOUNDARY: "boundary-a.boundary-a.svc.cluster.local",
    }
    service = {
        plane: cluster.get("-n", plane, "service", name.partition(".")[0])["spec"]["clusterIP"]
        for plane, name in names.items()
    }
    elsewhere = {"10.96.0.1/443": False, world: False, "10.250.0.1/6443": False}
    for plane, pods in PODS.items():
        for pod in pods:
            if pod == "broker-0":
                own: set[str] = set()
            else:
                own = {plane, EXCHANGE} if pod == "gate-0" else {plane}
            wanted = dict(elsewhere)
            for there in PODS:
                if (pod, there) == ("broker-0", plane):
                    continue  # itself
                for target in (address[there], service[there], names[there]):
                    wanted[f"{target}/9092"] = there in own
            for target, allowed in wanted.items():
                assert reaches(releases, plane, pod, target) == allowed, (plane, pod, target)


def test_pods_may_do_no_more_than_they_need(releases: Releases) -> None:
    for plane, pods in PODS.items():
        for pod in pods:
            said = releases.cluster.execute(plane, pod, "cat", "/proc/1/status")[1]
            status = dict(line.split(":\t", 1) for line in said.splitlines() if ":\t" in line)
            assert status["Uid"].split()[0] == "1000", pod
            assert (int(status["CapEff"], 16), int(status["CapBnd"], 16)) == (0, 0), pod
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), pod
            token = releases.cluster.execute(plane, pod, "test", "-e", "/var/run/secrets/kubernetes.io")
            assert token[0] == 1, pod
            for place in ("/etc/echelon", "/opt", "/mnt/shared/config", "/usr"):
                if releases.cluster.execute(plane, pod, "test", "-d", place)[0] == 0:
                    assert releases.cluster.execute(plane, pod, "touch", f"{place}/.probe")[0] != 0, (
                        pod,
                        place,
                    )


def test_devices_are_scaled_up_and_down_and_each_sees_its_own_slot_alone(
    releases: Releases, figures: Figures
) -> None:
    for count in (ENROLLED, FLOOR, REPLICAS):
        releases.cluster.kubectl("-n", BOUNDARY, "scale", "statefulset", "a", "--replicas", str(count))
        took = wait_for(lambda count=count: releases.ready(BOUNDARY, devices=count), f"{count} devices")  # type: ignore[misc]
        figures[f"scaled_to_{count}_seconds"] = round(took)
        for number in range(count):
            code, said = releases.cluster.execute(BOUNDARY, f"a-{number}", "ls", "/slot")
            assert (code, said.split()) == (0, [f"a-{number}"])
        releases.goes_on()


@pytest.mark.parametrize(
    ("plane", "pod"),
    [(EXCHANGE, "controller-0"), (BOUNDARY, "aggregator-0"), (BOUNDARY, "gate-0"), (BOUNDARY, "a-1")],
)
@pytest.mark.parametrize("how", ["deleted", "killed"])
def test_what_ends_comes_back_by_itself(releases: Releases, plane: str, pod: str, how: str) -> None:
    before = releases.pods(plane)[pod]
    if how == "deleted":
        releases.cluster.kubectl("-n", plane, "delete", "pod", pod, "--grace-period=0", "--force")
        wait_for(
            lambda: (
                (now := releases.pods(plane).get(pod)) and now["metadata"]["uid"] != before["metadata"]["uid"]
            ),
            f"another {pod}",
        )
    else:
        restarts = before["status"]["containerStatuses"][0]["restartCount"]
        releases.cluster.kill(before)
        wait_for(
            lambda: releases.pods(plane)[pod]["status"]["containerStatuses"][0]["restartCount"] > restarts,
            f"{pod} is started again",
        )
    wait_for(releases.all_ready, f"all pods are ready after {pod} was {how}")
    releases.goes_on()


@pytest.mark.parametrize("plane", [EXCHANGE, BOUNDARY])
def test_a_broker_that_is_moved_keeps_its_topics(releases: Releases, plane: str) -> None:
    before = releases.pods(plane)["broker-0"]["metadata"]["uid"]
    releases.cluster.kubectl("-n", plane, "delete", "pod", "broker-0")
    wait_for(
        lambda: (now := releases.pods(plane).get("broker-0")) and now["metadata"]["uid"] != before,
        "another broker",
    )
    wait_for(releases.all_ready, "all pods are ready")
    releases.goes_on()


def evict(cluster: Cluster, pod: str) -> str:
    """What the API says to an eviction; nothing where it takes place."""
    wish = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": BOUNDARY}}
    path = f"/api/v1/namespaces/{BOUNDARY}/pods/{pod}/eviction"
    done = cluster.client(["bash", "-c", f"kubectl create --raw {path} -f - <<< '{json.dumps(wish)}'"])
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_evictions_leave_the_floor_of_devices(releases: Releases) -> None:
    wait_for(releases.all_ready, "all pods are ready")
    cluster = releases.cluster
    budget = ("-n", BOUNDARY, "poddisruptionbudget", "devices")
    wait_for(
        lambda: cluster.get(*budget)["status"].get("disruptionsAllowed") == REPLICAS - FLOOR,
        "the budget is counted",
    )
    assert evict(cluster, "a-0") == ""
    assert "disruption budget" in evict(cluster, "a-1")
    wait_for(releases.all_ready, "the device is back")
    releases.goes_on()


def test_an_upgrade_repeats_the_jobs_and_restarts_nothing(releases: Releases) -> None:
    before = {name: one["metadata"]["uid"] for name, one in releases.pods(BOUNDARY).items()}
    command = ["helm", "upgrade", "a", "docker/helm/echelon", "-n", BOUNDARY, "--reuse-values"]
    done = releases.cluster.client(command, folder=releases.folder)
    assert done.returncode == 0, done.stderr

    def repeated() -> bool:
        jobs = releases.cluster.get("-n", BOUNDARY, "jobs")["items"]
        ended = {one["metadata"]["name"] for one in jobs if one["status"].get("succeeded") == 1}
        return {"topics-2", "shards-2"} <= ended

    wait_for(repeated, "the jobs of the second revision")
    assert {name: one["metadata"]["uid"] for name, one in releases.pods(BOUNDARY).items()} == before
    releases.goes_on()


def test_in_the_end_the_audit_verifies_and_uninstalling_leaves_claims_alone(
    releases: Releases, figures: Figures
) -> None:
    cluster = releases.cluster
    cluster.kubectl(
        "-n", EXCHANGE, "create", "secret", "generic", "auditor",
        "--from-file", str(releases.folder / "deployment" / "exchange" / "auditor"),
    )  # fmt: skip
    (template,) = [
        one for one in cluster.get("-n", EXCHANGE, "jobs")["items"] if one["metadata"]["name"] == "topics-1"
    ]
    spec = template["spec"]["template"]["spec"] | {"restartPolicy": "Never"}
    (container,) = spec["containers"]
    container |= {"name": "auditor", "image": IMAGE}
    container["args"] = [
        "audit", "verify", "kafka://exchange:9092", "--security", "/etc/echelon/broker.yaml", "--allow-open",
    ]  # fmt: skip
    container["resources"]["limits"]["memory"] = "2Gi"
    for volume in spec["volumes"]:
        if "secret" in volume:
            volume["secret"]["secretName"] = "auditor"
    labels = template["spec"]["template"]["metadata"]["labels"]
    kept = {name: value for name, value in labels.items() if name.startswith("app.kubernetes.io/")}
    cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "spec": spec,
            "metadata": {
                "name": "auditor",
                "namespace": EXCHANGE,
                "labels": kept | {"app.kubernetes.io/component": "auditor"},
            },
        }
    )

    def phase() -> str:
        return str(cluster.get("-n", EXCHANGE, "pod", "auditor")["status"]["phase"])

    wait_for(lambda: phase() in {"Succeeded", "Failed"}, "the audit has ended")
    said = cluster.kubectl("-n", EXCHANGE, "logs", "auditor")
    assert phase() == "Succeeded", said
    assert "VERIFIED" in said
    figures["commits"] = releases.commit()
    for plane in PODS:
        for pod in releases.pods(plane).values():
            (status,) = pod["status"]["containerStatuses"]
            assert status.get("lastState", {}).get("terminated", {}).get("reason") != "OOMKilled", pod[
                "metadata"
            ]["name"]
    cluster.kubectl("-n", EXCHANGE, "delete", "pod", "auditor")
    for release, plane in (("a", BOUNDARY), ("exchange", EXCHANGE)):
        done = cluster.client(["helm", "uninstall", release, "-n", plane, "--wait"], timeout=600)
        assert done.returncode == 0, done.stderr
        wait_for(lambda plane=plane: not cluster.get("-n", plane, "pods")["items"], "no pod is left")  # type: ignore[misc]
        assert cluster.get("-n", plane, "persistentvolumeclaims")["items"]
        assert not cluster.get("-n", plane, "networkpolicies")["items"]
