"""Replicas on several hosts: the broker leases slots, to one replica each, and a host that is cut off loses its own.

A host is a copy of the slots' folder, whose file locks nobody else sees, and a state folder of its own.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from echelon.messages.boundary import Ready
from echelon.provision.deployment import DEVICES, SLOTS, Deployment
from tests.kafka.federations import Left, deployed, fleet
from tools.fleet.fleet import Fleet, Service
from tools.fleet.outcome import envelopes
from tools.kafka.stack import Stack

TAKEN = re.compile(r"took the slot of ([a-z0-9-]+)")


def host(deployment: Deployment, boundary: str, name: str) -> dict[str, str]:
    """A host of its own for replicas: what they are started with."""
    place = deployment.folder / "hosts" / name
    shutil.copytree(deployment.folder / boundary / DEVICES / SLOTS, place / SLOTS)
    return {"ECHELON_SLOTS": str(place / SLOTS), "ECHELON_STATE": str(place / "state")}


def federation(folder: Path, stack: Stack, slots: int, **changes: Any) -> Deployment:
    """Boundary a with so many slots, and boundary b with three devices."""
    fields: dict[str, Any] = {
        "boundaries": [
            {"name": "a", "devices": slots, "data": {"source": "text:unused"}},
            {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
        ],
        # No boundary can make up a commit alone.
        "sync": {"windows": 2, "pending_max": 2, "deltas_per_commit": 3, "deadline": 600},
        "learner": {"kind": "quadratic", "dim": 2000, "seconds": 0.3},
        "window": {"deadline": 4, "round_timeout": 15, "patience": 0.5},
    }
    return deployed(folder, stack.brokers_yaml, **fields | changes)


def launch(running: Fleet, replicas: int) -> None:
    """Every service, with so many replicas in boundary a."""
    for name in ("controller", "a.aggregator", "a.gate", "b.aggregator", "b.gate"):
        running.launch(name)
    for boundary, count in (("a", replicas), ("b", 3)):
        for _ in range(count):
            running.add_device(boundary)


def slots_of(service: Service) -> list[str]:
    """The slots that a replica took, in all its lives."""
    return TAKEN.findall(service.tail(1000))


def placed(hosts: Mapping[str, Mapping[str, str]], *names: str) -> dict[str, Mapping[str, str]]:
    """The first replica of boundary a on the first of these hosts, and so on."""
    return {f"a.device.{number}": hosts[name] for number, name in enumerate(names)}


@pytest.mark.timeout(1200)
def test_two_hosts_never_run_one_slot_and_a_killed_ones_slot_moves(stack: Stack, tmp_path: Path) -> None:
    deployment = federation(tmp_path / "run", stack, 3, budget={"commits": 5})
    hosts = {name: host(deployment, "a", name) for name in ("one", "two")}
    killed = ""
    with fleet(
        deployment, restart=lambda *_: False, environments=placed(hosts, "one", "two", "one", "two")
    ) as running:

        def kill_one() -> None:
            nonlocal killed
            first = [slots_of(running.services[f"a.device.{number}"]) for number in range(4)]
            if not killed and sum(map(len, first)) >= 3:
                killed = next(f"a.device.{number}" for number in range(4) if first[number])
                running.signal(killed)

        launch(running, 4)
        codes = running.wait(900.0, kill_one)
        replicas = running.devices("a")
    taken = {service.name: slots_of(service) for service in replicas}
    assert killed
    assert all(len(slots) == 1 for slots in taken.values()), running.tails()
    (lost,) = taken.pop(killed)
    others = sorted(slot for slots in taken.values() for slot in slots)
    assert others == ["a-0", "a-1", "a-2"], running.tails()
    assert lost in others  # it moved to the replica that had none
    assert {code for name, code in codes.items() if name != killed} == {0}, running.tails()
    left = Left.read(deployment)
    assert left.faults == []
    ready = [one for one in envelopes(left.boundaries["a"]["checkin"]) if one.type == Ready.kind]
    assert {one.sender for one in ready} == {"a-0", "a-1", "a-2"}
