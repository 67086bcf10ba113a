"""The compose files as data, with what compose itself does to them: merge keys, anchors, variables and overrides."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
MAIN, MONITORING, GPU = "compose.yaml", "compose.monitoring.yaml", "compose.gpu.yaml"
SPLIT = "compose.split.yaml"
RUN, SPLIT_RUN = DOCKER / "run.yaml", DOCKER / "run.split.yaml"
RESTART_JOB = "no"

_VARIABLE = re.compile(r"\$\{([A-Z_]+):-([^}]*)\}")


@dataclass(frozen=True)
class Mount:
    """One entry of `volumes`: a named volume, or a path beside the compose file."""

    source: str
    target: str
    read_only: bool

    @property
    def named(self) -> bool:
        return not self.source.startswith((".", "/", "~"))


@dataclass(frozen=True)
class Service:
    """One service."""

    name: str
    fields: dict[str, Any]

    @property
    def networks(self) -> tuple[str, ...]:
        return tuple(self.fields.get("networks", ()))

    @property
    def image(self) -> str:
        return str(self.fields["image"])

    @property
    def ours(self) -> bool:
        return self.image.startswith("echelon:")

    @property
    def broker(self) -> bool:
        return self.image.startswith("apache/kafka:")

    @property
    def job(self) -> bool:
        """Runs once."""
        return self.ours and self.fields["restart"] == RESTART_JOB

    @property
    def entrypoint(self) -> tuple[str, ...]:
        return tuple(self.fields.get("entrypoint", ("echelon",)))

    @property
    def command(self) -> tuple[str, ...]:
        return tuple(self.fields.get("command", ()))

    @property
    def environment(self) -> dict[str, str]:
        return {name: str(value) for name, value in self.fields.get("environment", {}).items()}

    @property
    def after(self) -> dict[str, str]:
        """Services that must have come to a state before."""
        return {name: how["condition"] for name, how in self.fields.get("depends_on", {}).items()}

    @property
    def mounts(self) -> tuple[Mount, ...]:
        found = []
        for entry in self.fields.get("volumes", ()):
            source, target, *mode = entry.split(":")
            found.append(Mount(source, target, mode == ["ro"]))
        return tuple(found)


@dataclass(frozen=True)
class Project:
    """A compose file with every variable at its default."""

    fields: dict[str, Any]

    @property
    def services(self) -> dict[str, Service]:
        return {name: Service(name, fields) for name, fields in self.fields["services"].items()}

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        return {name: fields or {} for name, fields in self.fields.get("networks", {}).items()}


def load(*names: str) -> Project:
    """Compose files of docker/, each over those before it; compose.yaml alone if none is named."""
    fields: dict[str, Any] = {}
    for name in names or (MAIN,):
        text = (DOCKER / name).read_text("utf-8")
        fields = over(fields, yaml.safe_load(_VARIABLE.sub(lambda found: found[2], text)))
    return Project(fields)


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Two compose files as one: maps are merged, and a service's mounts by what they are mounted at.

    Raises:
        ValueError: a list other than of mounts stands in both, whose merging differs from key to key.
    """
    found = dict(below)
    for key, value in above.items():
        old = below.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            found[key] = over(old, value)
        elif key == "volumes" and isinstance(old, list):
            by_target = {entry.split(":")[1]: entry for entry in (*old, *value)}
            found[key] = list(by_target.values())
        elif isinstance(old, list) and old != value:
            raise ValueError(f"{key!r} is a list in two files: say here how compose merges it")
        else:
            found[key] = value
    return found
