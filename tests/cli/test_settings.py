"""`echelon settings`: the table of settings, searched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from echelon.config.table import sections
from tests.cli.commands import COMMAND, ENVIRONMENT

Cli = Callable[..., Result]


def paths(found: Result) -> list[str]:
    return [row["path"] for section in json.loads(found.stdout) for row in section["settings"]]


def test_without_a_word_every_setting_is_listed(cli: Cli) -> None:
    found = cli("settings", "--json")
    assert paths(found) == [row.path for section in sections() for row in section.rows]
    text = cli("settings").stdout
    assert all(path in text for path in paths(found))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("sync.steps",), ["sync.steps"]),
        (("SYNC.Steps",), ["sync.steps"]),
        (
            ("witnesses",),
            [row.path for section in sections() if section.path == "witnesses" for row in section.rows],
        ),
        (("boundaries.0.devices.3.speed",), ["boundaries[].devices[].speed"]),
        (("boundaries[].shards",), ["boundaries[].shards"]),
    ],
)
def test_a_path_gives_that_setting_or_all_below_it(
    cli: Cli, words: tuple[str, ...], expected: list[str]
) -> None:
    assert paths(cli("settings", "--json", *words)) == expected


def test_words_are_looked_for_everywhere(cli: Cli) -> None:
    both = paths(cli("settings", "--json", "learning", "rate"))
    assert "training.lr" in both
    assert "sync.outer.lr" in both
    assert set(both) < set(paths(cli("settings", "--json", "rate")))
    assert both == paths(cli("settings", "--json", "learning rate"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("k_mim",), "did you mean secure.k_min?"),
        (("sync.stps",), "did you mean sync.steps?"),
        (("lerning", "rate"), "did you mean learning rate?"),
        (("qqqqqqq",), "`echelon settings` lists all of them"),
        (("x" * 5000,), "`echelon settings` lists all of them"),
        (("[]",), "The run"),
        (("\0\n",), "`echelon settings` lists all of them"),
    ],
)
def test_what_fits_nothing_gets_the_nearest_name(cli: Cli, words: tuple[str, ...], advice: str) -> None:
    found = cli("settings", *words)
    assert advice in found.output
    assert found.exit_code == (0 if advice == "The run" else 2)
    assert len(found.output) < 500 or found.exit_code == 0


def test_a_reader_that_has_seen_enough_ends_it_without_a_word() -> None:
    command = subprocess.Popen(
        [*COMMAND, "settings"], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert command.stdout is not None
    command.stdout.close()
    assert command.stderr is not None
    assert command.stderr.read() == b""
    assert command.wait(60) == 1


def test_where_nobody_looks_a_description_is_one_line(cli: Cli) -> None:
    row = next(row for section in sections() for row in section.rows if row.path == "model.task")
    assert row.description.replace("`", "") in cli("settings", "model.task").stdout


def test_a_terminal_that_is_not_utf8_gets_all_of_it(tmp_path: Path) -> None:
    found = subprocess.run(
        [*COMMAND, "settings", "qsr"],
        env=ENVIRONMENT | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=60,
        check=True,
    )
    assert b"sync.pace.growth" in found.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("echelon se", ["settings"]),
        ("echelon settings sync.outer.m", ["sync.outer.momentum"]),
        ("echelon audit v", ["verify"]),
    ],
)
def test_a_shell_completes_commands_and_settings(words: str, expected: list[str]) -> None:
    asked = {"_ECHELON_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    program = "import sys; sys.argv = ['echelon']; from echelon.cli import main; main()"
    found = subprocess.run(
        [sys.executable, "-c", program], env=ENVIRONMENT | asked, capture_output=True, text=True, timeout=110
    )
    assert found.stdout.split() == expected
