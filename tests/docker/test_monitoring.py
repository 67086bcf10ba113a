"""The dashboard, the alerts and the scrape configuration: every name in them is one that a service really serves."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import yaml

from echelon.bus import TopicPartition
from echelon.services.health import Health
from echelon.services.leases import LeaseTally
from echelon.services.metrics import Metrics
from echelon.services.sampling import Sample
from tests.docker.composed import DOCKER, MAIN, MONITORING, SPLIT, load
from tests.docker.dashboard_schema import faults

PROMETHEUS = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
DASHBOARD = json.loads((DOCKER / "grafana" / "dashboards" / "echelon.json").read_text())
TARGET_LABELS = {"job", "instance", "service", "le", *("run", "boundary", "role")}


ROLES = ("device", "edge", "aggregator", "gate", "controller")


def exported(role: str) -> dict[str, set[str]]:
    """Every sample that a service of a role may serve, and the labels of its own that it has."""
    health = Health({"service": role, "run": "x"}, brokers={"exchange": True})
    metrics = Metrics(health)
    metrics.sampler.last = Sample(
        traffic={("exchange", "global", "in"): (1, 1)},
        lag={("exchange", TopicPartition("global", 0)): 1},
        away={"exchange": 0.0},
        pending=1,
        certificates={"exchange": 100.0},
        leases=LeaseTally() if role == "device" else None,
        free=1,
    )
    found: dict[str, set[str]] = {}
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "info": ["_info"]}
    for family in metrics.registry.collect():
        for suffix in suffixes.get(family.type, [""]):
            found[family.name + suffix] = set().union(*(sample.labels for sample in family.samples))
    # A metric with labels has no samples before its first event; its object knows its labels.
    for name, collector in metrics.registry._names_to_collectors.items():
        if name in found:
            found[name].update(getattr(collector, "_labelnames", ()))
    return found


BY_ROLE = {role: exported(role) for role in ROLES}
EXPORTED = {name: labels for found in BY_ROLE.values() for name, labels in found.items()}


def expressions() -> list[tuple[str, str]]:
    found = [(rule["alert"], rule["expr"]) for group in ALERTS["groups"] for rule in group["rules"]]
    for panel in DASHBOARD["panels"]:
        found += [(panel["title"], target["expr"]) for target in panel.get("targets", ())]
    found += [(note["name"], note["expr"]) for note in DASHBOARD["annotations"]["list"]]
    return found


def metrics_in(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:echelon|process)_[a-z_]+", re.sub(r'"[^"]*"', '""', expression)))


def labels_in(expression: str) -> set[str]:
    inside = re.sub(r'"[^"]*"', '""', expression)
    lists = re.findall(r"\b(?:by|on|without)\s*\(([^)]*)\)", inside)
    matchers = re.findall(r"\{([^}]*)\}", inside)
    names = {name.strip() for found in lists for name in found.split(",")}
    return {name for name in names | set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", " ".join(matchers))) if name}


def test_the_ways_of_reading_an_expression() -> None:
    text = 'sum by (service, le) (rate(echelon_a_bucket{x="echelon_no", y=~"b"}[5m])) > on (z) up{job="q"}'
    assert metrics_in(text) == {"echelon_a_bucket"}
    assert labels_in(text) == {"service", "le", "x", "y", "z", "job"}


def test_a_service_serves_what_this_test_takes_for_granted() -> None:
    assert EXPORTED["echelon_windows_total"] == {"outcome", "reason"}
    assert EXPORTED["echelon_window_phase_seconds_bucket"] >= {"phase"}
    assert EXPORTED["echelon_bus_lag_records"] == {"broker", "topic", "partition"}
    assert "echelon_windows" not in EXPORTED  # a counter is served with its suffix only
    assert "echelon_windows_total" in BY_ROLE["aggregator"]
    assert "echelon_windows_total" not in BY_ROLE["gate"]
    assert "process_resident_memory_bytes" in BY_ROLE["gate"]
    assert "version" in BY_ROLE["gate"]["echelon_service_info"]


@pytest.mark.parametrize(("where", "expression"), expressions())
def test_every_metric_and_label_is_exported(where: str, expression: str) -> None:
    used = metrics_in(expression)
    assert used or "up{" in expression, where
    assert used <= EXPORTED.keys(), f"{where}: {used - EXPORTED.keys()}"
    known = TARGET_LABELS.union(*(EXPORTED[name] for name in used))
    assert labels_in(expression) <= known, f"{where}: {labels_in(expression) - known}"
    if "up{" in expression:
        assert "run" not in labels_in(expression), f"{where}: `up` is Prometheus' own, and of no run"
    for name, role in re.findall(r'\b(echelon_[a-z_]+)\{[^}]*role="([a-z]+)"', expression):
        assert name in BY_ROLE[role], f"{where}: no {role} serves {name}"


def test_alerts_name_only_labels_that_they_have() -> None:
    for group in ALERTS["groups"]:
        for rule in group["rules"]:
            text = " ".join(rule["annotations"].values())
            labels = set(re.findall(r"\$labels\.(\w+)", text))
            by = re.search(
                r"^(?:sum|max|min|group|histogram_quantile.*?)\s*by \(([^)]*)\)", rule["expr"].strip()
            )
            kept = {name.strip() for name in by[1].split(",")} if by else TARGET_LABELS
            assert labels <= kept, rule["alert"]
            assert rule["labels"]["severity"] in {"page", "ticket"}
            assert set(rule["annotations"]) == {"summary", "description"}


def test_prometheus_looks_for_every_service_under_its_name_and_port() -> None:
    services = {
        name for name, service in load(MAIN, SPLIT).services.items() if service.ours and not service.job
    }  # the ones with a health endpoint
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "echelon"]
    (look,) = job["dns_sd_configs"]
    assert set(look["names"]) == services
    assert look["type"] == "A"
    assert job[
        "honor_labels"
    ]  # a service says itself of which boundary it is, whatever name it was found under
    from echelon.services.config import HttpSettings

    assert look["port"] == HttpSettings.model_fields["port"].default
    networks = set(load(MONITORING).services["prometheus"].networks)
    assert networks == set(load().networks) | {"monitoring"}


def relabelled(name: str) -> dict[str, str]:
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "echelon"]
    labels = {"__meta_dns_name": name}
    for rule in job["relabel_configs"]:
        value = ";".join(labels.get(source, "") for source in rule["source_labels"])
        found = re.fullmatch(rule.get("regex", "(.*)"), value)
        if found:
            template = re.sub(r"\$(\d)", r"\\\1", rule.get("replacement", "$1"))
            labels[rule["target_label"]] = found.expand(template)
    return {key: value for key, value in labels.items() if not key.startswith("__")}


def test_targets_say_their_role_and_boundary() -> None:
    assert relabelled("controller") == {"service": "controller", "role": "controller"}
    assert relabelled("device-a") == {"service": "device-a", "role": "device", "boundary": "a"}
    assert relabelled("gate-b") == {"service": "gate-b", "role": "gate", "boundary": "b"}


def test_grafana_finds_its_data_source_and_its_dashboard() -> None:
    grafana = DOCKER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((grafana / "datasources" / "prometheus.yaml").read_text())["datasources"]
    (provider,) = yaml.safe_load((grafana / "dashboards" / "echelon.yaml").read_text())["providers"]
    service = load(MONITORING).services["grafana"]
    at = {mount.target: mount.source for mount in service.mounts}
    assert at["/etc/grafana/provisioning"] == "./grafana/provisioning"
    assert at[provider["options"]["path"]] == "./grafana/dashboards"
    home = service.environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home == f"{provider['options']['path']}/echelon.json"
    assert source["url"] == "http://prometheus:9090"

    def uids(value: Any) -> set[str]:
        if isinstance(value, dict):
            own = {value["datasource"]["uid"]} if isinstance(value.get("datasource"), dict) else set()
            return own.union(*(uids(inner) for inner in value.values()))
        return set().union(*(uids(inner) for inner in value)) if isinstance(value, list) else set()

    assert uids(DASHBOARD) == {source["uid"]}


def test_grafanas_own_schema_takes_the_dashboard() -> None:
    assert faults(DASHBOARD) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("panels", 7, "fieldConfig", "defaults", "custom", "lineWidth"), "2", "line_width: '2'"),
        (("panels", 7, "fieldConfig", "defaults", "custom", "lineWdth"), 2, "lineWdth: unknown"),
        (("panels", 7, "options", "legend", "displayMode"), "lst", "display_mode: 'lst'"),
        (("panels", 1, "targets", 0, "expression"), "up", "expression: unknown"),
        (("templating", "list", 0, "refresh"), 7, "refresh: 7"),
        (("time", "from"), 1, "1"),
    ],
)
def test_the_schema_finds_what_is_wrong(path: tuple[str | int, ...], value: object, words: str) -> None:
    changed = copy.deepcopy(DASHBOARD)
    inner: Any = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    assert any(words in one for one in faults(changed)), faults(changed)


def test_panels_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken.get((x, y)))
                taken[x, y] = panel["title"]
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_a_scraped_service_has_its_boundary_and_its_role() -> None:
    (job,) = [job for job in PROMETHEUS["scrape_configs"] if job["job_name"] == "echelon"]
    (look,) = job["dns_sd_configs"]
    for name in look["names"]:
        labels = {"__meta_dns_name": name}
        for rule in job[
            "relabel_configs"
        ]:  # as Prometheus: a rule whose pattern does not fit the whole does nothing
            (source,) = rule["source_labels"]
            found = re.fullmatch(rule.get("regex", "(.*)"), labels.get(source, ""))
            if found is not None:
                labels[rule["target_label"]] = found.expand(rule.get("replacement", "$1").replace("$", "\\"))
        plane = name.rpartition("-")[2]
        assert (labels["service"], labels["role"]) == (name, name.partition("-")[0])
        assert labels.get("boundary") == (plane if plane in {"a", "b"} else None)
