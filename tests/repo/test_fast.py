"""What `just test-fast` leaves out is slow: of every package some test is quick, and is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(path.parent.name for path in (ROOT / "echelon").glob("*/__init__.py"))
LEFT_OUT = ("pytest.mark.slow", "pytest.mark.kafka", "pytest.mark.nightly")


def quick(tree: ast.Module) -> bool:
    """Whether a test file has a test that is not left out; only those beside classes are looked at."""
    marked = [
        ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    if any(mark in value for value in marked for mark in LEFT_OUT):
        return False
    return any(
        isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not any(ast.unparse(mark).startswith(LEFT_OUT) for mark in node.decorator_list)
        for node in tree.body
    )


def imported(tree: ast.Module) -> set[str]:
    """The packages of ours that a file imports from."""
    modules = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[1] for name in modules if name.startswith("echelon.")}


@pytest.fixture(scope="module")
def tested() -> set[str]:
    packages: set[str] = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        tree = ast.parse(path.read_text("utf-8"))
        if quick(tree):
            packages |= imported(tree) | {path.relative_to(ROOT / "tests").parts[0]}
    return packages


def test_there_are_packages() -> None:
    assert len(PACKAGES) > 20


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_has_a_quick_test(package: str, tested: set[str]) -> None:
    assert package in tested, (
        f"no test of echelon.{package}, in tests/{package} or elsewhere, is quick enough for `just test-fast`"
    )


@pytest.mark.parametrize(
    "text",
    [
        "@pytest.mark.slow\ndef test_a(): ...",
        "@pytest.mark.kafka\n@pytest.mark.parametrize('a', [1])\nasync def test_a(): ...",
        "pytestmark = [pytest.mark.nightly]\ndef test_a(): ...",
        "def helper(): ...",
    ],
)
def test_what_is_left_out_is_not_quick(text: str) -> None:
    assert not quick(ast.parse(text))
    for name in ("slow", "kafka", "nightly"):
        text = text.replace(f"mark.{name}", "mark.usefixtures")
    assert quick(ast.parse(text.replace("helper", "test_b")))
