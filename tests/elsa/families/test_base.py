"""Sizes that are read from a configuration."""

from __future__ import annotations

import pytest

from echelon.elsa.families.base import MAX_SIZE, ConfigReader
from echelon.errors import ConfigError


def test_a_size_that_is_missing_or_null_takes_the_default() -> None:
    config = ConfigReader({"n_inner": None, "n_embd": 8})
    assert (config.size("n_inner", 32), config.size("other", 5), config.size("n_embd", 9)) == (32, 5, 8)


@pytest.mark.parametrize("value", [None, 0, -1, True, 2.0, "8", MAX_SIZE + 1])
def test_a_size_that_is_no_positive_integer_is_refused_by_name(value: object) -> None:
    with pytest.raises(ConfigError, match=r"model configuration: n_embd is .* expected an integer of 1 to"):
        ConfigReader({"n_embd": value}).size("n_embd")
