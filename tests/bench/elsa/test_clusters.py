"""The benchmark of clusters: agreement with the truth and with chance, and a real learner of real rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.elsa.corpora import FOLDER, prepare, read_split
from bench.elsa_clusters import Budget, agreement, chance, measure
from echelon.training.fingerprint import ProbeSet
from tests.bench.elsa import made

TRUTH = [name for name in "abcd" for _ in range(3)]


def test_groups_that_are_apart_agree_and_groups_of_another_kind_do_not() -> None:
    place = np.repeat(np.arange(4) * 10.0, 3) + np.tile([0, 0.1, 0.2], 4)
    apart = np.square(place[:, None] - place[None])
    found = agreement(apart, TRUTH)
    assert found["clusters"] == 4
    assert found["rand_index"] == found["rand_index_count_known"] == 1
    assert found["within"] < 0.2 < 9 < found["between"]
    other = [name for _ in range(3) for name in "abcd"]
    assert agreement(apart, other)["rand_index"] < 0.1


def test_random_groups_agree_by_chance_alone() -> None:
    told = chance(TRUTH, 1)
    assert told["mean"] == pytest.approx(0, abs=0.02)
    assert 0.05 < told["highest_of_20"] < 0.6


def test_devices_of_real_rows_are_trained_and_compared_after_every_round(tmp_path: Path) -> None:
    prepare(tmp_path / FOLDER, lambda line: None, take=made.take)
    train = read_split(tmp_path / FOLDER, "areas", "train")
    public = ProbeSet(tuple(one.text for one in read_split(tmp_path / FOLDER, "areas", "public")[:4]))
    budget = Budget(devices=4, rounds=2, steps=1, batch=4, length=16)
    found = measure(train, public, made.BERT, budget, seed=1)
    assert [one["round"] for one in found] == [1, 2]
    for one in found:
        assert one["shipped"]["between"] > 0
        assert one["task"]["clusters"] >= 1
    assert found[0]["task"]["between"] != found[1]["task"]["between"]
