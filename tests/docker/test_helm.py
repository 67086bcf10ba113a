"""The Helm chart: who reaches whom, with which rights, and that services take what it gives them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from echelon.services.config import known_settings
from tests.docker.composed import MAIN, load
from tests.docker.helm_chart import CHART, PLANES, digest, kept, objects, of_kind, rendered, values
from tests.provision.test_deployment import deployed

needs_helm = pytest.mark.skipif(shutil.which("helm") is None, reason="helm is not installed")
LABEL = "app.kubernetes.io/component"


def pods(plane: str) -> dict[str, Any]:
    """Templates of pods, by the name of what makes them."""
    made = {**of_kind(plane, "StatefulSet"), **of_kind(plane, "Job")}
    return {name: one["spec"]["template"] for name, one in made.items()}


def environment(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container.get("env", ())}


@needs_helm
@pytest.mark.parametrize("plane", PLANES)
def test_helm_finds_nothing_and_renders_what_is_kept(plane: str) -> None:
    done = subprocess.run(
        ["helm", "lint", "--strict", str(CHART), "--values", str(values(plane))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert rendered(plane) == kept(plane).read_text(), "render again: python -m tests.docker.helm_chart"


@needs_helm
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("boundary=", "boundary: name it"),
        ("devices.replicas=9", "more than devices.enrolled"),
        ("boundary=gate", "that name is a service's here"),
        ("broker.clusterId=", "broker.clusterId"),
        ("exchange.namespace=", "exchange: give its namespace, or its cidr"),
        ("broker.enabled=false", "broker.cidr"),
        ("plane=moon", "plane"),
        ("devices.colour=red", "colour"),
    ],
)
def test_values_that_cannot_be_are_named(change: str, words: str) -> None:
    command = ["helm", "template", "run", str(CHART), "--values", str(values("boundary"))]
    done = subprocess.run(
        [*command, "--kube-version", "1.31.0", "--set", change],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr, done.stderr


@pytest.mark.parametrize("plane", PLANES)
def test_what_is_kept_was_rendered_from_this_chart(plane: str) -> None:
    first = kept(plane).read_text().partition("\n")[0]
    assert first == f"# {digest(plane)}", "render again: python -m tests.docker.helm_chart"


@pytest.mark.parametrize("plane", PLANES)
def test_kubernetes_own_schemas_take_every_object(plane: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in objects(plane):
        if not one["apiVersion"].startswith("monitoring.coreos.com/"):
            schemas.validate(one, "1.31", strict=True)


@pytest.mark.parametrize("plane", PLANES)
def test_pods_have_the_rights_that_compose_gives_them(plane: str) -> None:
    for name, pod in pods(plane).items():
        spec = pod["spec"]
        security = spec["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"], security["fsGroup"]) == (True, 1000, 1000)
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        (container,) = spec["containers"]
        inside = container["securityContext"]
        assert inside["capabilities"] == {"drop": ["ALL"]}, name
        assert inside["allowPrivilegeEscalation"] is False
        assert inside["readOnlyRootFilesystem"] is (name != "broker"), name
        assert container["resources"]["limits"]["memory"]
        writable = {one["name"] for one in container["volumeMounts"] if not one.get("readOnly")}
        assert writable <= {"state", "tmp", "log", "secrets"}, name
        for volume in spec["volumes"]:
            assert not {"hostPath", "nfs"} & volume.keys()
            # Kafka's image copies the broker's files with their modes and writes into the copies.
            mode = 0o640 if name == "broker" else 0o440
            assert volume.get("secret", {}).get("defaultMode", mode) == mode


def reached(plane: str, component: str) -> list[dict[str, Any]]:
    """Where policies let pods of a component go, ports and all."""
    found = []
    for policy in of_kind(plane, "NetworkPolicy").values():
        if "Egress" in policy["spec"]["policyTypes"] and selects(policy["spec"]["podSelector"], component):
            found += policy["spec"].get("egress", ())
    return found


def selects(selector: dict[str, Any], component: str) -> bool:
    if selector.get("matchLabels", {}).get(LABEL, component) != component:
        return False
    for rule in selector.get("matchExpressions", ()):
        assert (rule["key"], rule["operator"]) == (LABEL, "NotIn")
        if component in rule["values"]:
            return False
    return True


@pytest.mark.parametrize("plane", PLANES)
def test_nothing_but_the_gate_reaches_two_networks(plane: str) -> None:
    nothing = of_kind(plane, "NetworkPolicy")["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    components = {pod["metadata"]["labels"][LABEL] for pod in pods(plane).values()}
    assert components >= (
        {"device", "edge", "aggregator", "gate"} if plane == "boundary" else {"controller", "witness"}
    )
    for component in components:
        brokers, names = [], []
        for rule in reached(plane, component):
            ports = {port["port"] for port in rule["ports"]}
            (names if ports == {53} else brokers).append(rule)
            for place in rule["to"]:
                assert "ipBlock" not in place, component
        if component == "broker":
            assert not brokers
            assert not names
            continue
        assert len(names) == 1
        where = [place for rule in brokers for place in rule["to"]]
        assert all(place["podSelector"]["matchLabels"][LABEL] == "broker" for place in where)
        own = [place for place in where if "namespaceSelector" not in place]
        others = [
            place["namespaceSelector"]["matchLabels"] for place in where if "namespaceSelector" in place
        ]
        assert len(own) == 1
        assert others == ([{"kubernetes.io/metadata.name": "exchange"}] if component == "gate" else []), (
            component
        )


def test_the_exchange_lets_gates_of_the_named_boundaries_in_and_nobody_else_of_them() -> None:
    (rule,) = of_kind("exchange", "NetworkPolicy")["broker"]["spec"]["ingress"]
    others = [one for one in rule["from"] if "namespaceSelector" in one]
    assert [one["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for one in others] == [
        "boundary-a",
        "boundary-b",
    ]
    assert {one["podSelector"]["matchLabels"][LABEL] for one in others} == {"gate"}
    (inside,) = of_kind("boundary", "NetworkPolicy")["broker"]["spec"]["ingress"]
    assert not [one for one in inside["from"] if "namespaceSelector" in one]


def test_each_pod_mounts_the_secret_of_its_own_service_and_a_device_the_slot_of_its_own_name() -> None:
    secrets = {
        name: [volume["secret"]["secretName"] for volume in pod["spec"]["volumes"] if "secret" in volume]
        for name, pod in pods("boundary").items()
    }
    assert secrets == {
        "a": ["devices", "slots"],
        "aggregator": ["aggregator"],
        "broker": ["broker"],
        "edge-edge-0": ["edge-edge-0"],
        "gate": ["gate"],
        "topics-1": ["admin"],
        "shards-1": ["operator"],
    }
    device = pods("boundary")["a"]["spec"]
    (container,) = device["containers"]
    (mount,) = [one for one in container["volumeMounts"] if one["name"] == "slots"]
    assert (mount["subPathExpr"], mount["readOnly"]) == ("$(POD_NAME)", True)
    (slots,) = [one["secret"] for one in device["volumes"] if one["name"] == "slots"]
    assert [one["path"] for one in slots["items"] if one["key"].endswith("signing.pem")] == [
        f"a-{number}/a-{number}/signing.pem" for number in range(4)
    ]
    assert environment(container)["ECHELON_SLOT"] == f"{mount['mountPath']}/$(POD_NAME)"


@pytest.mark.parametrize("plane", PLANES)
def test_services_take_what_they_are_given(plane: str) -> None:
    compose = load(MAIN).services
    for name, pod in pods(plane).items():
        (container,) = pod["spec"]["containers"]
        component = pod["metadata"]["labels"][LABEL]
        for variable in environment(container):
            if variable.startswith("ECHELON_"):
                assert variable.removeprefix("ECHELON_").lower().partition("__")[0] in known_settings()
        if component in ("controller", "aggregator", "gate", "device"):
            there = compose[component if component == "controller" else f"{component}-a"]
            assert tuple(container["args"]) == there.command
            assert there.environment.keys() - environment(container).keys() <= {"ECHELON_OWN_SLOT_ONLY"}
        if component == "broker":
            assert container["image"] == compose["exchange"].image
            continue
        assert all(isinstance(argument, str) for argument in container["args"]), name
        if pod["spec"].get("restartPolicy") is None:
            assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
            assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
            assert pod["spec"]["terminationGracePeriodSeconds"] == 30
    for name in set(of_kind(plane, "StatefulSet")) - {"broker"}:
        service = of_kind(plane, "Service")[of_kind(plane, "StatefulSet")[name]["spec"]["serviceName"]]
        assert service["spec"]["selector"] == pods(plane)[name]["metadata"]["labels"]
        singles = of_kind(plane, "StatefulSet")[name]["spec"]["replicas"]
        assert singles == (4 if name == "a" else 1), "two with one state are never right"


def test_evictions_leave_the_floor_and_one_of_the_others_at_a_time() -> None:
    budgets = {name: one["spec"] for name, one in of_kind("boundary", "PodDisruptionBudget").items()}
    assert set(budgets) == {"aggregator", "gate", "broker", "devices"}
    assert budgets.pop("devices")["minAvailable"] == 3
    assert {one["maxUnavailable"] for one in budgets.values()} == {1}
    for name in budgets:
        assert [pod for pod in pods("boundary").values() if pod["metadata"]["labels"][LABEL] == name]


def test_monitors_find_every_service_and_only_they_are_let_in() -> None:
    (monitor,) = of_kind("boundary", "ServiceMonitor").values()
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = {
        name
        for name, service in of_kind("boundary", "Service").items()
        if wanted <= service["metadata"]["labels"].items()
        and [port for port in service["spec"].get("ports", ()) if port["name"] == "metrics"]
    }
    assert found == {"a", "aggregator", "gate", "edge-edge-0"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True  # run, boundary and role are the service's own words
    (rule,) = of_kind("boundary", "NetworkPolicy")["metrics"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": 9464, "protocol": "TCP"}]
    assert rule["from"] == [
        {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    ]


def test_the_values_of_the_chart_say_what_they_are() -> None:
    known = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())
    assert set(known) == set(schema["properties"]) - {"global"}
    for name, value in known.items():
        if isinstance(value, dict):
            assert set(value) == set(schema["properties"][name]["properties"]), name
    assert Path(CHART / "templates" / "NOTES.txt").is_file()


def test_the_commands_of_the_page_put_every_file_where_the_chart_takes_it_from(tmp_path: Path) -> None:
    """The page's own lines, with programs in the place of kubectl and helm that write down what they were asked."""
    page = (CHART.parents[2] / "docs" / "deployment.md").read_text()
    (block,) = re.findall(r"```\n(kubectl create namespace boundary-a.*?)```", page, re.DOTALL)
    deployed(tmp_path).folder.rename(tmp_path / "deployment")
    (tmp_path / "brokers" / "a").mkdir(parents=True)
    for name in ("server.properties", "broker.pem", "ca.pem"):
        (tmp_path / "brokers" / "a" / name).touch()
    for program in ("kubectl", "helm"):
        path = tmp_path / "bin" / program
        path.parent.mkdir(exist_ok=True)
        path.write_text(f'#!/bin/sh\nprintf "%s\\n" "{program} $*" >> {tmp_path}/asked\n')
        path.chmod(0o755)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=tmp_path, env={**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}, check=True, timeout=60,
    )  # fmt: skip
    asked = (tmp_path / "asked").read_text().splitlines()
    secrets: dict[str, list[str]] = {}
    for line in asked:
        if match := re.match(r"kubectl -n boundary-a create secret generic (\S+) (.*)", line):
            secrets[match[1]] = match[2].replace("--from-file", "").split()
    wanted = {
        volume["secret"]["secretName"]
        for pod in pods("boundary").values()
        for volume in pod["spec"]["volumes"]
        if "secret" in volume
    }
    assert set(secrets) == {name for name in wanted if not name.startswith("edge-")}
    (slots,) = [one["secret"] for one in pods("boundary")["a"]["spec"]["volumes"] if one["name"] == "slots"]
    files = dict(one.split("=") for one in secrets.pop("slots"))
    assert set(files) == {one["key"] for one in slots["items"]}
    assert all(Path(path).is_file() for path in files.values())
    for (folder,) in secrets.values():
        assert [path for path in (tmp_path / folder).iterdir() if path.is_file()], folder
    (installed,) = [line for line in asked if line.startswith("helm ")]
    words = installed.split()
    assert (tmp_path.joinpath(words[3]).name, words[1]) == (CHART.name, "install")
    schema = yaml.safe_load((CHART / "values.schema.json").read_text())["properties"]
    for value in words[-1].split(","):
        first, _, second = value.partition("=")[0].partition(".")
        assert not second or second in schema[first]["properties"], value
        assert first in schema
