"""Healing lowers the loss, and a run that was stopped goes on as if it had not been."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.domains.cut import cut
from bench.domains.heal import CHECKPOINT, Healing, blocks_of, heal, held_out_loss
from echelon.errors import ConfigError
from tests.bench.domains.packages import prose
from tests.bench.domains.test_cut import large
from tests.bench.domains.test_vocabulary import small

HEALING = Healing(steps=12, decay=4, batch=2, length=16, lr=3e-3, every=3)
pytestmark = pytest.mark.slow


def text() -> torch.Tensor:
    return blocks_of(small().tokenizer, [prose(str(number)) for number in range(8)], HEALING.length)


def quiet(line: str) -> None:
    pass


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_blocks_predict_every_token_once() -> None:
    stream = small().tokenizer.encode("a b c d e f g h", add_special_tokens=False)
    stream.append(0)
    blocks = blocks_of(small().tokenizer, ["a b c d e f g h"], 3)
    flat = [token for block in blocks for token in block[1:].tolist()]
    assert flat == stream[1 : len(flat) + 1]
    assert len(stream) - len(flat) <= 3
    with pytest.raises(ConfigError, match="tokens of text do not fill one sequence of 500"):
        blocks_of(small().tokenizer, ["a b c"], 500)


def test_the_rate_rises_stays_and_falls() -> None:
    healing = Healing(steps=400, decay=100, lr=1.0)
    rates = [healing.rate(step) for step in range(400)]
    assert rates[0] == pytest.approx(0.02)
    assert set(rates[50:300]) == {1.0}
    assert rates[350] == pytest.approx(0.5)
    assert rates[399] == pytest.approx(0.05)


def test_a_healed_model_has_a_lower_loss(tmp_path: Path) -> None:
    model = cut(large(), small(), 2)
    before = held_out_loss(model, text())
    said: list[str] = []
    losses = heal(model, text(), replace(HEALING, steps=60), tmp_path, said.append)
    assert len(losses) == 60
    assert held_out_loss(model, text()) < before - 0.3
    assert said[0].startswith("step 3 of 60: ")


def test_products_in_fewer_bits_heal_nearly_the_same(tmp_path: Path) -> None:
    losses = {
        products: heal(
            cut(large(), small(), 2), text(), replace(HEALING, products=products), tmp_path / products, quiet
        )
        for products in ("float32", "bfloat16")
    }
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=0.02)


def test_a_stopped_healing_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    through = cut(large(), small(), 2)
    losses = heal(through, text(), HEALING, tmp_path / "through", quiet)

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 6 "):
            raise Stopped

    stopped = cut(large(), small(), 2)
    with pytest.raises(Stopped):
        heal(stopped, text(), HEALING, tmp_path / "stopped", stop)
    again = cut(large(), small(), 2)
    assert heal(again, text(), HEALING, tmp_path / "stopped", quiet) == losses
    assert same(again, through)


def test_the_number_of_steps_may_change_until_the_rate_falls(tmp_path: Path) -> None:
    longer, shorter = replace(HEALING, steps=20), HEALING
    stopped = cut(large(), small(), 2)
    heal(stopped, text(), shorter, tmp_path / "shorter", quiet)

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("step 6 "):
            raise Stopped

    model = cut(large(), small(), 2)
    with pytest.raises(Stopped):
        heal(model, text(), longer, tmp_path / "longer", stop)
    again = cut(large(), small(), 2)
    heal(again, text(), shorter, tmp_path / "longer", quiet)
    assert same(again, stopped)


def test_a_checkpoint_of_another_healing_or_of_other_text_is_refused(tmp_path: Path) -> None:
    heal(cut(large(), small(), 2), text(), HEALING, tmp_path, quiet)
    assert (tmp_path / CHECKPOINT).exists()
    for healing, blocks in (
        (replace(HEALING, lr=1e-3), text()),
        (replace(HEALING, steps=20), text()),
        (replace(HEALING, products="bfloat16"), text()),
        (HEALING, text().flip(0)),
    ):
        with pytest.raises(
            ConfigError, match=r"healing\.pt is the checkpoint of another healing or of other text"
        ):
            heal(cut(large(), small(), 2), blocks, healing, tmp_path, quiet)
