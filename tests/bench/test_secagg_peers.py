"""The documentation's table beside Flower is that of the figures, whose sums were right."""

from __future__ import annotations

import json

import pytest

from bench.secagg_peers import PAGE, RESULTS, ours, table, with_table


def test_the_page_has_the_table_of_the_figures() -> None:
    found = json.loads(RESULTS.read_text())
    assert found["command"].startswith("python -m bench.secagg_peers --flower ")
    page = PAGE.read_text("utf-8")
    assert with_table(page, found["figures"]) == page
    assert all(row["flower"]["largest_error_of_the_mean"] < 1e-4 for row in found["figures"])
    assert all(row["flower"]["dim"] == one["dim"] for row in found["figures"] for one in row["echelon"])


@pytest.mark.parametrize("ring_bits", [32, 16])
def test_what_is_measured_is_a_window_whose_sum_is_right(ring_bits: int) -> None:
    """`ours` raises if the unmasked sum is not that of the vectors."""
    found = ours(10, 1000, 1, ring_bits)
    assert found["upload_bytes_per_parameter"] > ring_bits / 8
    assert found["dropped"] == 1
    assert found["client_masking_cpu_s"] > 0 < found["server_unmasking_cpu_s"]
    flower = found | {"flwr": "1"}
    row = {"devices": 10, "dim": 1000, "flower": flower, "echelon": [found, found]}
    assert table([row]).count("| 10 | 1,000 |") == 3
