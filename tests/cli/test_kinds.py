"""Runs with another kind of adapter at the command line: checked, run, audited, exported, merged, gone on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.commands import write

Cli = Callable[..., Result]


def small(**adapter: Any) -> dict[str, Any]:
    data = {"source": "stdlib:json+email", "max_validation_tokens": 512, "max_documents": 12}
    return {
        "seed": 3,
        "model": {"model": "echelon:micro"},
        "adapter": {"rank": 2, "targets": ["q_proj"], **adapter},
        "boundaries": [{"name": "a", "devices": 3, "data": data}],
        "learner": {"kind": "lora"},
        "training": {"sequence_length": 32, "batch_size": 2},
        "budget": {"commits": 1},
        "sync": {"windows": 1, "steps": 2, "overlap": False, "eval_tokens": 64},
        "secure": {"bucket_tokens": 64},
    }


def words(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return " ".join(result.stderr.split())


def ran(cli: Cli, folder: Path, *more: str | Path, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    result = cli("run", write(folder, **changes), "--out", folder / "out", "--json", *more)
    assert result.exit_code == 0, result.output
    return dict(json.loads(result.stdout))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_an_adapter_of_a_kind_is_verified_exported_merged_and_gone_on_from(cli: Cli, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from echelon.training.model import SHIPPED

    first = ran(cli, tmp_path / "first", **small(kind="ravan", ravan={"heads": 2}))
    out = tmp_path / "first" / "out"
    assert cli("audit", "verify", out).exit_code == 0
    assert cli("export", out, "--out", tmp_path / "one").exit_code == 0
    assert cli("export", out, "--merge", "--out", tmp_path / "whole").exit_code == 0
    card = (tmp_path / "one" / "README.md").read_text()
    assert "ravan; its frozen bases are drawn from seed 3" in card
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / name).read_bytes() == (out / "adapter" / name).read_bytes()
    ids = torch.tensor([[5, 9, 200, 3, 77, 41]])
    base = AutoModelForCausalLM.from_pretrained(SHIPPED["echelon:micro"])
    with torch.no_grad():
        adapted = PeftModel.from_pretrained(base, tmp_path / "one").eval()(input_ids=ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "whole").eval()(input_ids=ids).logits
    torch.testing.assert_close(merged, adapted, rtol=0, atol=1e-4)

    same = small(kind="ravan", ravan={"heads": 2})
    second = ran(cli, tmp_path / "second", "--from", out, **same)
    assert second["base_loss"] == first["final_loss"]
    assert second["parent"]["adapter_sha256"] == first["adapter_sha256"]
    plain = ran(cli, tmp_path / "plain", "--from", tmp_path / "one", **small(rank=4, alpha=16.0))
    assert plain["base_loss"]["a"] == pytest.approx(first["final_loss"]["a"], rel=1e-5)
    assert plain["parent"]["genesis_sha256"] == ""
    audited = cli("audit", "verify", tmp_path / "plain" / "out", "--parent", tmp_path / "one")
    assert audited.exit_code == 0, audited.output
    for name, changes, said in (
        ("seed", same | {"seed": 4}, "set seed to 3 as it was there"),
        ("kind", small(), "start from that folder"),
    ):
        (tmp_path / name).mkdir()
        refused = cli(
            "run", write(tmp_path / name, **changes), "--out", tmp_path / name / "out", "--from", out
        )
        assert said in words(refused)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_device_exports_its_own_adapter_and_the_run_has_none_to_merge(cli: Cli, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from echelon.training.model import SHIPPED

    summary = ran(cli, tmp_path / "run", **small(kind="fedsa") | {"budget": {"commits": 2}})
    out = tmp_path / "run" / "out"
    assert cli("audit", "verify", out).exit_code == 0
    exported = cli("export", out, "--out", tmp_path / "run-a")
    assert "this adapter alone changes nothing of the base" in " ".join(exported.stdout.split())
    assert "B stays on each device and is 0 here" in (tmp_path / "run-a" / "README.md").read_text()
    own = cli("export", out, "--device", "a-0", "--out", tmp_path / "own")
    assert own.exit_code == 0, own.output
    assert "with the own part of a-0" in own.stdout
    assert sorted(path.name for path in (tmp_path / "own").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "own", *(tmp_path / "own").iterdir()))
    found = json.loads(cli("export", out, "--device", "a-1", "--out", tmp_path / "json", "--json").stdout)
    assert (found["device"], found["adapter_sha256"]) == ("a-1", summary["adapter_sha256"])
    merged = cli("export", out, "--device", "a-0", "--merge", "--out", tmp_path / "merged")
    assert merged.exit_code == 0, merged.output

    ids = torch.tensor([[5, 9, 200, 3, 77, 41]])

    def logits(folder: Path | None, whole: Path | None = None) -> Any:
        base = AutoModelForCausalLM.from_pretrained(whole or SHIPPED["echelon:micro"])
        model = base if folder is None else PeftModel.from_pretrained(base, folder)
        with torch.no_grad():
            return model.eval()(input_ids=ids).logits

    assert torch.equal(logits(tmp_path / "run-a"), logits(None))
    assert (logits(tmp_path / "own") - logits(None)).abs().max() > 1e-4
    assert not torch.equal(logits(tmp_path / "own"), logits(tmp_path / "json"))
    torch.testing.assert_close(logits(None, tmp_path / "merged"), logits(tmp_path / "own"), rtol=0, atol=1e-4)

    tasks = tmp_path / "tasks"
    tasks.mkdir()
    for arguments, said in (
        (("--merge",), "name a device, whose own adapter is merged then"),
        (("--device", "a-9"), "there is no state in"),
        (("--state", out / "state" / "a-0.db"), "goes with --device"),
        (("--device", "a-1", "--state", out / "state" / "a-0.db"), "belongs to another run or actor"),
    ):
        refused = cli("export", out, *arguments, "--out", tmp_path / "none")
        assert refused.exit_code != 0
        assert said in " ".join((refused.stderr + refused.stdout).split()), refused.output
    assert not (tmp_path / "none").exists()
    again = cli(
        "export", out, "--device", "a-0", "--state", out / "state" / "a-0.db", "--out", tmp_path / "two"
    )
    assert again.exit_code == 0
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "own" / name).read_bytes()
    assert "has no README.md" in words(cli("push", "some/where", tmp_path / "own"))


SPLIT: tuple[dict[str, Any], str] = (
    {
        "boundaries": [
            {
                "name": "a",
                "devices": 4,
                "data": {"source": "stdlib:json"},
                "split": {"edges": 1, "front": 1, "back": 1},
            }
        ]
    },
    "adapter.kind must be lora; parts of a model know no frozen bases and no parts of a device's own",
)
"""Split training, and why no kind but lora goes with it."""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"logging": {"samples": ["x"]}}, "that is A alone, which changes nothing: leave them out"),
        (
            {"boundaries": [{"name": "a", "devices": 3, "shards": 6, "data": {"source": "stdlib:json"}}]},
            "deals its data into shards, which move between devices",
        ),
        ({"learner": {"kind": "quadratic", "dim": 16}}, "is of models, and a quadratic learner has none"),
        ({"adapter": {"kind": "fedsa", "factors": "alternating"}}, "leave factors out"),
        SPLIT,
    ],
)
def test_what_a_part_that_stays_on_devices_does_not_go_with_is_said_by_check(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    result = cli("check", write(tmp_path, **small(kind="fedsa") | changes))
    assert result.exit_code != 0
    assert said in " ".join((result.stderr + result.stdout).split())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"learner": {"kind": "quadratic", "dim": 16}}, "is of models, and a quadratic learner has none"),
        SPLIT,
    ],
)
def test_what_a_kind_does_not_go_with_is_said_by_check(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    result = cli("check", write(tmp_path, **small(kind="fed-sb") | changes))
    assert result.exit_code != 0
    assert said in " ".join((result.stderr + result.stdout).split())
