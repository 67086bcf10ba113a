"""Whole federations with each kind of adapter: what is audited, exported and sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from peft import PeftModel
from transformers import AutoModelForCausalLM

from echelon.adapters.exported import exported_files
from echelon.audit.replay import replay
from echelon.audit.verify import verify
from echelon.compute.pool import spec_of
from echelon.config.run import RunSettings
from echelon.messages.boundary import Masked
from echelon.training.local import TorchLearner
from echelon.training.model import SHIPPED
from tests.reloading import measured
from tests.run.runs import federation, run

MODEL = "echelon:micro"


def settings(**adapter: Any) -> RunSettings:
    data = {"source": "stdlib:json+email", "max_validation_tokens": 1024, "max_documents": 12}
    return federation(
        model={"model": MODEL},
        adapter={"rank": 4, "targets": ["q_proj", "v_proj"], **adapter},
        boundaries=[{"name": "a", "devices": 3, "data": data}],
        learner={"kind": "lora"},
        training={"sequence_length": 32, "batch_size": 4, "lr": 3e-3},
        budget={"commits": 3},
        sync={"windows": 1, "steps": 8, "overlap": False, "eval_tokens": 64},
        secure={"bucket_tokens": 64},
    )


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["ffa", "fed-sb", "ravan"])
def test_a_run_is_audited_and_its_export_gives_the_reported_loss_under_stock_peft(
    kind: str, tmp_path: Path
) -> None:
    made = settings(kind=kind)
    outcome = run(made)
    manifest = outcome.assembly.manifest
    genesis = bytes.fromhex(outcome.summary["genesis_sha256"])
    files = exported_files(manifest, outcome.result.adapter)
    report = verify(outcome.topics["exchange"], genesis=genesis, adapter=files)
    assert report.ok, report.findings
    last = list(replay(outcome.topics["exchange"], genesis=genesis))[-1]
    assert np.array_equal(last.adapter, outcome.result.adapter)
    assert last.files() == files
    name = "adapter_model.safetensors"
    changed = bytearray(files[name])
    changed[-1] ^= 1
    assert not verify(outcome.topics["exchange"], genesis=genesis, adapter={**files, name: bytes(changed)}).ok
    assert outcome.drop > 0
    for place, data in files.items():
        (tmp_path / place).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(SHIPPED[MODEL])
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    found, _ = measured(model, TorchLearner(spec_of(made)))
    assert found == pytest.approx(outcome.summary["final_loss"]["a"], rel=1e-5)
    dim = manifest.adapter_layout().dim
    lengths = {message.payload.length for message in outcome.messages("a", "masked", Masked)}
    assert len(lengths) == 1
    assert 4 * dim <= min(lengths) <= 8 * dim + 64
