"""Replicas on several hosts: the broker leases slots, to one replica each, and a host that is cut off loses its own.

A host is a copy of the slots' folder, whose file locks nobody else sees, and a state folder of its own.
"""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from echelon.messages.boundary import DeadLetter, Ready
from echelon.provision.broker_map import EXCHANGE
from echelon.provision.deployment import AUDITOR, DEVICES, SLOTS, Deployment
from tests.kafka.federations import Left, deployed, fleet
from tests.kafka.test_elastic import audited, included
from tests.services.asking import eventually
from tools.fleet import links
from tools.fleet.fleet import Fleet, Service, never
from tools.fleet.follow import Follower
from tools.fleet.outcome import envelopes, messages
from tools.fleet.proxy import Proxy
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
    with fleet(deployment, restart=never, environments=placed(hosts, "one", "two", "one", "two")) as running:

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


def via(broker: int, proxy: int) -> dict[str, str]:
    """A host whose way to the broker on that port goes through a proxy."""
    return {links.VIA: f"{broker}:{proxy}"}


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_a_host_that_is_cut_off_loses_its_slot_and_does_no_harm_when_it_is_back(
    stack: Stack, tmp_path: Path
) -> None:
    """Its connections stay and deliver late. Until it is back, boundary b has no devices, so the run cannot end."""
    shards = [{"name": "a", "devices": 4, "shards": 8, "data": {"source": "text:unused"}}]
    other = [{"name": "b", "devices": 3, "data": {"source": "text:unused"}}]
    deployment = federation(tmp_path / "run", stack, 4, boundaries=shards + other, budget={"commits": 8})
    port = stack["a"].ports.client
    with Proxy(port) as proxy:
        hosts = {
            "one": host(deployment, "a", "one") | via(port, proxy.port),
            "two": host(deployment, "a", "two") | {"ECHELON_SLOT_WAIT": "3600"},
        }
        with fleet(
            deployment, restart=never, environments=placed(hosts, "one", "two", "two", "two", "two")
        ) as running:
            stage = 0

            def cut() -> None:
                nonlocal stage
                cut_off, others = running.services["a.device.0"], running.devices("a")[1:]
                offered = sum("training shards" in service.tail(1000) for service in running.devices("a"))
                if stage == 0 and slots_of(cut_off) and offered == 4:
                    proxy.hold()
                    stage = 1
                elif stage == 1 and sum(len(slots_of(service)) for service in others) == 4:
                    proxy.go_on()  # the spare one has the slot, or another of this host has it
                    stage = 2
                elif stage == 2 and not cut_off.running:
                    for _ in range(3):
                        running.add_device("b")
                    stage = 3

            for name in ("controller", "a.aggregator", "a.gate", "b.aggregator", "b.gate"):
                running.launch(name)
            running.add_device("a")
            eventually(lambda: slots_of(running.services["a.device.0"]), 600.0, running.tend)
            for _ in range(4):
                running.add_device("a")
            codes = running.wait(1200.0, cut)
        taken = {service.name: slots_of(service) for service in running.devices("a")}
        said = running.services["a.device.0"].tail(1000)
    assert "was taken over by another replica" in said, said
    assert codes.pop("a.device.0") == 1
    assert set(codes.values()) == {0}, running.tails()
    assert sorted(slot for name, slots in taken.items() if name != "a.device.0" for slot in slots) == [
        *("a-0", "a-1", "a-2", "a-3")
    ]
    left = Left.read(deployment)
    assert left.faults == []
    windows = included(left)  # no shard twice in a window
    assert {shard for window in windows for shards in window.values() for shard in shards} == set(range(8))
    audited(left)
    letters = messages(left.boundaries["a"]["deadletter"], DeadLetter)
    print(f"\nwindows {[*map(len, windows)]}, refused {[letter.reason.value for letter in letters]}")


@pytest.mark.nightly
@pytest.mark.timeout(1800)
def test_four_replicas_become_twelve_and_four_again_on_three_hosts(stack: Stack, tmp_path: Path) -> None:
    """While the eight start, the controller is stopped, so that the run does not end before they are there."""
    listed = [
        {"name": "a", "devices": 12, "shards": 12, "data": {"source": "text:unused"}},
        {"name": "b", "devices": 3, "data": {"source": "text:unused"}},
    ]
    deployment = federation(tmp_path / "run", stack, 12, boundaries=listed, budget={"commits": 14})
    hosts = {name: host(deployment, "a", name) for name in ("one", "two", "three")}
    placement = placed(hosts, *("one", "two", "three") * 4)
    stage, commits_then, removed = 0, 0, list[str]()
    with (
        fleet(deployment, restart=never, environments=placement) as running,
        Follower(deployment.broker(EXCHANGE, AUDITOR), deployment) as follower,
    ):

        def scale() -> None:
            nonlocal stage, commits_then
            commits = follower.view.commits
            if stage == 0 and commits >= 1:
                running.signal("controller", signal.SIGSTOP)
                for _ in range(8):
                    running.add_device("a")
                stage = 1
            elif stage == 1 and all("training shards" in one.tail(1000) for one in running.devices("a")):
                running.signal("controller", signal.SIGCONT)
                stage, commits_then = 2, commits
            elif stage == 2 and commits >= commits_then + 3:
                removed.extend(running.remove_device("a").name for _ in range(8))
                stage = 3

        launch(running, 4)
        codes = running.wait(1200.0, scale)
        replicas = running.devices("a")
    assert set(codes.values()) == {0}, running.tails()
    assert len(removed) == 8
    assert sorted(slot for service in replicas for slot in slots_of(service)) == sorted(
        f"a-{number}" for number in range(12)
    )
    left = Left.read(deployment)
    assert left.faults == []
    windows = included(left)
    assert {shard for window in windows for shards in window.values() for shard in shards} == set(range(12))
    assert max(map(len, windows)) > 4
    ready = [one for one in envelopes(left.boundaries["a"]["checkin"]) if one.type == Ready.kind]
    assert len({one.sender for one in ready}) == 12
    assert messages(left.boundaries["a"]["deadletter"], DeadLetter) == []
    audited(left)
    print(f"\nwindows {[*map(len, windows)]}")
