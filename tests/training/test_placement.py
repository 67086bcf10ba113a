"""A frozen model over several GPUs: what can be known of it without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from echelon.compute.pool import spec_of
from echelon.config.run import parse
from echelon.config.training import ModelSettings
from echelon.errors import ConfigError
from echelon.jobs.training import TrainJob
from echelon.training import layout
from echelon.training.local import TorchLearner
from echelon.training.placement import check_placed, placed
from tests.preflight.test_check import fields

MakeSpec = Callable[..., Any]


def trained(learner: TorchLearner, **changes: Any) -> bytes:
    """Weights and state after two jobs, the second one from the state of the first."""
    start = learner.initial_adapter()
    device = learner.spec.boundaries[0].devices[0]
    values: dict[str, Any] = {"data": device, "base": start, "steps": 2, "mu": 0.1, "progress": 0.0} | changes
    first = learner.train(TrainJob(start=start, **values))
    second = learner.train(TrainJob(start=first.weights, state=first.state, **values))
    assert not np.array_equal(second.weights, first.weights)
    return second.weights.tobytes() + second.state


@pytest.mark.parametrize("factor", [None, "A"])
def test_parameters_on_another_device_are_trained_as_views_are(
    factor: str | None, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec(train={"accumulation": 2})
    expected = trained(TorchLearner(spec), factor=factor)
    asked: list[bool] = []

    def every_second(_parameter: torch.Tensor, _device: torch.device) -> bool:
        asked.append(len(asked) % 2 == 1)
        return asked[-1]

    monkeypatch.setattr(layout, "lies_elsewhere", every_second)
    spread = TorchLearner(spec)
    assert len(spread._flat._elsewhere) == len(asked) // 2 > 1
    assert trained(spread, factor=factor) == expected
    # What a job leaves behind is nothing to the next evaluation.
    start = spread.initial_adapter()
    assert spread.evaluate("a0", start) == TorchLearner(spec).evaluate("a0", start)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_auto_changes_nothing(make_spec: MakeSpec) -> None:
    spec = make_spec()
    auto = spec.model_copy(update={"model": spec.model.model_copy(update={"device_map": "auto"})})
    assert placed(auto.model) == {}
    assert trained(TorchLearner(auto)) == trained(TorchLearner(spec))


@pytest.mark.parametrize(("count", "found"), [(0, "none"), (2, "2")])
def test_a_gpu_that_is_not_there_is_named(count: int, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ConfigError, match=f"names GPU 2, and torch finds {found} on this machine"):
        placed(ModelSettings(device_map={"model.embed_tokens": 0, "model.layers": 2}))


def test_where_there_are_gpus_the_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert placed(ModelSettings(device_map="auto")) == {"device_map": "auto"}
    assert placed(ModelSettings(device_map={"model": 0, "lm_head": 1})) == {
        "device_map": {"model": 0, "lm_head": 1}
    }
    assert placed(ModelSettings()) == {}


def test_a_model_that_does_not_fit_the_gpus_is_refused() -> None:
    model = nn.Linear(2, 2)
    check_placed(model, "one")  # nothing was spread
    model.hf_device_map = {"": "cpu"}
    check_placed(model, "one")  # there are no GPUs
    model.hf_device_map = {"a": 0, "b": "disk", "c": torch.device("cpu")}
    with pytest.raises(
        ConfigError, match="'one' does not fit 0 GPUs: b and what follows it would stay in main"
    ):
        check_placed(model, "one")


def test_the_run_file_says_where() -> None:
    auto = {"device_map": "auto"}
    assert spec_of(parse(fields(model=auto), "run.yaml")).model.device_map == "auto"
    for setting in ("ranks", "workers"):
        with pytest.raises(ConfigError, match=rf"one process over all GPUs, and compute\.{setting} is 2"):
            parse(fields(model=auto, compute={setting: 2}), "run.yaml")
    boundary = {"name": "a", "devices": 3, "data": {"source": "text:x"}, "split": {}}
    with pytest.raises(ConfigError, match=r"model\.device_map must be left out; each part"):
        parse(fields(boundaries=[boundary], model=auto), "run.yaml")
    for wrong in ("all", {"model": -1}, {"model": "cpu"}):
        with pytest.raises(ConfigError, match=r"device_map"):
            parse(fields(model={"device_map": wrong}), "run.yaml")
