"""Whole federations that train a classifier, with its model in one piece and in three."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from tests.classifiers import data_of, model_of, save_model, write_rows
from tests.federation.runs import run
from tests.federation.splits import check, refused, split_federation


@cache
def folder() -> Path:
    root = Path(mkdtemp(prefix="classify"))
    for family in ("bert", "llama"):
        save_model(root / family, family)
    write_rows(root / "rows.jsonl", 600)
    return root


def settings(family: str, edges: int, commits: int = 4, steps: int = 12, split: Any = None) -> Any:
    boundary: dict[str, Any] = {
        "name": "a",
        "devices": 4,
        "data": data_of(folder() / "rows.jsonl", partition="dirichlet(1.0)"),
    }
    made = split_federation(edges=edges, split=split or {})
    if edges:
        chosen = made.boundaries[0].split
        assert chosen is not None
        boundary["split"] = chosen.model_dump(mode="json") | {"micro_batch": 4}
    return split_federation(
        edges=0,
        commits=commits,
        model=model_of(folder() / family),
        boundaries=[boundary],
        adapter={"rank": 4, "alpha": 8},
        sync={"windows": 1, "steps": steps},
        training={"batch_size": 8, "sequence_length": 20, "lr": 1e-2},
        secure={"clip": 32.0},
    )


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_split_run_learns_what_the_whole_one_does(family: str) -> None:
    whole, split = (run(settings(family, edges, commits=1, steps=3)) for edges in (0, 1))
    check(split)
    assert refused(split) == []
    start = whole.assembly.terms.initial
    theirs, mine = whole.result.adapter, split.result.adapter
    assert np.linalg.norm(theirs - mine) <= 0.01 * np.linalg.norm(theirs - start)
    assert whole.drop > 0.01
    assert abs(split.drop - whole.drop) <= 0.01 * whole.drop
