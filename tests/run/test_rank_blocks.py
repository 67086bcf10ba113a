"""Whole federations whose devices have different ranks: they learn, both audits derive them, and PEFT loads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from peft import PeftModel
from transformers import AutoModelForCausalLM

from echelon.adapters.exported import exported_files
from echelon.audit.verify import verify
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings
from echelon.messages.adapter import rank_rows
from echelon.messages.boundary import SealedDelta, Window
from echelon.sources.boundary import audit_boundary
from echelon.training.local import TorchLearner
from echelon.training.model import SHIPPED
from tests.reloading import measured
from tests.run.runs import Outcome, check_windows, federation, run
from tests.run.test_sparse import reading

MODEL = "echelon:micro"


def of(name: str, ranks: Sequence[int], data: dict[str, Any] | None = None) -> dict[str, Any]:
    devices = [{"id": f"{name}-{place}", "rank": rank} for place, rank in enumerate(ranks)]
    return {"name": name, "devices": devices, "data": data or {"source": "text:unused"}}


def quadratic(*ranks: Sequence[int], **changes: Any) -> RunSettings:
    fields: dict[str, Any] = {
        "boundaries": [of("ab"[place], one) for place, one in enumerate(ranks)],
        "adapter": {"rank": 4, "rank_blocks": [1, 2, 4]},
        "secure": {"k_min": 2},
    }
    return federation(**fields | changes)


def audited(found: Outcome) -> None:
    """Both audits derive the run, and the gates' record of each window."""
    report = verify(found.topics["exchange"], genesis=bytes.fromhex(found.summary["genesis_sha256"]))
    assert report.ok, report.findings
    assert report.adapter_sha256.hex() == found.adapter
    for name, keys in found.assembly.identities.boundaries.items():
        inside = audit_boundary(
            exchange_topics=list(found.topics["exchange"]),
            exchange=reading(found.topics["exchange"]),
            boundary_topics=list(found.topics[name]),
            boundary=reading(found.topics[name]),
            roster=keys.roster,
            rules={},
        )
        assert inside.errors == 0, inside.findings


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sync": {"windows": 2, "codec": "sparse", "inward": "relay", "full_every": 2}},
        {"secure": {"k_min": 2, "ring_bits": 16, "coordinate_clip": 2.0, "n_max": 16}},
        {"sync": {"windows": 2, "pace": {"kind": "qsr"}, "outer": {"kind": "nesterov"}}},
        {"adapter": {"rank": 4, "rank_blocks": [2, 4], "factors": "alternating"}},
    ],
    ids=["plain", "sparse and relayed", "16 bits", "a pace of its own", "alternating"],
)
def test_a_run_of_mixed_ranks_learns_and_is_derived_by_both_audits(changes: dict[str, Any]) -> None:
    ranks = [2, 2, 2, 4, 4, 4] if "factors" in str(changes) else [1, 2, 2, 4, 4, 4]
    found = run(quadratic(ranks, ranks, **changes))
    audited(found)
    assert found.drop > 0.2
    windows = [one.summary for one in found.messages("a", "control", Window)]
    assert {one.block_heads[-1] for one in windows if one.heads == 6} == {3}
    check_windows(found.records("a", "control"), found.messages("a", "delta", SealedDelta))


@pytest.mark.slow
def test_a_boundary_whose_devices_have_a_low_rank_moves_the_first_rows_alone() -> None:
    """Of the others its delta has zeros, which count like any boundary's: those rows move half as far here."""
    found = run(quadratic([4] * 4, [1] * 4, budget={"commits": 1}, sync={"windows": 1}))
    audited(found)
    alone = run(quadratic([4] * 4, [4] * 4, budget={"commits": 1}, sync={"windows": 1}))
    low = [one.summary for one in found.messages("b", "control", Window)]
    assert {one.block_heads for one in low} == {(0, 0)}
    rows = rank_rows(found.assembly.manifest.adapter_layout(), 4)
    assert np.abs(found.result.adapter[rows >= 1]).max() > 0
    assert np.abs(found.result.adapter[rows < 1] - alone.result.adapter[rows < 1]).max() < 1e-3


# ---- a real model ----------------------------------------------------------------------------------


def real(ranks: Sequence[int], **changes: Any) -> RunSettings:
    data = {"source": "stdlib:json+email", "max_validation_tokens": 1024, "max_documents": 24}
    fields: dict[str, Any] = {
        "model": {"model": MODEL},
        "adapter": {"rank": 8, "alpha": 16, "rank_blocks": [4, 8], "targets": ["q_proj", "v_proj"]},
        "boundaries": [of("a", ranks, data)],
        "learner": {"kind": "lora"},
        "training": {"sequence_length": 32, "batch_size": 4, "lr": 1e-2},
        "budget": {"commits": 4},
        "sync": {"windows": 1, "steps": 10, "overlap": False, "eval_tokens": 64},
        "secure": {"bucket_tokens": 64, "k_min": 2},
    }
    return federation(**fields | changes)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_model_is_trained_by_devices_of_two_ranks_audited_and_loaded_by_stock_peft(
    tmp_path: Path,
) -> None:
    found = run(real([4, 4, 4, 8, 8, 8]))
    audited(found)
    assert found.drop > 0.02
    manifest = found.assembly.manifest
    assert {one.summary.block_heads for one in found.messages("a", "control", Window)} == {(3,)}
    files = exported_files(manifest, found.result.adapter)
    for place, data in files.items():
        (tmp_path / place).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(SHIPPED[MODEL])
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    loss, _ = measured(model, TorchLearner(spec_of(real([4, 4, 4, 8, 8, 8]))))
    assert loss == pytest.approx(found.summary["final_loss"]["a"], rel=1e-5)
    moved = found.result.adapter != TorchLearner(spec_of(real([8] * 6))).initial_adapter()
    assert moved[rank_rows(manifest.adapter_layout(), 8) >= 4].mean() > 0.9
