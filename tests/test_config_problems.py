"""What a user reads about a run file that is wrong: the place, what is expected, and the name that was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from echelon.config.run import load, parse
from echelon.errors import ConfigError


def run_file(**changes: Any) -> dict[str, Any]:
    boundary = {"name": "a", "devices": 4, "data": {"source": "text:unused"}}
    return {"name": "x", "boundaries": [boundary], "budget": {"commits": 1}} | changes


def boundary(**changes: Any) -> dict[str, Any]:
    return run_file(boundaries=[run_file()["boundaries"][0] | changes])


@pytest.mark.parametrize(
    ("fields", "lines"),
    [
        (
            boundary(data={"source": "text:x", "partiton": "iid"}),
            ['boundaries "a" (0): data.partiton is no setting; did you mean partition?'],
        ),
        (
            boundary(data={"sorce": "text:x"}),
            ['boundaries "a" (0): data.sorce is no setting; did you mean source?'],
        ),
        (
            boundary(devices=[{"id": "d", "spede": 2}]),
            ['boundaries "a" (0): devices "d" (0): spede is no setting; did you mean speed?'],
        ),
        (
            boundary(devices=[{"speed": 2}]),
            ['boundaries "a" (0): devices.0.id: must be given; it has no default'],
        ),
        (
            boundary(devices="many"),
            ['boundaries "a" (0): devices: Input should be a valid integer, or be a list'],
        ),
        (
            boundary(devices=0),
            ['boundaries "a" (0): devices: Input should be greater than or equal to 1'],
        ),
        (
            run_file(secure={"staleness": {"rule": "linear"}}),
            [
                "secure.staleness.rule: Input should be 'constant', 'polynomial', 'hinge' or 'cosine', or be "
                "MODULE:CLASS, a class of your own"
            ],
        ),
        (
            run_file(secure={"staleness": {"rule": "a:B", "parameters": {"x": []}}}),
            ["secure.staleness.parameters.x: Input should be a valid integer, or be a text"],
        ),
        (
            boundary(name=False),
            ["boundaries.0.name: Input should be a text; what stands there reads as false: put it in quotes"],
        ),
        (
            run_file(name=7),
            ["name: Input should be a text; what stands there reads as 7: put it in quotes"],
        ),
        (run_file(name=[]), ["name: Input should be a text"]),
        (run_file(boundaries=[]), ["boundaries: Input should have at least 1 item, not 0"]),
        (run_file(sync=[]), ["sync: Input should be a map of settings"]),
        (
            run_file(sync={"stepz": 1, "outer": {"lrr": 1}}),
            [
                "sync.outer.lrr is no setting; did you mean lr?",
                "sync.stepz is no setting; did you mean steps?",
            ],
        ),
        (run_file(colour="red"), ["colour is no setting; `echelon settings` lists all of them"]),
        (
            {"name": "x", "boundaries": 3},
            ["boundaries: Input should be a list", "budget: must be given; it has no default"],
        ),
    ],
)
def test_each_problem_is_one_line_that_names_the_place(fields: dict[str, Any], lines: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        parse(fields, "file.yaml")
    assert sorted(str(raised.value).splitlines()[1:]) == sorted(f"  {line}" for line in lines)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("model.model=/models/qwen #2", "/models/qwen #2"),
        ("model.model=yes", "yes"),
        ("model.model=a: [b", "a: [b"),
        ("model.revision=#1", "#1"),
        ("model.revision=null", None),
        ("model.revision=", None),
        ("boundaries.0.data.source=text:/data/x #1.txt", "text:/data/x #1.txt"),
        ("sync.steps=3 # three", 3),
        ("boundaries.0.devices=[{id: p}, {id: q}, {id: r}]", ["p", "q", "r"]),
    ],
)
def test_the_command_line_gives_texts_as_they_stand_and_other_values_in_yaml(
    tmp_path: Path, change: str, value: object
) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_file()))
    found: Any = load(tmp_path / "run.yaml", (change,))
    for part in change.partition("=")[0].split("."):
        found = found[int(part)] if part.isdigit() else getattr(found, part)
    assert ([device.id for device in found] if isinstance(value, list) else found) == value


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\n\ttraining: 3\n", "that cannot start any token; indent with spaces (line 2, column 1)"),
        ("name: wards: x\n", "put a text that has a colon in quotes (line 1, column 12)"),
        ("name: [a\nb: 2\n", "(line 2, column 2)"),
        ("name: @x", "; put it in quotes (line 1, column 7)"),
        ("a: 1\n---\nb: 2", "; write one document, without lines of --- (line 2, column 1)"),
        ("name: *x", "found undefined alias 'x' (line 1, column 7)"),
        ("name: a\0b", "(position 7); save it as UTF-8 text"),
    ],
)
def test_a_file_that_is_no_yaml_is_refused_in_one_line(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as raised:
        load(tmp_path / "run.yaml")
    line = str(raised.value)
    assert line.startswith(f"run file {tmp_path / 'run.yaml'} is not YAML of settings: ")
    assert line.endswith(says)
    assert "\n" not in line


@pytest.mark.parametrize("text", ["a\0b", "a\udc80b"])
def test_a_text_of_the_command_line_that_no_file_could_hold_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(run_file()))
    with pytest.raises(ConfigError, match="is no text of settings"):
        load(tmp_path / "run.yaml", (f"model.model={text}",))


def test_a_file_with_very_many_problems_has_the_others_counted() -> None:
    with pytest.raises(ConfigError) as raised:
        parse(run_file(**{f"colour{number}": 1 for number in range(1000)}), "file.yaml")
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-1]) == (258, "  and 744 more")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"learner": {"kind": "quadratic"}}, "muon is of models, and a quadratic learner has none"),
        ({"adapter": {"kind": "fed-sb"}}, "adapter.kind fed-sb trains cores"),
        ({"adapter": {"kind": "ravan"}}, "adapter.kind ravan trains cores"),
    ],
)
def test_muon_needs_factors_to_move(fields: dict[str, Any], words: str) -> None:
    training = {"training": {"optimizer": "muon"}}
    assert parse(run_file(**training, adapter={"kind": "ffa"}), "x").training.momentum == 0.95
    with pytest.raises(ConfigError, match=words):
        parse(run_file(**training, **fields), "x")
