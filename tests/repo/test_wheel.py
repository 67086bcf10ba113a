"""What is installed: the package and its data, and nothing of the checkout's benchmarks, tools and tests."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEPT_OUT = (
    "contest",
    "bench",
    "tools",
    "tests",
    "testing",
    "fleet",
    "pom.xml",
    "artifacts.sha256",
    "server.properties",
)

pytestmark = pytest.mark.timeout(900)  # pip makes an environment to build in


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files of a wheel of this tree, without those about the wheel itself."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT)], check=True, timeout=800
    )
    (wheel,) = folder.glob("echelon-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return [name for name in archive.namelist() if ".dist-info/" not in name]


@pytest.mark.slow
def test_a_wheel_has_the_package_and_nothing_beside_it(installed: list[str]) -> None:
    assert {name.partition("/")[0] for name in installed} == {"echelon"}
    assert {
        "echelon/cli/app.py",
        "echelon/report/report.css",
        "echelon/report/templates/run.html",
        "echelon/bus/kafka.py",
    } <= set(installed)
    assert any(name.startswith("echelon/_topics/") for name in installed)


@pytest.mark.slow
@pytest.mark.parametrize("what", KEPT_OUT)
def test_a_wheel_has_nothing_of(what: str, installed: list[str]) -> None:
    assert [name for name in installed if what in Path(name).parts or what == Path(name).stem] == []


def test_nothing_that_is_installed_names_what_is_not() -> None:
    for path in (ROOT / "echelon").rglob("*.py"):
        text = path.read_text("utf-8")
        assert "import bench" not in text, path
        assert "from bench" not in text, path
        assert "import tools" not in text, path
        assert "from tools" not in text, path
