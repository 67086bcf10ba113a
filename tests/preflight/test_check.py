"""`echelon check`: tables of what there is, and everything that is wrong in one list, each with its place."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from echelon.config.run import RunSettings, parse
from echelon.preflight import check as module
from echelon.preflight import memory
from echelon.preflight.check import check
from echelon.preflight.memory import Shape, estimate
from tests.cli.commands import write

Cli = Callable[..., Result]
CASES = Path(__file__).resolve().parents[1] / "cases"
PLAIN = f"jsonl:{CASES / 'plain.jsonl'}"


def fields(**changes: Any) -> dict[str, Any]:
    return {
        "name": "t",
        "clock": "virtual",
        "model": {"model": "echelon:micro"},
        "training": {"batch_size": 2, "sequence_length": 32},
        "boundaries": [
            {"name": name, "devices": 3, "data": {"source": PLAIN, "max_validation_tokens": 512}}
            for name in "ab"
        ],
        "budget": {"commits": 1},
        "compute": {"workers": 1},
    } | changes


def settings(**changes: Any) -> RunSettings:
    return parse(fields(**changes), "run.yaml")


def file(folder: Path, **changes: Any) -> Path:
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(fields(**changes)))
    return path


def faults(**changes: Any) -> list[str]:
    return [str(fault) for fault in check(settings(**changes)).faults]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections that were tried; none succeeds."""
    tried: list[Any] = []

    def refuse(_socket: socket.socket, address: Any) -> None:
        tried.append(address)
        raise OSError("no network here")

    def resolve(*arguments: Any, **_: Any) -> Any:
        tried.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return tried


def test_a_good_run_file(cli: Cli, tmp_path: Path) -> None:
    found = cli("check", file(tmp_path))
    assert found.exit_code == 0, found.output
    for text in ("a ", "b ", "40", "echelon:micro", "q_proj ×2", "about", "good"):
        assert text in found.stdout
    assert all(len(line) <= 80 for line in found.stdout.splitlines())
    assert list(tmp_path.iterdir()) == [tmp_path / "run.yaml"]


def test_as_json(cli: Cli, tmp_path: Path) -> None:
    found = cli("check", file(tmp_path), "--json")
    document = json.loads(found.stdout)
    assert document["good"]
    assert document["boundaries"]["a"]["documents"] == 40
    assert document["boundaries"]["a"]["exact"]
    assert document["model"]["positions"] == 512
    assert document["model"]["adapted"]["q_proj"] == 2


def test_everything_that_is_wrong_is_in_one_list(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"text": "a"}\n{"txt": 1}\nno\n')
    sources = [
        f"jsonl:{tmp_path / 'x.jsonl'}",
        f"jsonl:{CASES / 'roles' / 'roles.jsonl'}",
        "csv:/nowhere/*.csv",
    ]
    chat = {"messages_field": "messages"}
    boundaries = [
        {"name": name, "devices": 3, "data": {"source": source} | (chat if name == "b" else {})}
        for name, source in zip("abc", sources, strict=True)
    ]
    path = file(
        tmp_path,
        boundaries=boundaries,
        training={"sequence_length": 4096},
        adapter={"targets": ["no_such_layer"]},
        sync={"outer": {"rule": "nowhere:Rule"}},
    )
    brokers = tmp_path / "brokers.yaml"
    brokers.write_text(
        yaml.safe_dump(
            {
                "exchange": {"url": "kafka://x.example.org"},
                "boundaries": {"a": {"url": "kafka://a.example.org:1"}, "d": {"url": "sqlite:////d"}},
            }
        )
    )
    found = cli("check", path, "--brokers", brokers)
    assert found.exit_code == 2
    for sentence in (
        "rules: rule nowhere:Rule",
        "brokers: exchange.url: bus 'kafka://x.example.org': 'x.example.org' is no address",
        "brokers: boundaries.a.url: bus 'kafka://a.example.org:1': without TLS only a broker on this machine",
        "has no broker of b, c",
        "names d, which the run file does not",
        "model: training.sequence_length 4096 is more than the model's 512 positions",
        "model: adapter target",
        "boundary a: ",
        "x.jsonl:2 has no field 'text'",
        "x.jsonl:3 is not JSON",
        "boundary b: ",
        "30 of 40 documents would be left out",
        "boundary c: data source 'csv:/nowhere/*.csv' matches no file",
    ):
        assert sentence in found.stderr, sentence
    assert "11 things are wrong" in found.stderr


def test_run_lists_everything_too_and_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("no\nneither\n")
    boundary = {"name": "a", "devices": 3, "data": {"source": f"jsonl:{tmp_path / 'x.jsonl'}"}}
    out = tmp_path / "out"
    run = cli("run", file(tmp_path, boundaries=[boundary], training={"sequence_length": 4096}), "--out", out)
    assert run.exit_code == 2
    for sentence in ("3 things are wrong", "positions", "x.jsonl:1", "x.jsonl:2"):
        assert sentence in run.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "name",
    [
        "./qwen", "~/no/such/model", "/models/qwen #2", "tests/no-such-model", "a/b/c", "models/x.gguf", "qwen #2",
        "no model", "x/y.safetensors", "-x/y", "a..b",
    ],
)  # fmt: skip
def test_a_local_path_that_does_not_exist_asks_no_hub(name: str, offline: list[Any]) -> None:
    ((fault),) = faults(model={"model": name})[:1]
    assert "is not a folder" in fault
    assert offline == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", ["hf:./rows", "hf:/data/rows", "hf:~/rows.jsonl", "hf:rows.parquet", "hf:tests/rows"]
)
def test_local_data_that_does_not_exist_asks_no_hub(source: str, offline: list[Any]) -> None:
    boundary = {"name": "a", "devices": 3, "data": {"source": source}}
    (fault,) = faults(boundaries=[boundary])
    assert "check the path" in fault
    assert offline == []


def test_a_pointer_in_place_of_weights() -> None:
    found = faults(model={"model": str(CASES / "lfs-weights")})
    assert "model.safetensors are a Git LFS pointer and no weights: fetch them (git lfs pull)" in found[0]


@pytest.mark.parametrize("missing", ["config.json", "tokenizer"])
def test_files_that_a_model_lacks(tmp_path: Path, missing: str, model_folder: Callable[[str], Path]) -> None:
    folder = Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))
    for path in folder.glob(f"{missing}*"):
        path.unlink()
    found = faults(model={"model": str(folder)})
    assert any("has no " + missing in fault for fault in found)
    assert len(found) == len(set(found))


def test_weights_are_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from echelon.preflight import model

    loaded, made = model.load_pretrained, []

    def watched(*arguments: Any, **named: Any) -> Any:
        made.append(loaded(*arguments, **named))
        return made[-1]

    monkeypatch.setattr(model, "load_pretrained", watched)
    assert faults() == []
    (found,) = made
    assert {parameter.device.type for parameter in found.model.parameters()} == {"meta"}


def test_more_memory_than_there_is_gives_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available", lambda: 1000)
    (warning,) = check(settings()).warnings
    assert "lower training.batch_size" in warning
    monkeypatch.setattr(module, "available", lambda: None)
    assert check(settings()).warnings == []


def test_the_formula_of_memory() -> None:
    run = settings(training={"batch_size": 3, "sequence_length": 7})
    shape = Shape(parameters=1000, adapter=10, hidden=16, layers=2, heads=4, outputs=50)
    needs = estimate(shape, run.model, run.training)
    assert needs.weights == 1000 * 4
    assert needs.adapter == 10 * 4 * 6
    assert needs.activations == 21 * 16 * 2 * 17 * 4 + 21 * 50 * 4 * 3
    bf16 = run.model.model_copy(update={"dtype": "bf16", "gradient_checkpointing": True})
    saving = estimate(shape, bf16, run.training)
    assert saving.weights == 1000 * 2
    assert saving.activations == 21 * 16 * 17 * 2 + 21 * 16 * 2 * 2 + 21 * 50 * 4 * 3
    eager = estimate(shape, run.model.model_copy(update={"attention": "eager"}), run.training)
    assert eager.activations == needs.activations + 2 * 5 * 4 * 7 * 21 * 2


def test_the_memory_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   4000 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    assert memory.available() == 4000 * 1024
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("5\n")
    assert memory.available() == 4000 * 1024
    (tmp_path / "memory.max").write_text("1005\n")
    assert memory.available() == 1000
    (tmp_path / "meminfo").unlink()
    (tmp_path / "memory.max").unlink()
    assert memory.available() is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("map_", "said"),
    [
        (CASES / "deploy_no_port.yaml", "'brokera.example.org' is no address; use kafka://host:port"),
        (CASES / "deploy_zone.yaml", "[fe80::1%eth0]:9094' is no address"),
        ("kafka://localhost:99999", "is no address"),
        ("kafka://10.0.0.1:9092", "without TLS only a broker on this machine"),
        ("kafka://localhost:1,localhost", "is no address"),
        ("kafka://localhost:1?timeout=never", "timeout is 'never'"),
        ("kafka://localhost:1?acks=all", "no others"),
    ],
)
def test_deploy_refuses_addresses_that_services_would(
    cli: Cli, tmp_path: Path, map_: Path | str, said: str
) -> None:
    if isinstance(map_, str):
        path = tmp_path / "brokers.yaml"
        path.write_text(
            yaml.safe_dump({"exchange": {"url": "kafka://localhost:7"}, "boundaries": {"a": {"url": map_}}})
        )
        map_ = path
    data = {"source": "text:elsewhere"}
    run = write(tmp_path, clock="real", boundaries=[{"name": "a", "devices": 4, "data": data}])
    found = cli("deploy", run, "--brokers", map_, "--out", tmp_path / "out")
    assert found.exit_code == 2, found.output
    assert said in found.stderr
    assert not (tmp_path / "out").exists()
