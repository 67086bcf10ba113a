"""Cuts that a run file leaves to be planned."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from echelon.compute.planning import plan_classes, planned, replanner, shape_of
from echelon.config.run import RunSettings, parse
from echelon.errors import ConfigError
from tests.run.splits import split_federation

PROFILE = {"memory": "252 MiB", "flops": "4 GFLOP/s", "uplink": "50 Mbit/s", "downlink": "50 Mbit/s"}


def one_class(changes: dict[str, Any] | None = None) -> RunSettings:
    fields = {"name": "phone", "devices": ["a-0", "a-1", "a-2", "a-3"], "profile": PROFILE, **(changes or {})}
    split = {"edge_profile": {"flops": "40 GFLOP/s"}, "classes": [fields]}
    return split_federation(split=split)


def chosen(settings: RunSettings) -> tuple[int, int, int]:
    split = settings.boundaries[0].split
    assert split is not None
    return (*split.cut_of("a-0"), split.micro_of("a-0"))


def test_a_planned_class_keeps_its_profile_and_is_planned_once() -> None:
    first = planned(one_class())
    assert chosen(first)[0] >= 1
    assert parse(first.model_dump(mode="json"), "again") == first
    assert planned(first) == first
    boundary = first.boundaries[0]
    assert boundary.split is not None
    assert replanner(first, boundary, "a-0", lambda: shape_of(first)) is not None
    never = boundary.model_copy(update={"split": boundary.split.model_copy(update={"replan": None})})
    assert replanner(first, never, "a-0", lambda: shape_of(first)) is None


def test_a_profile_with_a_cut_starts_with_that_cut() -> None:
    assert chosen(planned(one_class({"front": 2, "back": 1, "micro_batch": 1}))) == (2, 1, 1)
    for wrong, message in (({"front": 1}, "both front and back"), ({"whole": True}, "leave out either")):
        with pytest.raises(ConfigError, match=message):
            one_class(wrong)


def test_a_classifier_is_planned_as_one() -> None:
    assert shape_of(one_class()).labels is None
    settings = one_class()
    classify = settings.model.model_copy(update={"task": "classify", "labels": ("a", "b", "c")})
    classifier = settings.model_copy(update={"model": classify})
    assert shape_of(classifier).labels == 3
    # A language model's head makes 2,048 logits of every token; a classifier's, three of a whole row.
    boundary = settings.boundaries[0]
    assert boundary.split is not None
    tokens, rows = (
        plan_classes(one, boundary, boundary.split, shape_of(one))["phone"] for one in (settings, classifier)
    )
    assert rows.memory.logits < tokens.memory.logits / 100
    assert rows.device_s < tokens.device_s
