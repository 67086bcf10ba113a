"""What the pages tell a reader to type, typed: from top to bottom, in a folder with the examples, made small."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import COMMANDS, PAGES, ROOT, blocks, elsewhere

SMALL = {
    "model": {"model": "echelon:micro"},
    "training": {"lr": 0.003, "batch_size": 2, "sequence_length": 16},
    "sync": {"steps": 1, "windows": 1},
    "budget": {"commits": 2},
    "compute": {"workers": 1},
    "logging": {},
}
"""Settings that make a run short."""
TOY = {"clock": "virtual", "learner": {"kind": "quadratic", "dim": 16}, "budget": {"commits": 6}}
"""Those of the quickstart: no model, and the commits that the pages speak of."""
LIMIT = 600
"""Seconds for one command, on a machine that does much else."""
ELSEWHERE = elsewhere()
RUN = "runs/quickstart"


def small(path: Path, **changes: object) -> None:
    """Write a run file anew, with what makes it short."""
    settings = yaml.safe_load(path.read_text("utf-8")) | SMALL | changes
    settings["boundaries"] = settings["boundaries"][:2]
    for boundary in settings["boundaries"]:
        boundary["data"]["max_validation_tokens"] = 512
        boundary["data"]["max_documents"] = 12
    path.write_text(yaml.safe_dump(settings))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples, and a finished run where `./justw demo` leaves one."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "examples", folder / "examples")
    small(folder / "examples" / "quickstart.yaml", **TOY)
    small(folder / "examples" / "own-text.yaml")
    shutil.copy(folder / "examples" / "own-text.yaml", folder / "CONFIG.yaml")
    small(folder / "CONFIG.yaml", name="wards")
    shutil.copy(folder / "CONFIG.yaml", folder / "MORE.yaml")
    small(folder / "MORE.yaml", name="more")
    assert type_(folder, "./justw demo") == 0
    return folder


@pytest.fixture
def reader(prepared: Path, tmp_path: Path) -> Path:
    shutil.copytree(prepared, tmp_path / "reader", symlinks=True)
    return tmp_path / "reader"


def filled(folder: Path, command: str) -> list[str]:
    """The words of a command, with what a reader puts in place of those in capitals."""
    if command == "./justw demo":  # what the recipe runs
        command = f"echelon run examples/quickstart.yaml --out {RUN}"
    summary = folder / RUN / "summary.json"
    genesis = json.loads(summary.read_text("utf-8"))["genesis_sha256"] if summary.exists() else ""
    fresh = str(len(list(folder.iterdir())))
    means = {
        "RUN": RUN,
        "SOURCE": RUN,
        "BOUNDARY_SOURCE": RUN,
        "DIGEST": genesis,
        "DIR": f"folder-{fresh}",
        "STATE": "audit.state",
        "FILE": "findings.sarif",
        "NAME": "web",
        "RUN/brokers/NAME.sqlite": f"{RUN}/brokers/web.sqlite",
    }
    return [means.get(word, word) for word in command.split()]


def type_(folder: Path, command: str) -> int:
    """Run a command in the folder; its exit code."""
    program, *rest = filled(folder, command)
    start = [sys.executable, "-m", "echelon"] if program == "echelon" else [sys.executable]
    done = subprocess.run(
        [*start, *rest],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=LIMIT,
    )
    print(f"$ {command}\n{done.stdout}{done.stderr}")
    return done.returncode


def mine(page: str) -> list[str]:
    """What of a page is run here: commands, and whole blocks of Python."""
    found: list[str] = []
    for block in blocks(page):
        told = [block.text] if block.language == "python" else block.commands()
        found += [one for one in told if not any(other.fits(page, one) for other in ELSEWHERE)]
    return found


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("page", [page for page in PAGES if mine(page)])
def test_what_a_page_says_works(page: str, reader: Path) -> None:
    for one in mine(page):
        if one == "./justw demo":
            shutil.rmtree(reader / RUN)
        if "\n" in one:
            (reader / "block.py").write_text(one)
            one = "python block.py"
        assert type_(reader, one) == 0, one


def test_the_demonstration_is_the_quickstart() -> None:
    recipe = (ROOT / "justfile").read_text("utf-8").partition("\ndemo *ARGS:\n")[2].partition("\n\n")[0]
    assert f"echelon run examples/quickstart.yaml --out {RUN}" in recipe


def test_most_pages_with_commands_are_here() -> None:
    with_commands = {p for p in PAGES if any(b.language in (COMMANDS, "python") for b in blocks(p))}
    assert len(with_commands) > 10
    assert {"README.md", "docs/getting-started.md", "docs/auditing.md"} <= {p for p in PAGES if mine(p)}
