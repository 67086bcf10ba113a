"""Every kind has its rule. Golden trajectories are in golden_outer.json; ECHELON_UPDATE_GOLDEN=1 writes them anew."""

from __future__ import annotations

import json
import os
from pathlib import Path

from echelon.messages.manifest import OuterKind
from echelon.outer.registry import RULES
from tests.worlds.outer_steps import (
    optimiser,
    trajectory,
)

GOLDEN = Path(__file__).with_name("golden_outer.json")


def test_golden_trajectories() -> None:
    found = {
        f"{kind.value} {sizes}": trajectory(kind, sizes)
        for kind in OuterKind
        for sizes in ((2, 2, 2, 2), (1, 1, 1, 1, 1, 1), (1, 2, 3, 1))
    }
    if os.environ.get("ECHELON_UPDATE_GOLDEN"):
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(GOLDEN.read_text())


def test_every_kind_has_its_rule() -> None:
    assert set(RULES) == set(OuterKind)
    assert all(type(optimiser(kind)).kind is kind for kind in OuterKind)
