"""Fed-SB: one core between two frozen bases."""

from __future__ import annotations

from echelon.adapters.fed_sb import FedSb


def test_one_core_of_the_whole_rank_is_trained() -> None:
    form = FedSb()
    assert (form.trains_a, form.exact, form.cores, form.scaled, form.width(8)) == (False, True, 1, False, 8)
