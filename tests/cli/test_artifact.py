"""The adapter's folder as an artefact: its card, a stock load, a merged model, and a push to a hub."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import Result

from echelon.training.model import SHIPPED
from tests.cli.commands import write

Cli = Callable[..., Result]
TEXT = "def parse(line):\n    return line.split()\n" * 40


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base that is a folder of this machine, with its tokenizer."""
    folder = tmp_path / "base"
    AutoModelForCausalLM.from_pretrained(SHIPPED["echelon:micro"]).save_pretrained(folder)
    AutoTokenizer.from_pretrained(SHIPPED["echelon:tiny"]).save_pretrained(folder)
    return folder


def trained(cli: Cli, folder: Path, model: str) -> Path:
    data = folder / "secret-place"
    data.mkdir()
    for number in range(8):
        (data / f"{number}.txt").write_text(TEXT)
    one = {"source": f"text:{data}/*.txt"}
    fields: dict[str, Any] = {
        "model": {"model": model},
        "adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]},
        "training": {"batch_size": 1, "sequence_length": 16},
        "boundaries": [{"name": name, "devices": 3, "data": one} for name in ("a", "b")],
        "learner": {"kind": "lora"},
        "sync": {"steps": 1, "windows": 1, "report_loss": False},
        "budget": {"commits": 1},
    }
    result = cli("run", write(folder, **fields), "--out", folder / "out", "--quiet")
    assert result.exit_code == 0, result.output
    return folder / "out"


def metadata(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


@pytest.mark.slow
def test_an_adapter_of_a_local_base_loads_by_its_folder_alone_and_merges(
    cli: Cli, tmp_path: Path, base: Path
) -> None:
    out = trained(cli, tmp_path, str(base))
    card = (out / "adapter" / "README.md").read_text()
    summary = json.loads((out / "summary.json").read_text())
    assert metadata(card)["echelon"]["genesis_sha256"] == summary["genesis_sha256"]
    assert "base_model" not in metadata(card)
    assert f"`{base}`" in card
    assert "a folder of the machine where the run was made" in card
    assert "secret-place" not in card
    assert (
        f"| overall | {summary['base_loss']['overall']:.4f} | {summary['final_loss']['overall']:.4f} |"
        in card
    )
    assert f"echelon audit verify LOG --genesis {summary['genesis_sha256']}" in card
    assert cli("audit", "verify", out, "--genesis", summary["genesis_sha256"]).exit_code == 0

    adapted = AutoPeftModelForCausalLM.from_pretrained(out / "adapter").eval()
    merged_into = tmp_path / "merged"
    merged = cli("export", out, "--merge", "--out", merged_into)
    assert merged.exit_code == 0, merged.output
    whole = AutoModelForCausalLM.from_pretrained(merged_into).eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(merged_into).encode(TEXT[:60])])
    with torch.no_grad():
        expected, found = adapted(input_ids=ids).logits, whole(input_ids=ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Without the run folder the log says enough, where the base is named.
    assert cli("audit", "export", out, "--out", tmp_path / "log").exit_code == 0
    again = cli("export", tmp_path / "log", "--merge", "--base", base, "--out", tmp_path / "again")
    assert again.exit_code == 0, again.output
    files = [(folder / "model.safetensors").read_bytes() for folder in (merged_into, tmp_path / "again")]
    assert files[0] == files[1]
    other = cli("export", out, "--merge", "--base", "echelon:tiny", "--out", tmp_path / "other")
    assert other.exit_code == 2
    assert "other weights than the base" in " ".join(other.stderr.split())


@pytest.mark.slow
def test_a_card_of_another_commit_states_no_losses(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("run", write(tmp_path), "--out", out, "--quiet").exit_code == 0
    for commit, states in (("1", False), ("final", True)):
        folder = tmp_path / commit
        assert cli("export", out, "--commit", commit, "--out", folder).exit_code == 0
        card = (folder / "README.md").read_text()
        assert ("## Losses" in card) is states
        assert f"--commit {3 if states else 1} " in card
        digest = re.search(r"vector has SHA-256 `([0-9a-f]{64})`", card)
        assert digest is not None
        assert metadata(card)["echelon"]["adapter_sha256"] == digest[1]


@pytest.mark.slow
def test_a_card_in_the_folder_names_the_run_that_a_new_one_starts_from(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert cli("run", write(tmp_path), "--out", out, "--quiet").exit_code == 0
    genesis = json.loads((out / "summary.json").read_text())["genesis_sha256"]
    second = cli("run", write(tmp_path), "--out", tmp_path / "second", "--from", out / "adapter", "--json")
    assert second.exit_code == 0, second.output
    assert json.loads(second.stdout)["parent"]["genesis_sha256"] == genesis
    assert f"of genesis `{genesis}`" in (tmp_path / "second" / "adapter" / "README.md").read_text()
    assert cli("audit", "verify", tmp_path / "second", "--parent", out).exit_code == 0


@pytest.mark.slow
def test_an_adapter_of_the_shipped_base_says_how_it_loads(cli: Cli, tmp_path: Path) -> None:
    out = trained(cli, tmp_path, "echelon:micro")
    assert 'echelon.base_folder("echelon:micro")' in (out / "adapter" / "README.md").read_text()


# ---- a hub ----------------------------------------


class Hub(ThreadingHTTPServer):
    """The endpoints of a model hub that a push needs; keeps what was committed."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.tokens: set[str] = set()
        self.refuse = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answers(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.server.refuse:
            self._answer({"error": "not yours"}, 403)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": f"{self.server.url}/org/small", "name": "org/small", "id": "org/small"})
        elif self.path == "/api/validate-yaml":
            yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            self._answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/org/small/preupload/main":
            names = [one["path"] for one in json.loads(body)["files"]]
            self._answer(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        elif self.path == "/api/models/org/small/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": f"{self.server.url}/org/small/commit/abc", "commitOid": "abc", "success": True}
            )
        else:
            self._answer({"error": self.path}, 404)

    def _answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: a test's output is its own."""


@contextmanager
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
def test_a_push_uploads_the_adapter_and_its_card_and_nothing_else(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    out = tmp_path / "out"
    assert cli("run", write(tmp_path), "--out", out, "--quiet").exit_code == 0
    with hub() as server:
        pushed = cli("push", "org/small", out, "--private", "--endpoint", server.url, "--json")
        assert pushed.exit_code == 0, pushed.output
        assert json.loads(pushed.stdout)["commit"].endswith("/commit/abc")
        assert server.created[0]["organization"] == "org"
        assert server.created[0]["visibility"] == "private"
        assert server.files == {path.name: path.read_bytes() for path in (out / "adapter").iterdir()}
        assert server.tokens == {"Bearer hf_test"}
        server.refuse = True
        refused = cli("push", "org/small", out, "--endpoint", server.url)
        assert refused.exit_code == 1
        assert "org/small was not pushed" in " ".join(refused.stderr.split())
    gone = cli("push", "org/small", out, "--endpoint", server.url)
    assert gone.exit_code == 1
    assert "org/small was not pushed" in " ".join(gone.stderr.split())


@pytest.mark.slow
def test_what_cannot_be_pushed_is_said(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    empty = cli("push", "org/small", tmp_path)
    assert empty.exit_code == 2
    assert "has no README.md" in " ".join(empty.stderr.split())
    assert cli("run", write(tmp_path), "--out", tmp_path / "out", "--quiet").exit_code == 0
    named = cli("push", "org/small/more", tmp_path / "out", "--endpoint", "http://127.0.0.1:9")
    assert named.exit_code == 2
    assert "write OWNER/NAME" in " ".join(named.stderr.split())
