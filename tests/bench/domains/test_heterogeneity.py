"""The matrix of losses: every domain's adapter on every domain's text."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.domains.documents import DOMAINS
from bench.domains.heterogeneity import BASE, Budget, as_table, measure, summary
from bench.domains.prepare import prepare
from tests.bench.domains import packages

BUDGET = Budget(steps=6, batch=2, length=32, rank=2, lr=1e-2, eval_tokens=128)


def test_means_are_over_domains() -> None:
    found = summary({"base": {"a": 4.0, "b": 5.0}, "a": {"a": 3.0, "b": 5.0}, "b": {"a": 4.5, "b": 3.5}})
    assert found["base"] == 4.5
    assert found["own"] == 3.25
    assert found["others"] == 4.75
    assert found["local_over_own"] == pytest.approx(4.0 / 3.25 - 1, abs=1e-5)


@pytest.mark.slow
def test_every_adapter_is_evaluated_on_every_domain_and_again_alike(tmp_path: Path) -> None:
    prepare(tmp_path / "text", lambda line: None, take=packages.take)
    said: list[str] = []
    domains = ("code", "dictionary")
    found = measure(tmp_path / "text", "echelon:micro", BUDGET, said.append, domains)
    assert list(found["loss"]) == [BASE, *domains]
    assert all(list(row) == list(domains) for row in found["loss"].values())
    assert found["loss"]["code"]["code"] < found["loss"][BASE]["code"]
    assert said[0].startswith("code: ")
    assert found["budget"]["steps"] == 6
    again = measure(tmp_path / "text", "echelon:micro", BUDGET, said.append, domains)
    assert again["loss"] == found["loss"]
    assert set(domains) < set(DOMAINS)
    lines = as_table(found).splitlines()
    assert lines[0] == "| adapter of | code | dictionary |"
    assert len(lines) == 5
