"""Ravan: so many cores as heads, and scales that may be left out."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from echelon.adapters.ravan import Ravan


def test_each_head_has_a_core_of_the_rank() -> None:
    form = Ravan(heads=3)
    assert (form.trains_a, form.exact, form.cores, form.scaled, form.width(8)) == (False, True, 3, True, 24)
    assert not Ravan(scales=False).scaled


@pytest.mark.parametrize("fields", [{"heads": 0}, {"heads": 65}, {"other": 1}])
def test_other_settings_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        Ravan.model_validate(fields)
