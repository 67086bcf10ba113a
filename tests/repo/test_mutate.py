"""scripts/mutate.py against a small project of its own: each verdict is reachable, and none by mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts import mutate
from scripts.mutate import Mutation, MutationError, Verdict, mutated

SOURCE = """\
def admit(n: int, floor: int) -> bool:
    # n >= floor: the privacy floor
    if n < floor:
        return False
    return n < 1000
"""

TESTS = """\
from pkg.gate import admit

def test_floor():
    assert not admit(2, 3)

def test_above_floor():
    assert admit(3, 3)

def test_red_from_the_start():
    assert False
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # it needs none, and starts faster
    root = tmp_path / "project"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "gate.py").write_text(SOURCE)
    (root / "test_gate.py").write_text(TESTS)
    (root / ".venv").mkdir()
    (root / ".venv" / "huge").write_text("not to be copied")
    return root


def mutation(find: str, replace: str, *tests: str, regex: bool = False) -> Mutation:
    tests = tests or ("test_gate.py::test_floor",)
    return Mutation("m", "pkg/gate.py", find, replace, tests, "because", regex)


def only(outcomes: list[mutate.Outcome]) -> mutate.Outcome:
    [outcome] = outcomes
    return outcome


def test_a_guarded_condition_is_killed_and_the_tree_stays_as_it_was(project: Path) -> None:
    outcome = only(mutate.run([mutation("if n < floor:", "if False:")], project))
    assert outcome.verdict is Verdict.KILLED
    assert "test_floor" in outcome.detail
    assert (project / "pkg" / "gate.py").read_text() == SOURCE


def test_an_unguarded_condition_survives(project: Path) -> None:
    outcome = only(mutate.run([mutation("return n < 1000", "return True")], project))
    assert outcome.verdict is Verdict.SURVIVED


@pytest.mark.slow
def test_the_first_mutation_is_undone_before_the_second(project: Path) -> None:
    killed = mutation("if n < floor:", "if False:")
    survivor = mutation("return n < 1000", "return True")
    verdicts = [o.verdict for o in mutate.run([killed, survivor], project)]
    assert verdicts == [Verdict.KILLED, Verdict.SURVIVED]


def test_a_line_that_moved_away_is_reported(project: Path) -> None:
    assert only(mutate.run([mutation("if n <= floor:", "if False:")], project)).verdict is Verdict.NO_MATCH
    gone = Mutation("m", "pkg/gone.py", "a", "b", ("test_gate.py",), "because")
    assert only(mutate.run([gone], project)).verdict is Verdict.NO_MATCH


def test_tests_that_were_red_before_prove_nothing(project: Path) -> None:
    asked = mutation("if n < floor:", "if False:", "test_gate.py::test_red_from_the_start")
    assert only(mutate.run([asked], project)).verdict is Verdict.NOT_GREEN


def test_tests_that_do_not_exist_prove_nothing(project: Path) -> None:
    asked = mutation("if n < floor:", "if False:", "test_gate.py::test_gone")
    assert only(mutate.run([asked], project)).verdict is Verdict.NOT_GREEN


def test_a_module_that_cannot_be_imported_any_more_is_no_kill(project: Path) -> None:
    asked = mutation("def admit(n: int, floor: int) -> bool:", "def admit(n: gone, floor: int) -> bool:")
    assert only(mutate.run([asked], project)).verdict is Verdict.UNDECIDED


def test_regex_expands_groups() -> None:
    result = mutated(SOURCE, mutation(r"if (\w+) < (\w+):", r"if \2 < \1:", regex=True))
    assert "if floor < n:" in result


@pytest.mark.parametrize(
    ("find", "replace", "says"),
    [
        ("floor", "roof", "4 times"),
        ("return False", "return False", "changes nothing"),
        ("return False", "return (", "not Python"),
        ("# n >= floor: the privacy floor", "# n", "comment"),
    ],
)
def test_a_mutation_that_breaks_nothing_is_refused(find: str, replace: str, says: str) -> None:
    with pytest.raises(MutationError, match=says):
        mutated(SOURCE, mutation(find, replace))


@pytest.mark.slow
def test_exit_status(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    killed = mutation("if n < floor:", "if False:")
    survivor = mutation("return n < 1000", "return True")
    assert mutate.main([], [killed], project) == 0
    assert "1 of 1" in capsys.readouterr().out
    assert mutate.main([], [killed, survivor], project) == 1
    assert mutate.main(["no such name"], [killed], project) == 2
    assert mutate.main(["--list"], [killed], project) == 0
    assert "because" in capsys.readouterr().out


@pytest.mark.slow
def test_names_are_unique_and_every_entry_fits_the_source() -> None:
    names = [m.name for m in mutate.MUTATIONS]
    assert len(names) == len(set(names))
    for entry in mutate.MUTATIONS:
        mutated((mutate.ROOT / entry.file).read_text(encoding="utf-8"), entry)
        for test in entry.tests:
            assert (mutate.ROOT / test.split("::")[0]).exists(), f"{entry.name}: there is no {test}"
