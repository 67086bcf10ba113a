"""The rules of the house: what breaks each, what keeps it, and that the list of exceptions is no longer than needed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "scripts" / "house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module
    spec.loader.exec_module(module)
    return module


house = _load()


def body(lines: int) -> str:
    return "def count():\n" + "    pass\n" * (lines - 1)


BRANCH = "    if x:\n        pass\n"
BRANCHES = "def choose(x):\n" + BRANCH * 20
DESCRIBED = '''
def move(a, b, *, c):
    """Move.

    Args:
        a, b: from where, and to where.
        c (int): how far.
    """
'''

BAD = {
    "function-lines": {"bench/a.py": body(71)},
    "module-lines": {"echelon/a.py": "x = 1\n" * 501},
    "signature": {"tools/a.py": "def put(a, b, c, d, e, f=0): ..."},
    "call": {"bench/a.py": "def put(*a): ...\ndef use():\n    return put(1, 2, 3, 4, 5, 6)"},
    "grade": {"scripts/a.py": BRANCHES},
    "args": {"echelon/a.py": DESCRIBED.replace("c (int)", "d (int)")},
    "class-name": {"echelon/a.py": "class Found: ...", "echelon/b.py": "class Found: ..."},
}

GOOD = {
    "function-lines": {"bench/a.py": body(70)},
    "module-lines": {"echelon/a.py": "x = 1\n" * 500, "bench/b.py": "x = 1\n" * 501},
    "signature": {"tools/a.py": "class Box:\n    def put(self, a, b, c, d, e, *, f=0): ..."},
    "call": {"bench/a.py": "def put(*a, f): ...\nput(1, 2, 3, 4, 5, f=6)\nprint(1, 2, 3, 4, 5, 6)"},
    "grade": {"scripts/a.py": BRANCHES.removesuffix(BRANCH)},
    "args": {"echelon/a.py": DESCRIBED, "bench/b.py": "def move(a, b, c): ..."},
    "class-name": {
        "echelon/a.py": "class Found: ...",
        "echelon/b.py": "class Other: ...",
        "bench/c.py": "class Found: ...",
    },
}


@pytest.mark.parametrize("rule", sorted(BAD))
def test_a_breach_is_named_with_its_file_and_line(rule: str) -> None:
    breaches = house.inspect(BAD[rule])
    assert {breach.rule for breach in breaches} == {rule}
    (path, *_) = BAD[rule]
    assert str(breaches[0]).startswith(f"{path}:")
    assert breaches[0].limit
    assert house.judge(breaches, {}) == [str(breach) for breach in breaches]


@pytest.mark.parametrize("rule", sorted(GOOD))
def test_what_keeps_to_the_limit_passes(rule: str) -> None:
    assert house.inspect(GOOD[rule]) == []


def test_every_rule_has_a_bad_snippet() -> None:
    assert len(BAD) == len(GOOD) == len(house.RULES)


def test_a_state_machine_may_have_fewer_lines() -> None:
    sources = {f"echelon/{package}/a.py": "x = 1\n" * 401 for package in ("rounds", "secagg", "bus")}
    assert [breach.place.path for breach in house.inspect(sources)] == [
        "echelon/rounds/a.py",
        "echelon/secagg/a.py",
    ]


def test_an_exception_excuses_its_place_and_no_other() -> None:
    breaches = house.inspect({"bench/a.py": body(71), "bench/b.py": body(71)})
    (wrong,) = house.judge(breaches, {"function-lines": {"bench/a.py:count": "a table"}})
    assert wrong.startswith("bench/b.py:1: count: 71 lines; at most 70")


@pytest.mark.parametrize(("lines", "reason"), [(70, "a table"), (71, " ")])
def test_an_exception_that_is_not_needed_or_has_no_reason_is_refused(lines: int, reason: str) -> None:
    breaches = house.inspect({"bench/a.py": body(lines)})
    (wrong,) = house.judge(breaches, {"function-lines": {"bench/a.py:count": reason}})
    assert "bench/a.py:count" in wrong


@pytest.mark.slow
def test_the_repository_keeps_the_rules_of_the_house() -> None:
    assert house.judge(house.inspect(house.read_sources(ROOT)), house.read_exceptions(ROOT)) == []
