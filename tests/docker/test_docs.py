"""docs/deployment.md: every command in it is one, every file it names is there, every metric is served.

Which test runs which of its commands: tests/repo/test_documented.py.
"""

from __future__ import annotations

import re
import shlex
from itertools import pairwise

import click
import pytest
import typer

from echelon.cli.app import app
from echelon.services.config import ServiceConfig
from tests.docker.composed import GPU, MAIN, MONITORING, ROOT, SPLIT, load
from tests.docker.initialiser import init
from tests.docker.test_monitoring import EXPORTED
from tests.docs.blocks import blocks

TEXT = (ROOT / "docs" / "deployment.md").read_text("utf-8")
SPANS = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL))
BLOCKS = [command for block in blocks("docs/deployment.md") for command in block.commands()]
COMMANDS = sorted({*BLOCKS, *SPANS})


def words_after(prefix: str) -> list[list[str]]:
    return [shlex.split(line)[1:] for line in COMMANDS if re.match(rf"{prefix} [a-z]", line)]


@pytest.mark.slow
@pytest.mark.parametrize("words", words_after("echelon"), ids=" ".join)
def test_every_command_of_ours_is_one(words: list[str]) -> None:
    command: object = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "get_command"):
        name = rest.pop(0)
        command = command.get_command(click.Context(command), name)  # type: ignore[arg-type]
        assert command is not None, name
        if not rest:
            return  # named without what it needs, in running text
    command.make_context(words[0], rest)  # type: ignore[attr-defined]


@pytest.mark.parametrize("words", words_after("docker compose"), ids=" ".join)
def test_every_compose_command_names_files_and_services_that_are_there(words: list[str]) -> None:
    known = {*load(MAIN, SPLIT).services, *load(MONITORING).services}
    for before, word in pairwise(words):
        if before == "-f":
            assert word in {f"docker/{name}" for name in (MAIN, MONITORING, GPU, SPLIT)}
        if before == "--scale":
            assert word.partition("=")[0] in known
    if "run" in words and "--rm" in words:
        at = words.index("--rm") + 1
        assert words[at] in known
        if words[at] == "init":
            mine = words[at + 1 :]
            assert mine == [*load().services["init"].command, "--renew"]
    if words[-2:-1] == ["restart"] or "logs" in words:
        assert words[-1] in known


def test_what_no_test_runs_is_named_on_the_page() -> None:
    _, _, validated = TEXT.partition("## What was validated, and how")
    for what in ("compose.gpu.yaml", "openssl x509"):
        assert what in validated, what


def test_recipes_are_there() -> None:
    recipes = set(re.findall(r"^([a-z-]+)[^:\n]*:", (ROOT / "justfile").read_text(), re.MULTILINE))
    used = {line.split()[1] for line in COMMANDS if line.startswith("./justw ")}
    assert used
    assert used <= recipes


def test_files_are_there() -> None:
    for name in re.findall(r"`((?:docker|tests|examples|docs)/[\w./-]+)`", TEXT):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([\w./-]+)\)", TEXT):
        assert (ROOT / "docs" / name).exists(), name


def test_every_metric_is_served() -> None:
    found = set(re.findall(r"`(echelon_[a-z_]+)", TEXT))
    assert len(found) > 10
    histograms = {name.removesuffix("_bucket") for name in EXPORTED if name.endswith("_bucket")}
    assert found <= EXPORTED.keys() | histograms


def test_numbers_are_those_of_the_code() -> None:
    from echelon.provision.pki import CA_DAYS, LEAF_DAYS

    assert CA_DAYS == 3650
    assert f"certificates for {LEAF_DAYS} days" in TEXT
    assert f"seconds ({ServiceConfig.model_fields['shutdown'].default:.0f})" in TEXT
    assert init.OWNER_ID == 1000
