"""A device computes a metric only where its own configuration allows that very source; deployments say which it is."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.errors import ConfigError
from echelon.messages.manifest import RunManifest
from echelon.provision.broker_map import load_brokers
from echelon.provision.deployment import deploy
from echelon.services.config import DeviceConfig, load_service
from echelon.services.training_roles import DeviceRole
from echelon.wiring import plugins
from echelon.wiring.plugins import look_beside

SOURCE = """
def exact(logits, targets, mask):
    return float(((logits.argmax(-1) == targets) & mask).sum()), int(mask.sum())
"""
DIGEST = hashlib.sha256(SOURCE.encode()).hexdigest()


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a boundary's devices, in a deployment whose run lists a metric."""
    monkeypatch.setattr(plugins, "_beside", list(plugins._beside))
    (tmp_path / "scores.py").write_text(SOURCE)
    look_beside(tmp_path)
    fields: dict[str, Any] = {
        "name": "small",
        "boundaries": [{"name": "a", "devices": 3, "data": {"source": "text:unused"}}],
        "budget": {"commits": 1},
        "metrics": [{"name": "exact", "rule": "scores:exact", "low": 0, "high": 1}],
    }
    run = parse(fields, "test")
    simple = parse(fields | {"metrics": [], "learner": {"kind": "quadratic", "dim": 8}}, "test")
    (tmp_path / "brokers.yaml").write_text(
        yaml.safe_dump({"exchange": {"url": "sqlite:///x"}, "boundaries": {"a": {"url": "sqlite:///a"}}})
    )
    facts = facts_of(build_learner(spec_of(simple), simple.learner))
    made = deploy(run, load_brokers(tmp_path / "brokers.yaml"), tmp_path / "out", facts)
    (tmp_path / "scores.py").unlink()
    assert RunManifest.open((made.folder / "manifest.dsse").read_bytes()).metrics[0].sha256 == DIGEST
    return made.folder / "a" / "devices"


def role(devices: Path, **changes: Any) -> DeviceRole:
    path = devices / "service.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return DeviceRole(load_service(DeviceConfig, path, {}))


def test_a_deployment_hands_devices_the_source_and_its_digest(devices: Path) -> None:
    assert (devices / "scores.py").read_text() == SOURCE
    assert yaml.safe_load((devices / "service.yaml").read_text())["metrics"] == {"scores:exact": DIGEST}
    holders = {path.parent for path in devices.parents[1].rglob("scores.py")}
    assert holders == {devices}
    [metric] = role(devices)._metrics
    assert metric.terms.name == "exact"


def test_a_device_that_was_given_no_digest_refuses_at_its_start(devices: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        role(devices, metrics={})
    said = str(refused.value)
    assert f"the run's metric exact is scores:exact, code with SHA-256 {DIGEST} on devices" in said
    assert "was not allowed here: read the file, then allow it by name and digest under `metrics`" in said


def test_a_source_that_is_not_the_one_that_was_allowed_does_not_run(devices: Path) -> None:
    marker = devices / "ran"
    other = SOURCE + f"\nopen({str(marker)!r}, 'w')\n"
    (devices / "scores.py").write_text(other)
    with pytest.raises(ConfigError, match=f"and {DIGEST} is allowed: put the file there that was read"):
        role(devices)
    with pytest.raises(ConfigError, match="read the run's version and allow that, or take no part"):
        role(devices, metrics={"scores:exact": hashlib.sha256(other.encode()).hexdigest()})
    assert not marker.exists()
