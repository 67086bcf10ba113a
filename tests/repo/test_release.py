"""A release is of one version everywhere, and its bill of materials has what is shipped and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from scripts.release import IMAGE_EXTRAS, cut, make, problems, shipped, untagged, version_of

ROOT = Path(__file__).resolve().parents[2]
PLACES = (
    "pyproject.toml",
    "CHANGELOG.md",
    "docker/Dockerfile",
    "docker/compose.yaml",
    "docker/compose.split.yaml",
    "docker/helm/echelon/Chart.yaml",
)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The files that say a version."""
    for name in PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_everything_has_the_version_of_pyproject() -> None:
    assert list(problems(ROOT, version_of())) == []


@pytest.mark.parametrize("name", PLACES[1:])
def test_another_version_is_named_with_its_place(tree: Path, name: str) -> None:
    version = version_of(tree)
    path = tree / name
    path.write_text(path.read_text().replace(version, "9.9.9"))
    found = list(problems(tree, version))
    assert found
    assert all(line.startswith(name) and "9.9.9" in line for line in found)


def test_a_section_without_a_date_and_a_version_that_is_none_are_named(tree: Path) -> None:
    version = version_of(tree)
    changes = tree / "CHANGELOG.md"
    changes.write_text(f"# Changes\n\n## {version}\n")
    assert ["has no date" in line for line in problems(tree, version)] == [True]
    assert "is not MAJOR.MINOR.PATCH" in next(problems(tree, "1.0"))


def test_a_release_needs_its_tag_and_a_clean_tree(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--message", "one")
    assert [line.partition(":")[0] for line in untagged(tmp_path, "1.2.3")] == ["HEAD has no tag v1.2.3"]
    git("tag", "--annotate", "v1.2.3", "--message", "release")
    assert list(untagged(tmp_path, "1.2.3")) == []
    (tmp_path / "file").write_text("2")
    assert list(untagged(tmp_path, "1.2.3")) == ["the tree has changes that are not committed"]


@pytest.mark.slow
def test_what_is_shipped_follows_from_what_the_package_asks_for() -> None:
    image = shipped("echelon", IMAGE_EXTRAS)
    assert {"echelon", "torch", "aiokafka", "confluent-kafka", "pydantic-core"} <= image
    assert not {"pytest", "ruff", "mypy", "hypothesis", "datasets"} & image
    assert "confluent-kafka" not in shipped("echelon")


def test_a_bill_of_materials_is_cut_to_what_is_shipped() -> None:
    bom = {
        "components": [{"name": name, "bom-ref": f"{name}==1"} for name in ("A.b", "pytest")],
        "dependencies": [
            {"ref": "root-component", "dependsOn": ["A.b==1", "pytest==1"]},
            {"ref": "A.b==1"},
            {"ref": "pytest==1", "dependsOn": ["A.b==1"]},
        ],
    }
    assert cut(bom, {"a-b"}) == {
        "components": [{"name": "A.b", "bom-ref": "A.b==1"}],
        "dependencies": [{"ref": "root-component", "dependsOn": ["A.b==1"]}, {"ref": "A.b==1"}],
    }


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_a_release_has_wheel_sdist_chart_and_bill_of_materials(tmp_path: Path) -> None:
    version = version_of()
    found = {path.name: path for path in make(ROOT, tmp_path / "dist", version)}
    assert set(found) == {
        f"echelon-{version}-py3-none-any.whl",
        f"echelon-{version}.tar.gz",
        f"echelon-{version}.cdx.json",
        f"echelon-chart-{version}.tgz",
    }
    bom = json.loads(found[f"echelon-{version}.cdx.json"].read_text())
    assert (bom["bomFormat"], bom["metadata"]["component"]["name"]) == ("CycloneDX", "echelon")
    names = {one["name"].lower() for one in bom["components"]}
    assert {"torch", "aiokafka", "confluent-kafka"} <= names
    assert "pytest" not in names
    assert all(one.get("version") for one in bom["components"])
    with zipfile.ZipFile(found[f"echelon-{version}-py3-none-any.whl"]) as wheel:
        assert "echelon/cli/app.py" in wheel.namelist()
    with tarfile.open(found[f"echelon-{version}.tar.gz"]) as sdist:
        assert f"echelon-{version}/topics/boundary.yaml" in sdist.getnames()
    with tarfile.open(found[f"echelon-chart-{version}.tgz"]) as chart:
        assert {"echelon/Chart.yaml", "echelon/values.yaml", "echelon/templates/services.yaml"} <= set(
            chart.getnames()
        )


def test_the_command_says_the_version() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "release.py"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{version_of()}\n"
