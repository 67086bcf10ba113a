"""The run file: what the committed documents and examples say about it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from pydantic import BaseModel

from echelon.config.run import RunSettings, dump, load, parse
from echelon.errors import ConfigError
from echelon.provision.manifest_from_settings import secure_terms

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
RUN_FILES = [path for path in EXAMPLES if path.name != "split-profile.yaml"]  # that one is for `split plan`


@pytest.fixture(scope="module")
def table() -> ModuleType:
    spec = importlib.util.spec_from_file_location("settings_table", ROOT / "scripts" / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_committed_table_of_settings_is_current(table: ModuleType) -> None:
    committed = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert committed == table.render(), "run `just docs-settings`"


def leaves(model: type[BaseModel], value: object, path: str = "") -> set[str]:
    """Paths of all settings, as a dumped run file has them."""
    found: set[str] = set()
    if isinstance(value, dict):
        for name, inner in value.items():
            place = f"{path}.{name}" if path else name
            found |= leaves(model, inner, place) if isinstance(inner, dict) else {place}
            if isinstance(inner, list) and inner and isinstance(inner[0], dict):
                found = found - {place} | leaves(model, inner[0], place + "[]")
    return found


def test_every_setting_has_one_row(table: ModuleType) -> None:
    rows = [row.path for section in table.sections() for row in section.rows]
    assert len(rows) == len(set(rows))
    settings = load(ROOT / "examples" / "virtual.yaml")
    missing = leaves(RunSettings, yaml.safe_load(dump(settings))) - set(rows)
    assert not missing


def test_defaults_in_the_table_are_those_in_force(table: ModuleType) -> None:
    text = table.render()
    assert "10^21" in text
    assert re.search(r"^\| `sync\.steps` \| integer, ≥ 1, ≤ 100000 \| `10` \|", text, re.MULTILINE)
    assert re.search(r"^\| `secure\.k_min` \| integer, ≥ 2, ≤ 200 \| `3` \|", text, re.MULTILINE)
    assert re.search(r"^\| `boundaries\[\]\.data\.source` \| text \| \*\*required\*\* \|", text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_examples_are_valid(path: Path) -> None:
    settings = load(path)
    secure_terms(settings)
    assert parse(yaml.safe_load(dump(settings)), "dumped") == settings


def test_examples_are_all_there() -> None:
    assert {"quickstart.yaml", "own-text.yaml", "llama-1b.yaml", "virtual.yaml", "elsa.yaml"} <= {
        path.name for path in EXAMPLES
    }
    readme = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme for path in EXAMPLES)


def test_sample_data_of_the_examples_is_there() -> None:
    for path in RUN_FILES:
        for boundary in load(path).boundaries:
            pattern = boundary.data.location
            if boundary.data.kind in ("text", "jsonl") and pattern.startswith("examples/"):
                assert list(ROOT.glob(pattern)), pattern


@pytest.mark.parametrize(
    ("edges", "complaint"),
    [
        ([{"id": "x", "most": 2}, {"id": "y"}], "x takes 2 devices at most, .* = 3: raise `most`"),
        (
            [{"id": "x", "most": 3}, {"id": "y", "most": 4}],
            "8 devices need an edge, and the edges take 7 at most",
        ),
        ([{"id": "x"}, {"id": "y"}, {"id": "z"}], "8 devices on 3 edges are fewer than .* = 3 each"),
    ],
)
def test_edges_that_could_not_serve_their_devices_are_refused(edges: list[object], complaint: str) -> None:
    boundary = {"name": "a", "devices": 8, "data": {"source": "text:unused"}, "split": {"edges": edges}}
    with pytest.raises(ConfigError, match=complaint):
        parse({"name": "x", "boundaries": [boundary], "budget": {"commits": 1}}, "file.yaml")


def test_every_problem_of_a_file_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        parse({"name": "x", "boundaries": [], "budget": {"commits": 0}, "colour": "red"}, "file.yaml")
    message = str(raised.value)
    assert message.startswith("file.yaml:\n")
    for words in (
        "boundaries: ",
        "budget.commits: ",
        "colour is no setting; `echelon settings` lists all of them",
    ):
        assert words in message
