"""Blocks of code on the pages: where they stand, in which language, and which commands they have."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "ARCHITECTURE.md",
    "examples/README.md",
    "bench/results/README.md",
    *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
)
COMMANDS = ""
"""The language of a block of commands: none is named."""
FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes:
        page: where it stands, as a path in the repository.
        line: of the page, from 1.
        language: as the page names it; empty for commands.
        text: what it holds.
    """

    page: str
    line: int
    language: str
    text: str

    def commands(self) -> list[str]:
        """Its commands, without what is said about them behind a number sign."""
        lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in self.text.splitlines())
        return [line for line in lines if line] if self.language == COMMANDS else []


def blocks(page: str) -> Iterator[Block]:
    """All blocks of a page, from top to bottom."""
    text = (ROOT / page).read_text("utf-8")
    for found in FENCE.finditer(text):
        indent, language, inside = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, language, re.sub(rf"^{indent}", "", inside, flags=re.MULTILINE))


@dataclass(frozen=True)
class Elsewhere:
    """What the tests of the pages do not run themselves.

    Attributes:
        pattern: how the command begins, a regular expression.
        pages: on which pages; none named: on all.
        test: the file of tests that runs it; empty: none does.
        needs: what it needs that no test has.
    """

    pattern: str
    pages: tuple[str, ...]
    test: str
    needs: str

    def fits(self, page: str, command: str) -> bool:
        """Whether it says something about this command on this page."""
        return (not self.pages or page in self.pages) and re.match(self.pattern, command) is not None


def elsewhere() -> list[Elsewhere]:
    """What `elsewhere.toml` says."""
    found = tomllib.loads((Path(__file__).parent / "elsewhere.toml").read_text("utf-8"))
    return [
        Elsewhere(one["command"], tuple(one.get("pages", ())), one.get("test", ""), one.get("needs", ""))
        for one in found["elsewhere"]
    ]
