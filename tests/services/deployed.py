"""A deployment on embedded logs, for services to run on: files that several processes of one host share."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import yaml

from echelon.bus import open_bus, sqlite_url
from echelon.compute.pool import build_learner, facts_of, spec_of
from echelon.config.run import parse
from echelon.provision.broker_map import load_brokers
from echelon.provision.deployment import Deployment, deploy
from echelon.topics import Boundary, load_catalogue

BROKERS = ("exchange", "a", "b")


def deployed(folder: Path, *, devices: int = 3, topics: bool = True, **changes: Any) -> Deployment:
    """Two boundaries a and b of quadratic devices; any field of the run file may be changed."""
    fields: dict[str, Any] = {
        "name": "small",
        "boundaries": [
            {"name": name, "devices": devices, "data": {"source": "text:unused"}} for name in BROKERS[1:]
        ],
        "budget": {"commits": 3},
        "learner": {"kind": "quadratic", "dim": 16, "seconds": 0.02},
        "window": {"deadline": 2, "round_timeout": 2, "patience": 0.3},
    }
    run = parse(fields | changes, "test")
    urls = {name: sqlite_url(folder / "brokers" / f"{name}.sqlite") for name in BROKERS}
    (folder / "brokers").mkdir(parents=True)
    path = folder / "brokers.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "exchange": {"url": urls["exchange"]},
                "boundaries": {name: {"url": urls[name]} for name in BROKERS[1:]},
            }
        )
    )
    made = deploy(
        run, load_brokers(path), folder / "deployment", facts_of(build_learner(spec_of(run), run.learner))
    )
    if topics:
        asyncio.run(create_topics(made))
    return made


async def create_topics(made: Deployment) -> None:
    """Every topic of the catalogue, on its log."""
    catalogue = load_catalogue()
    for name, entry in made.brokers.entries.items():
        wanted = (
            catalogue.exchange_topics(
                [Boundary(boundary) for boundary in made.boundaries], made.settings.witness_names()
            )
            if name == "exchange"
            else catalogue.boundary_topics(len(made.settings.boundaries[0].device_list()))
        )
        async with await open_bus(entry.url) as bus:
            for topic, partitions in wanted.items():
                await bus.create_topic(topic, partitions)


def edit(path: Path, **changes: Any) -> Path:
    """Change top-level fields of a YAML file; None as a value removes the field."""
    fields = yaml.safe_load(path.read_text()) | changes
    path.write_text(yaml.safe_dump({name: value for name, value in fields.items() if value is not None}))
    return path
