"""What snapshots look like, so that nobody changes it without the number that state files carry.

The shapes are in golden_snapshots.json; ECHELON_UPDATE_GOLDEN=1 writes them anew.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from echelon.actors.state import FORMAT
from echelon.messages.boundary import SealedDelta
from echelon.messages.split import Trip, Trips
from echelon.rounds.device.core import DeviceCore
from echelon.rounds.edge.core import EdgeCore
from tests.rounds.aggregator.test_trust_standings import TERMS, report
from tests.worlds.boundary_world import DIM, World
from tests.worlds.split_world import SplitWorld

GOLDEN = Path(__file__).with_name("golden_snapshots.json")
EACH, ANY = "each", re.compile(r"[de]\d+")
"""The key of what all elements of a list or a map have in common; keys that are names."""


def shape(value: Any) -> Any:
    """Kinds of values by field: what a reader has to know. A list of fields has as many shapes as it has fields."""
    if isinstance(value, dict):
        if all(isinstance(key, str) and not ANY.fullmatch(key) for key in value):
            return {key: shape(held) for key, held in sorted(value.items())}
        return {EACH: reduce(merged, map(shape, value.values()))}
    if isinstance(value, list):
        kinds = [shape(one) for one in value]
        records = bool(kinds) and all(isinstance(kind, list | dict) for kind in kinds)
        return {EACH: reduce(merged, kinds)} if records and len(kinds) > 2 else kinds
    return type(value).__name__


def merged(one: Any, other: Any) -> Any:
    """What is true of both."""
    if one == other:
        return one
    if isinstance(one, dict) and isinstance(other, dict):
        return {
            key: merged(one.get(key, "nothing"), other.get(key, "nothing")) for key in sorted({*one, *other})
        }
    if isinstance(one, list) and isinstance(other, list):
        if len(one) == len(other):
            return [merged(*pair) for pair in zip(one, other, strict=True)]
        return {EACH: reduce(merged, [*one, *other])}
    if isinstance(one, list) and isinstance(other, dict):
        one, other = other, one
    if isinstance(one, dict) and EACH in one and isinstance(other, list):
        return {EACH: reduce(merged, other, one[EACH])}
    if isinstance(one, str) and isinstance(other, str):
        return " | ".join(sorted({*one.split(" | "), *other.split(" | ")}))
    if isinstance(one, str):
        one, other = other, one
    # Something, or none of it.
    return {**one, "or": other} if isinstance(one, dict) else {"fields": one, "or": other}


def snapshots(world: World) -> Iterator[tuple[str, Any]]:
    """The state of every core, as its actor stores it."""
    for person in world.people.values():
        core = person.core
        if isinstance(core, DeviceCore):
            yield "device facts", msgpack.unpackb(core.facts())
            yield "device vectors", msgpack.unpackb(b"".join(core.vectors()))
        elif isinstance(core, EdgeCore):
            yield "edge facts", msgpack.unpackb(core.facts())
            yield "edge parts", {name.split(" ")[0]: part for name, part in core.vectors().items()}
        else:
            yield "aggregator", msgpack.unpackb(core.snapshot(), strict_map_key=False)
    if world.gate.quiescent:
        yield "gate", msgpack.unpackb(world.gate.snapshot(), strict_map_key=False)


def look(world: World, seen: dict[str, Any]) -> None:
    for kind, value in snapshots(world):
        seen[kind] = merged(seen[kind], shape(value)) if kind in seen else shape(value)


@pytest.mark.slow
def test_a_snapshot_of_another_shape_has_another_number() -> None:
    seen: dict[str, Any] = {}
    for world in (World(4, shards=6), SplitWorld(devices=8, probed=TERMS)):
        world.genesis()
        world.pump()
        if isinstance(world, SplitWorld):
            entries = tuple(Trip(edge=edge, microseconds=900) for edge in world.edges)
            for device in world.names:
                world.inject(device, "checkin", Trips(entries=entries))
        elif world.shards:
            for number in range(world.shards):
                world.deal(world.names[number % len(world.names)], number)
        for step in range(4):
            look(world, seen)
            if isinstance(world, SplitWorld):
                report(world, step)
            world.train()
            look(world, seen)
            world.pump()
            world.derive()
        look(world, seen)
        sealed = [message.seq for message in world.messages(SealedDelta) if isinstance(message, SealedDelta)]
        assert sealed
        world.commit(np.full(DIM, 0.5, np.float32), tuple(sealed[:1]))
        look(world, seen)
    found = {"format": FORMAT, "shapes": dict(sorted(seen.items()))}
    if os.environ.get("ECHELON_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text()), (
        "snapshots look otherwise than before: add one to echelon.actors.state.FORMAT and write the shapes anew"
    )
