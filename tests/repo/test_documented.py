"""Blocks of code on the pages: each is run by a test or says what it needs, and each command of ours is one."""

from __future__ import annotations

import re
import shlex
from functools import cache

import click
import pytest
import typer
import yaml

from echelon.cli.app import app
from echelon.config.run import parse
from tests.docs.blocks import COMMANDS, FENCE, PAGES, ROOT, Block, Elsewhere, blocks, elsewhere

ELSEWHERE = elsewhere()
BLOCKS = [block for page in PAGES for block in blocks(page)]
LANGUAGES = {COMMANDS, "python", "text", "yaml"}
RUN_HERE = re.compile(r"echelon |python |\./justw demo$")
"""Commands that tests/docs/test_pages.py runs unless tests/docs/elsewhere.toml says otherwise."""


@cache
def program() -> click.Command:
    return typer.main.get_command(app)


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_every_block_is_of_a_kind_that_is_checked(block: Block) -> None:
    assert block.language in LANGUAGES, "name no language for commands, and text for what is printed"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == COMMANDS], ids=named)
def test_every_command_is_run_by_a_test_or_says_what_it_needs(block: Block) -> None:
    for command in block.commands():
        found = [one for one in ELSEWHERE if one.fits(block.page, command)]
        assert len(found) <= 1, f"tests/docs/elsewhere.toml says two things about: {command}"
        assert found or RUN_HERE.match(command), (
            f"say in tests/docs/elsewhere.toml which test runs: {command}"
        )


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == COMMANDS], ids=named)
def test_every_command_of_ours_is_one(block: Block) -> None:
    for line in block.commands():
        words = shlex.split(line)
        if words[0] == "./justw":
            assert words[1] in recipes(), line
        if words[0] != "echelon":
            continue
        command: object = program()
        rest = words[1:]
        while hasattr(command, "get_command"):
            name = rest.pop(0)
            command = command.get_command(click.Context(command), name)  # type: ignore[arg-type]
            assert command is not None, line
        command.make_context(words[1], rest)  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", PAGES)
def test_commands_in_running_text_are_there_with_their_options(page: str) -> None:
    for span in spans(page):
        words = span.split()
        if words[0] != "echelon":
            continue
        command: object = program()
        rest = words[1:]
        while rest and hasattr(command, "get_command") and not rest[0].startswith("-"):
            command = command.get_command(click.Context(command), rest.pop(0))  # type: ignore[arg-type]
            assert command is not None, span
        known = {name for one in command.params for name in (*one.opts, *one.secondary_opts)}  # type: ignore[attr-defined]
        assert {word.partition("=")[0] for word in rest if word.startswith("--")} <= known, span


@pytest.mark.parametrize("page", PAGES)
def test_files_in_running_text_are_there(page: str) -> None:
    for name in spans(page):
        if re.fullmatch(r"(bench|docker|docs|echelon|examples|scripts|tests|tools|topics)/[\w./-]+", name):
            assert (ROOT / name).exists(), name


def spans(page: str) -> list[str]:
    """What stands as code in the running text of a page."""
    return re.findall(r"`([^`]+)`", FENCE.sub("", (ROOT / page).read_text("utf-8")))


def recipes() -> set[str]:
    return set(re.findall(r"^([a-z-]+)[^:\n]*:", (ROOT / "justfile").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "yaml"], ids=named)
def test_every_run_file_is_one(block: Block) -> None:
    for document in yaml.safe_load_all(block.text):
        if "budget" in document:
            parse(document, named(block))


@pytest.mark.parametrize("one", ELSEWHERE, ids=lambda one: one.pattern)
def test_what_is_run_elsewhere_is_needed_and_its_test_is_there(one: Elsewhere) -> None:
    assert bool(one.test) != bool(one.needs), "a test, or what it needs"
    assert not one.test or (ROOT / one.test).is_file(), one.test
    lines = [(b.page, line) for b in BLOCKS for line in (b.commands() or [b.text] * (b.language == "python"))]
    assert any(one.fits(page, line) for page, line in lines), "no page has such a command any more"
