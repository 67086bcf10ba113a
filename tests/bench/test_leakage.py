"""The attack on rotations: it reads what a rotation of a part leaves open, and needs something to go by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.leakage import nearest, rotation_of, share
from echelon.training.split.perturb import Perturbation, leading_subspace

WIDTH, ENTRIES, ROWS = 32, 200, 3000


@pytest.mark.parametrize(("rank", "read"), [(4, 0.99), (16, 0.99), (24, 0.99)])
def test_a_rotation_of_a_part_of_the_width_is_found_from_recorded_rows_alone(rank: int, read: float) -> None:
    draw = np.random.default_rng(0)
    table = draw.standard_normal((ENTRIES, WIDTH)).astype(np.float32)
    tokens = torch.from_numpy(draw.integers(ENTRIES, size=ROWS))
    rows = table[tokens] + 0.1 * draw.standard_normal((ROWS, WIDTH)).astype(np.float32)
    public = table[draw.integers(ENTRIES, size=ROWS)]
    basis = leading_subspace([public[None]], rank)
    sent = torch.from_numpy(Perturbation.agreed(basis, b"s" * 32, "d", 0, "front").apply(rows[None])[0])
    known, plane = torch.from_numpy(table), torch.from_numpy(basis)
    turned = sent @ plane
    found = rotation_of(sent, torch.from_numpy(public), known, plane)
    undone = sent + (turned @ found - turned) @ plane.T
    assert share(nearest(undone, known), tokens) > read
    assert torch.linalg.matrix_norm(found @ found.T - torch.eye(rank)) < 1e-3
    if rank > WIDTH // 2:
        assert share(nearest(sent, known), tokens) < 0.5
