"""The wheel in an environment that has nothing else: the commands and the example of the Python API.

All of what the wheel requires is installed from the package index, torch with its libraries included: some gigabytes.
`ECHELON_EMPTY=/path/to/environment` takes one that has the wheel already.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from tests.docs.blocks import blocks

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(5400)]


def call(folder: Path, *words: str | Path) -> str:
    """Run a program in a folder outside of the checkout, with nothing of this environment; what it printed."""
    kept = {name: os.environ[name] for name in ("HOME", "TMPDIR", "LANG") if name in os.environ}
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env=kept | {"PATH": "/usr/bin:/bin", "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=3600,
    )
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel of this tree and what it requires, at the pinned versions."""
    if given := os.environ.get("ECHELON_EMPTY"):
        return Path(given) / "bin"
    folder = tmp_path_factory.mktemp("empty")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True)
    venv.create(folder / "venv", with_pip=True)
    (wheel,) = folder.glob("echelon-*.whl")
    pip[0] = str(folder / "venv" / "bin" / "python")
    subprocess.run(
        [*pip, "install", "--no-cache-dir", "--constraint", str(ROOT / "constraints.txt"), str(wheel)],
        check=True,
    )
    return folder / "venv" / "bin"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text of one's own and a run file."""
    folder = tmp_path_factory.mktemp("user")
    for name in ("north", "south"):
        (folder / name).mkdir()
        for at in range(8):
            (folder / name / f"{at}.txt").write_text(f"Ward {name}, note {at}: the pump was checked. " * 20)
    settings = {
        "name": "wards",
        "training": {"batch_size": 2, "sequence_length": 32},
        "boundaries": [
            {"name": name, "devices": 3, "data": {"source": f"text:{name}"}} for name in ("north", "south")
        ],
        "sync": {"steps": 2, "windows": 1},
        "budget": {"commits": 2},
    }
    (folder / "run.yaml").write_text(yaml.safe_dump(settings))
    return folder


def test_nothing_of_the_checkout_is_there(environment: Path, folder: Path) -> None:
    where = call(folder, environment / "python", "-c", "import echelon; print(echelon.__file__)")
    assert where.startswith(str(environment.parent))
    assert str(ROOT) not in call(folder, environment / "python", "-c", "import sys; print(sys.path)")


def test_check_run_and_audit(environment: Path, folder: Path) -> None:
    echelon = environment / "echelon"
    assert "good: nothing that a check can see is wrong" in call(folder, echelon, "check", "run.yaml")
    assert "sync.steps" in call(folder, echelon, "settings", "steps")
    call(folder, echelon, "run", "run.yaml", "--out", "runs/wards")
    assert "VERIFIED: run" in call(folder, echelon, "audit", "verify", "runs/wards")
    call(folder, echelon, "audit", "report", "runs/wards")
    call(folder, echelon, "export", "runs/wards", "--commit", "best", "--out", "best")
    assert (folder / "best" / "adapter_model.safetensors").is_file()


def test_the_examples_of_the_python_api(environment: Path, folder: Path) -> None:
    """Every example of the page, in its order: some read the runs of those before."""
    printed = []
    for number, block in enumerate(block for block in blocks("docs/python.md") if block.language == "python"):
        inside = "".join(f"    {line}\n" for line in ["import echelon", *block.text.splitlines()])
        waits = "await " in block.text or "async for" in block.text
        main = f"async def main():\n{inside}" if waits else f"def main():\n{inside}"
        start = "asyncio.run(main())" if waits else "main()"
        script = folder / f"example{number}.py"
        script.write_text(f'import asyncio\n\n\n{main}\n\nif __name__ == "__main__":\n    {start}\n')
        printed.append(call(folder, environment / "python", script))
    assert len(printed) > 3
    assert "commit 2: merged" in printed[0]
    assert printed[0].splitlines()[-1].startswith("True ")
    assert "largest weight" in printed[0]
