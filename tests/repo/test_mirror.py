"""Tests of the pure packages stand where their modules stand: `rounds/aggregator/window.py` has a test_window.py there.

A module that is tested elsewhere is in mirror.toml, with the file. A line that is not needed any more is refused: the
list only gets shorter.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PURE = ("adapters", "audit", "elsa", "laws", "messages", "outer", "pace", "rounds", "secagg")
ELSEWHERE: dict[str, str] = tomllib.loads(Path(__file__).with_name("mirror.toml").read_text("utf-8"))
MODULES = sorted(
    path.relative_to(ROOT / "echelon")
    for package in PURE
    for path in (ROOT / "echelon" / package).rglob("*.py")
    if path.name != "__init__.py"
)


def mirror(module: Path) -> Path:
    """Where the tests of a module belong."""
    return Path("tests") / module.with_name(f"test_{module.name}")


def test_there_are_modules() -> None:
    assert len(MODULES) > 80


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_has_its_tests_beside_it_or_says_where_they_are(module: Path) -> None:
    place = mirror(module)
    if not (ROOT / place).exists():
        assert str(module) in ELSEWHERE, (
            f"write {place}, or name in tests/repo/mirror.toml where it is tested"
        )


def test_the_list_of_what_is_tested_elsewhere_is_true_and_no_longer_than_needed() -> None:
    known = {str(module) for module in MODULES}
    gone = [name for name in ELSEWHERE if name not in known]
    mirrored = [name for name in ELSEWHERE if (ROOT / mirror(Path(name))).exists()]
    lost = [place for place in ELSEWHERE.values() if not (ROOT / place).is_file()]
    assert (gone, mirrored, lost) == ([], [], [])
