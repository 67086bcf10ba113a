"""An adapter is loaded with transformers and peft alone and must have the loss that the run reported."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from echelon.cli.app import app
from tools.real.__main__ import main

RUN = """
name: reload
model: {{model: "echelon:tiny"}}
training: {{lr: 0.01, batch_size: 4, sequence_length: 32}}
boundaries:
  - {{name: one, devices: 2, data: {{source: "text:{0}/one/*.txt"}}}}
  - {{name: two, devices: 2, data: {{source: "text:{0}/two/*.txt"}}}}
secure: {{k_min: 2}}
window: {{deadline: 600}}
sync: {{steps: 2, windows: 1}}
budget: {{commits: 1}}
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reload")
    for boundary in ("one", "two"):
        (folder / boundary).mkdir()
        for number in range(12):
            words = " ".join(f"{boundary} {number} sees {number * k}" for k in range(40))
            (folder / boundary / f"{number}.txt").write_text(words)
    (folder / "run.yaml").write_text(RUN.format(folder))
    result = CliRunner().invoke(app, ["run", str(folder / "run.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(600)  # two workers load torch, which a busy machine makes slow
def test_the_reloaded_adapter_has_the_reported_losses(finished, capsys):
    assert main(["reload", str(finished)]) == 0
    assert capsys.readouterr().out.count("reloaded with transformers and peft alone") == 2


@pytest.mark.slow
@pytest.mark.timeout(600)  # two workers load torch, which a busy machine makes slow
def test_another_adapter_than_the_reported_one_is_noticed(finished, capsys):
    file = finished / "adapter/adapter_model.safetensors"
    kept = file.read_bytes()
    save_file({name: 3 * value for name, value in load_file(file).items()}, file)
    try:
        assert main(["reload", str(finished)]) == 1
    finally:
        file.write_bytes(kept)
    assert "the run reported a loss of" in capsys.readouterr().err
