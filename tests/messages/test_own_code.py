"""What the manifest says of a user's own code."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echelon.messages.own_code import MetricTerms, RuleParameter, RuleSlot, RuleTerms


def metric(low: int, high: int) -> MetricTerms:
    return MetricTerms(name="exact", rule="mine.metrics:exact", sha256="ab" * 32, low=low, high=high)


def test_a_metric_has_room_between_its_bounds() -> None:
    assert metric(-3, 5).width == 8
    with pytest.raises(ValidationError, match=r"metric exact: its bounds are 5 and 5, the first not below"):
        metric(5, 5)


@pytest.mark.parametrize(
    "name", ["mine", "mine:", "mine.rules", "1mine:Rule", "mine:Rule.more", "mine:Rule\n"]
)
def test_a_rule_is_named_by_its_module_and_class(name: str) -> None:
    fields = {"slot": RuleSlot.PACE, "parameters": (), "sha256": "ab" * 32}
    assert RuleTerms(name="mine.rules:Rule", **fields).arguments() == {}
    with pytest.raises(ValidationError):
        RuleTerms(name=name, **fields)


def test_parameters_are_given_by_name() -> None:
    parameters = (RuleParameter(name="a", value=3), RuleParameter(name="b", value="text"))
    terms = RuleTerms(slot=RuleSlot.OUTER, name="m:R", parameters=parameters, sha256="ab" * 32)
    assert terms.arguments() == {"a": 3, "b": "text"}
