"""`echelon split plan`: what it prints, and what it says when it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from echelon.config.profile import load_profile
from echelon.errors import ConfigError

Cli = Callable[..., Result]
EXAMPLE = Path(__file__).parents[2] / "examples" / "split-profile.yaml"

QWEN = {
    "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
    "num_key_value_heads": 2, "num_hidden_layers": 24, "vocab_size": 151936, "tie_word_embeddings": True,
}  # fmt: skip


@pytest.fixture
def qwen(tmp_path: Path) -> Path:
    folder = tmp_path / "qwen"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN))
    return folder


@pytest.mark.slow
def test_the_example_plans_every_class_of_the_shipped_model(cli: Cli) -> None:
    result = cli("split", "plan", "echelon:tiny", "--profile", EXAMPLE, "--json")
    assert result.exit_code == 0, result.output
    classes = json.loads(result.stdout)["classes"]
    assert set(classes) == {"workstation", "laptop", "phone"}
    for found in classes.values():
        split = found["chosen"]
        assert split["front"] + split["middle"] + split["back"] == 4
        assert split["micro_batch"] * split["micro_batches"] == 8
        memory = split["memory"]
        assert abs(memory["total"] - sum(v for k, v in memory.items() if k != "total")) <= 5


@pytest.mark.slow
def test_a_class_that_could_not_hold_the_model_gets_a_part_of_it(cli: Cli, qwen: Path) -> None:
    result = cli("split", "plan", qwen, "--profile", EXAMPLE, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["parameters"] == 494_032_768
    phone = document["classes"]["phone"]
    assert phone["whole_bytes"] > 2**30 > phone["chosen"]["memory"]["total"]
    assert phone["chosen"]["middle"] > 0
    assert document["classes"]["workstation"]["chosen"]["middle"] < phone["chosen"]["middle"]


@pytest.mark.slow
def test_the_table_names_the_cut_and_what_it_waits_for(cli: Cli, qwen: Path) -> None:
    result = cli("split", "plan", qwen, "--profile", EXAMPLE, "-n", "2")
    assert result.exit_code == 0, result.output
    assert "phone" in result.stdout
    assert "←" in result.stdout
    assert "does not fit" in result.stdout


@pytest.mark.slow
def test_a_class_that_is_too_small_is_told_so_and_the_others_are_planned(
    cli: Cli, qwen: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(EXAMPLE.read_text().replace("memory: 1 GiB", "memory: 128 MiB"))
    result = cli("split", "plan", qwen, "--profile", profile, "--json")
    assert result.exit_code == 1
    classes = json.loads(result.stdout)["classes"]
    assert "device class phone" in classes["phone"]["error"]
    assert "more memory" in classes["phone"]["error"]
    assert "chosen" in classes["laptop"]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (("uplink: 20 Mbit/s", "uplink: 20 parsecs"), 'classes "phone" (2): uplink'),
        (("memory: 1 GiB", "memory: -1"), 'classes "phone" (2): memory: Input should be greater than 0'),
        (("name: phone", "name: laptop"), "two classes are called 'laptop'"),
        (("dtype: bf16", "dtype: int3"), "work.dtype"),
        (("devices: 4", "device: 4"), "edge.device"),
    ],
)
def test_a_wrong_profile_names_the_setting(
    cli: Cli, tmp_path: Path, change: tuple[str, str], what: str
) -> None:
    text = EXAMPLE.read_text()
    assert change[0] in text
    profile = tmp_path / "profile.yaml"
    profile.write_text(text.replace(*change))
    result = cli("split", "plan", "echelon:tiny", "--profile", profile)
    assert result.exit_code == 2
    assert what in result.stderr


def test_a_model_that_cannot_be_cut_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": 100}))
    result = cli("split", "plan", tmp_path, "--profile", EXAMPLE)
    assert result.exit_code == 2
    assert "families that can" in result.stderr


def test_units_are_read(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        "edge: {flops: 1.5 TFLOP/s, memory: 2 GB}\n"
        "classes: [{name: a, memory: 512 MiB, flops: 2e10, uplink: 10 Mbit/s, downlink: 1 Gbit/s, rtt: 40 ms}]\n"
    )
    found = load_profile(profile)
    assert found.edge.flops == 1.5e12
    assert found.edge.memory == 2e9
    device = found.classes[0]
    assert (device.memory, device.flops, device.uplink, device.downlink) == (2**29, 2e10, 1e7, 1e9)
    assert device.rtt == pytest.approx(0.04)
    for wrong in ("[]", "edge: {", "classes: []", "\xff"):
        profile.write_text(wrong, encoding="latin-1")
        with pytest.raises(ConfigError):
            load_profile(profile)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_profile(tmp_path / "none.yaml")
