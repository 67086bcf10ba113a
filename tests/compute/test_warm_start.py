"""What a run may start from: the same base, the same layers, shapes and scale."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from echelon.compute.pool import Facts
from echelon.compute.warm_start import Parent, read_weights, started_from
from echelon.errors import ConfigError
from echelon.messages.adapter import AdapterLayout, adapter_digest
from echelon.messages.kinds import AdapterKind
from echelon.messages.manifest import AdapterTerms

LAYOUT = AdapterLayout.of({"m.1.q.lora_A.weight": (2, 4), "m.1.q.lora_B.weight": (4, 2)})
CONFIG: dict[str, Any] = {"peft_type": "LORA", "lora_alpha": 16, "base_model_name_or_path": "org/base"}


def facts(**changes: Any) -> Facts:
    config = json.dumps(CONFIG | changes)
    return Facts(LAYOUT.json.decode(), config, b"\x01" * 32, np.zeros(LAYOUT.dim, np.float32))


def parent(**changes: Any) -> Parent:
    fields: dict[str, Any] = {
        "source": "before",
        "adapter": np.arange(LAYOUT.dim, dtype=np.float32),
        "layout": LAYOUT,
        "config": CONFIG,
    }
    return Parent(**fields | changes)


def kind(name: AdapterKind = AdapterKind.FFA, seed: int = 1) -> AdapterTerms:
    return AdapterTerms(kind=name, seed=seed, files=LAYOUT.json.decode())


def test_a_run_goes_on_from_one_of_its_kind_and_seed() -> None:
    same = replace(facts(), adapter=kind())
    assert started_from(same, parent(kind=kind()), ()).initial.tolist() == list(range(16))
    whole = replace(
        facts(), adapter=kind(AdapterKind.FEDSA)
    )  # where no base is frozen, no seed must be the same
    assert started_from(whole, parent(kind=kind(AdapterKind.FEDSA, seed=2)), ()).initial.tolist() == list(
        range(16)
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (None, kind(), "start from that folder"),
        (kind(), None, "of the kind lora, this run's of the kind ffa"),
        (kind(), kind(AdapterKind.RAVAN), "or set adapter.kind to ravan"),
        (kind(), kind(seed=2), "set seed to 2 as it was there"),
    ],
)
def test_another_kind_or_other_bases_are_refused(
    ours: AdapterTerms | None, theirs: AdapterTerms | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        started_from(replace(facts(), adapter=ours), parent(kind=theirs), ())


def test_a_run_starts_with_the_parents_adapter_and_names_it() -> None:
    found = started_from(facts(), parent(genesis_sha256="ab" * 32, model_sha256="01" * 32), ())
    assert found.initial.tolist() == list(range(16))
    assert found.parent is not None
    assert found.parent.genesis_sha256 == "ab" * 32
    assert found.parent.adapter_sha256 == adapter_digest(found.initial).hex()
    plain = facts()
    assert started_from(plain, None, ()) is plain


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"model_sha256": "02" * 32}, "another base"),
        ({"config": CONFIG | {"base_model_name_or_path": "org/other"}}, "is of the base org/other"),
        ({"config": CONFIG | {"lora_alpha": 32}}, "set adapter.alpha as it was there"),
        ({"config": CONFIG | {"use_dora": True}}, "use_dora"),
        ({"labels": ("no", "yes")}, "its labels are no, yes"),
        (
            {"layout": AdapterLayout.of({"m.1.q.lora_A.weight": (4, 4), "m.1.q.lora_B.weight": (4, 4)})},
            "set adapter.rank",
        ),
        ({"layout": AdapterLayout.of({"m.1.v.lora_A.weight": (2, 4)})}, "set adapter.targets"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match="--from before: ") as caught:
        started_from(facts(), parent(**given), ())
    assert words in str(caught.value)


def test_a_base_that_lay_elsewhere_is_the_same_base() -> None:
    elsewhere = CONFIG | {"base_model_name_or_path": "/models/base"}
    assert started_from(facts(), parent(config=elsewhere), ()).parent is not None


def test_half_precision_is_widened() -> None:
    layout, vector = read_weights(save({"a.lora_A.weight": np.array([[0.5, -2.0]], np.float16)}), "f")
    assert (layout.dim, vector.tolist()) == (2, [0.5, -2.0])
    brain = save_torch({"a.lora_A.weight": torch.tensor([[0.5, -2.0]], dtype=torch.bfloat16)})
    assert read_weights(brain, "f")[1].tolist() == [0.5, -2.0]


def test_what_is_no_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match="I64"):
        read_weights(save({"a": np.arange(3)}), "f")
    with pytest.raises(ConfigError, match="f is not a file"):
        read_weights(b"PK\x03\x04 something else", "f")
