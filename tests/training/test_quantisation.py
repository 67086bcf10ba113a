"""Weights in 4 or 8 bits: refused in one sentence where they cannot be held, before anything is read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from echelon.config.run import parse
from echelon.config.training import AdapterSettings, ModelSettings, TrainSettings
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout
from echelon.preflight.memory import Shape, estimate
from echelon.training import model as module
from echelon.training.merge import Weights, merge_into
from echelon.training.model import load_base
from echelon.training.quantisation import PACKAGE, quantised_options, scales
from tests.preflight.test_check import faults, fields

NF4 = ModelSettings(quantization="nf4")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether the package is there."""
    found = importlib.util.find_spec

    def change(there: bool) -> None:
        spec = found("json") if there else None
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *more: spec if name == PACKAGE else found(name, *more)
        )

    return change


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_without_a_gpu_it_is_refused_before_anything_is_read(
    monkeypatch: pytest.MonkeyPatch, kind: str, installed: Callable[[bool], None]
) -> None:
    installed(True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(module, "draw_missing", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(ConfigError, match=f"model.quantization {kind} needs a GPU of NVIDIA"):
        load_base(ModelSettings(quantization=kind), torch.device("cpu"))
    (fault,) = faults(model={"model": "echelon:micro", "quantization": kind})
    assert "needs a GPU" in fault


def test_without_the_package_it_is_refused(gpu: None, installed: Callable[[bool], None]) -> None:
    installed(False)
    with pytest.raises(ConfigError, match=r"pip install 'echelon\[quantization\]'"):
        quantised_options(NF4, torch.bfloat16)


def test_what_the_library_is_told(
    gpu: None, installed: Callable[[bool], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(True)
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "echelon.training.quantisation.BitsAndBytesConfig", lambda **named: told.append(named)
    )
    assert quantised_options(NF4, torch.bfloat16)["device_map"] == {"": 3}
    quantised_options(ModelSettings(quantization="int8"), torch.float32)
    assert quantised_options(ModelSettings(), torch.float32) == {}
    assert told == [
        {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.bfloat16,
        },
        {"load_in_8bit": True},
    ]


def test_a_quantised_base_is_not_merged(tmp_path: Path) -> None:
    weights = Weights(AdapterLayout.of({"a": (1,)}), torch.zeros(1).numpy(), "00")
    with pytest.raises(ConfigError, match="held as nf4, and merged into others"):
        merge_into(tmp_path, NF4, AdapterSettings(), weights)


def test_split_training_refuses_it() -> None:
    boundary = {"name": "a", "devices": 3, "data": {"source": "text:x"}, "split": {}}
    with pytest.raises(ConfigError, match=r"model\.quantization must be left out"):
        parse(fields(boundaries=[boundary], model={"quantization": "nf4"}), "run.yaml")


def test_lengths_of_weights_in_eight_bits_are_not_trained() -> None:
    with pytest.raises(ConfigError, match=r"adapter\.dora needs model\.quantization nf4 or none"):
        parse(fields(adapter={"dora": True}, model={"quantization": "int8"}), "run.yaml")
    parse(fields(adapter={"dora": True}, model={"quantization": "nf4"}), "run.yaml")


def test_it_takes_less_memory() -> None:
    shape = Shape(parameters=1000, adapter=10, hidden=8, layers=2, heads=2, outputs=16)
    needs = [
        estimate(shape, ModelSettings(dtype="bf16", quantization=kind), TrainSettings()).weights
        for kind in (None, "int8", "nf4")
    ]
    assert needs == [2000, 1000, 520]


def test_scales_of_quantised_weights_are_found() -> None:
    weight = torch.zeros(4)
    assert scales(weight) == []
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    weight.quant_state = SimpleNamespace(absmax=one, offset=two, state2=SimpleNamespace(absmax=three))  # type: ignore[attr-defined]
    assert scales(weight) == [one, two, three]
    eight = torch.zeros(4)
    eight.SCB = one  # type: ignore[attr-defined]
    assert scales(eight) == [one]
