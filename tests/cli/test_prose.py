"""Sentences on a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.text import Text

from echelon.cli.output import prose

SENTENCE = (
    "unpinned: no genesis digest was pinned: [this] shows that the run is consistent, not which run it is"
)


@pytest.mark.parametrize("text", [SENTENCE, Text(SENTENCE)])
def test_a_terminal_gets_whole_words_and_a_file_gets_one_line(text: str | Text) -> None:
    said = {}
    for terminal in (True, False):
        console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=40)
        prose(console, text)
        said[terminal] = console.file.getvalue()  # type: ignore[attr-defined]
    lines = said[True].splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert " ".join(line.strip() for line in lines) == SENTENCE
    assert said[False] == SENTENCE + "\n"
