"""What a check says of split training: cuts, encodings and rotations against the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from echelon.config.run import load
from echelon.preflight.check import check
from echelon.training.fingerprint import probe_ids
from tests.architectures import CAUSAL
from tests.preflight.test_check import PLAIN, settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WIDTH, BLOCKS = 64, 2
"""Of echelon:micro."""


def found(*splits: dict[str, Any], devices: int = 3, **more: Any) -> tuple[list[str], list[str]]:
    """Faults and warnings of a run with a boundary for each split."""
    boundaries = [
        {
            "name": f"b{place}",
            "devices": devices,
            "data": {"source": PLAIN, "max_validation_tokens": 512},
            "split": {"front": 1, "back": 0} | split,
        }
        for place, split in enumerate(splits)
    ]
    checked = check(settings(boundaries=boundaries, secure={"k_min": 2}, **more))
    return [str(fault) for fault in checked.faults], checked.warnings


@pytest.mark.parametrize("rank", [0, WIDTH])
def test_no_rotation_or_one_of_the_whole_width_is_good(rank: int) -> None:
    assert found({"perturbation": rank}) == ([], [])


def test_a_rotation_below_the_width_is_warned_of() -> None:
    faults, warnings = found({"perturbation": 16}, {"perturbation": WIDTH}, {"perturbation": 16})
    assert faults == []
    (warning,) = warnings
    assert warning.startswith(
        "boundaries b0, b2: split.perturbation 16 rotates 16 of the model's 64 dimensions"
    )
    assert "set it to 64, or to 0" in warning


def test_a_rotation_above_the_width_is_a_fault() -> None:
    faults, warnings = found({"perturbation": WIDTH + 1})
    assert warnings == []
    (fault,) = faults
    assert fault.startswith("boundary b0: split: perturbation: a subspace of rank 65")
    assert "of width 64: the rank is from 1 to 64" in fault


def test_more_directions_than_probes_show_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with models that are wider than the probes have tokens: the whole width needs none of them."""

    def few(*arguments: Any) -> list[list[int]]:
        return [ids[:1] for ids in probe_ids(*arguments)]

    monkeypatch.setattr("echelon.preflight.split.probe_ids", few)
    (fault,), _ = found({"perturbation": 40})
    assert "from 16 hidden states of width 64: the rank is from 1 to 15, or 64" in fault
    assert found({"perturbation": WIDTH}) == ([], [])


@pytest.mark.parametrize("cut", [{"front": 1, "back": 1}, {"front": 2}, {"back": 9}])
def test_a_cut_without_a_middle_is_a_fault(cut: dict[str, int]) -> None:
    (fault,), _ = found(cut)
    assert fault.startswith(f"boundary b0: split: a model of {BLOCKS} blocks cannot be cut at")


def test_an_encoding_that_the_width_does_not_have_is_a_fault() -> None:
    encodings = {"up_activations": "lowrank:65", "down_gradients": "lowrank:65", "up_gradients": "lowrank:64"}
    (fault,), _ = found({"encodings": encodings})
    assert fault.startswith("boundary b0: split: encodings: lowrank:65: rank 65 is not from 1 to 64")


def test_a_family_that_cannot_be_cut_is_a_fault(tmp_path: Path) -> None:
    (fault,), _ = found({}, model={"model": str(CAUSAL["gemma2"].save(tmp_path / "model"))})
    assert fault.startswith(
        "model: model type 'gemma2' cannot be cut in three parts; families that can: llama"
    )


def test_cuts_of_devices_that_are_whole_do_not_count() -> None:
    classes = [
        {"name": "large", "devices": ["b0-0"], "whole": True},
        {"name": "small", "devices": ["b0-1", "b0-2"], "front": 1, "back": 0},
    ]
    assert found({"front": 9, "back": 9, "classes": classes})[0] == []


def test_a_block_that_too_few_devices_hold_is_warned_of() -> None:
    """Of four devices one may drop out; a sum is over two at least."""
    classes = [{"name": "large", "devices": ["b0-0", "b0-1"], "front": 0, "back": 1}]
    faults, warnings = found({"classes": classes}, devices=4)
    assert faults == []
    (warning,) = warnings
    assert warning.startswith(
        "boundary b0: 2 of 4 devices hold blocks 0, 1 themselves, and nothing counts of what they"
    )
    assert "1 may drop out of a window of 4, and a sum is over 2 at least" in warning
    assert "or let 3 hold it" in warning
    classes[0]["devices"] = ["b0-0"]
    held, left = found({"classes": classes}, devices=4)[1]
    assert held.startswith("boundary b0: 1 of 4 devices hold block 1 themselves"), "three hold the other"
    assert left.startswith("boundary b0: 1 of 4 devices leave block 0 to its edge"), (
        "and three leave this one"
    )
    assert "an edge's sum is over 2 at least" in left


def test_devices_that_edges_share_are_too_few_for_each_of_them() -> None:
    classes = [{"name": "small", "devices": ["b0-0", "b0-1", "b0-2"], "front": 0, "back": 1}]
    assert not any("leave" in warning for warning in found({"classes": classes}, devices=6)[1])
    left = [
        warning for warning in found({"classes": classes, "edges": 2}, devices=6)[1] if "leave" in warning
    ]
    assert left[0].startswith("boundary b0: 3 of 6 devices leave blocks 0, 1 to 2 edges, 1 or 2 to each")


def test_the_example_has_nothing_to_be_warned_of() -> None:
    """Its rotations are over the whole width, and the cut that is planned goes with those that are given."""
    checked = check(load(EXAMPLES / "elsa.yaml"), data=False)
    assert checked.faults == []
    assert checked.warnings == []
