"""The base that the repository has: its files are those of its record, and it predicts text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.domains.__main__ import SHIPPED
from bench.domains.base import LICENCE, NOTICE, RECORD, WEIGHTS, altered, expand
from bench.domains.heal import blocks_of, loss_of

LIMIT = 25 << 20
"""Bytes of weights that a repository may carry."""
TEXT = (
    "The President of the United States shall, from time to time, give to the Congress information of the state of the "
    "Union, and recommend to their consideration such measures as he shall judge necessary and expedient."
)


def test_its_files_are_those_of_its_record_and_few() -> None:
    assert altered(SHIPPED) == []
    record = json.loads((SHIPPED / RECORD).read_text("utf-8"))
    assert {LICENCE, NOTICE, WEIGHTS} <= set(record["sha256"])
    assert record["bytes"] == (SHIPPED / WEIGHTS).stat().st_size < LIMIT
    losses = record["held_out_loss"]
    assert losses["packed"] < losses["before_healing"] / 4
    assert abs(losses["packed"] - losses["after_healing"]) < 0.01


@pytest.mark.slow
def test_it_predicts_text_far_better_than_chance(tmp_path: Path) -> None:
    folder = expand(tmp_path / "base", SHIPPED)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(TEXT, add_special_tokens=False)) == TEXT
    blocks = blocks_of(tokenizer, [TEXT], 40)
    with torch.no_grad():
        assert loss_of(model, blocks).item() < math.log(len(tokenizer)) - 3.0
