"""The benchmark for a GPU: its model and run files are sound, and its committed result says what it ran on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bench.bare_loop import BareLoop
from bench.gpu import SHAPES, TINY, TINY_SHAPES, WHOLE, make_model, settings_of
from echelon.compute.pool import spec_of
from echelon.training.local import TorchLearner

ROOT = Path(__file__).resolve().parents[2]


def test_the_whole_size_is_a_billion_parameters() -> None:
    """Counted from its shape; the model itself is not made here."""
    head = WHOLE.hidden // WHOLE.heads
    attention = WHOLE.hidden * WHOLE.hidden * 2 + 2 * WHOLE.hidden * WHOLE.kv_heads * head
    layer = attention + 3 * WHOLE.hidden * WHOLE.inner + 2 * WHOLE.hidden
    total = WHOLE.vocabulary * WHOLE.hidden + WHOLE.layers * layer + WHOLE.hidden
    assert 1.2e9 < total < 1.3e9


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_model_loads_in_its_dtype_and_trains_in_both_loops(tmp_path: Path, dtype: str) -> None:
    parameters = make_model(TINY, dtype, tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).model_type == "llama"
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert model.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    assert sum(p.numel() for p in model.parameters()) == parameters
    settings = settings_of(TINY, TINY_SHAPES["paper"], dtype, tmp_path)
    spec = spec_of(settings)
    blocks = TorchLearner(spec).boundary_data("a").training["a-0"]
    loop = BareLoop(spec, torch.from_numpy(blocks.tokens))
    first = loop.run(torch.arange(24).view(1, 24))
    last = [loop.run(torch.arange(24).view(1, 24)) for _ in range(12)][-1]
    assert last < first


@pytest.mark.slow
def test_accumulation_is_the_mean_over_all_micro_batches(tmp_path: Path) -> None:
    """Four micro-batches of six are one step on twenty-four sequences."""
    make_model(TINY, "fp32", tmp_path)
    spec = spec_of(settings_of(TINY, TINY_SHAPES["paper"], "fp32", tmp_path))
    tokens = torch.from_numpy(TorchLearner(spec).boundary_data("a").training["a-0"].tokens)
    found = []
    for batch in (6, 24):
        torch.manual_seed(0)
        train = spec.train.model_copy(update={"batch_size": batch, "accumulation": 24 // batch})
        loop = BareLoop(spec.model_copy(update={"train": train}), tokens)
        losses = [loop.run(torch.arange(24).view(1, 24)) for _ in range(3)]
        found.append(losses)
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_shapes_are_the_papers_and_a_sensible_one() -> None:
    paper = SHAPES["paper"]
    assert (paper.sequence, paper.micro_batch, paper.accumulation) == (32, 6, 4)
    assert SHAPES["sensible"].sequence == 512
    assert TINY_SHAPES["paper"] == paper


def test_the_committed_result_says_what_it_ran_on() -> None:
    figures = json.loads((ROOT / "bench" / "results" / "gpu.json").read_text(encoding="utf-8"))["figures"]
    on_cpu = figures["device"].startswith("cpu")
    assert figures["size"].startswith("tiny") if on_cpu else figures["size"] == "1B"
    # A small model on a processor is no answer to the paper's figure, and is not set against it.
    assert (figures["against_paper"] is None) == on_cpu
    for found in figures["shapes"].values():
        assert found["audit_ok"]
        assert found["ratio"] == pytest.approx(found["federation"] / found["bare"])
