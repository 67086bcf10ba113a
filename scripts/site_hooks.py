"""Hooks of mkdocs: pages that stand outside of docs/, and links between pages and the repository's other files."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mkdocs.structure.files import File, Files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("ARCHITECTURE.md", "bench/results/README.md")
"""Pages that stand outside of docs/, by their paths in the repository. On the site they have the same paths."""
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
NAME = re.compile(r"(?<=<td><code>)[\w.\[\]]+(?=</code>)")

log = logging.getLogger("mkdocs.hooks.site")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand outside of docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links as the repository has them into links of the site.

    A link to a page leads to that page. A link to any other file of the repository becomes its path, as code.
    """
    source = page.file.src_uri
    home = posixpath.dirname(source if source in OUTSIDE else f"docs/{source}")

    def moved(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        path = posixpath.normpath(posixpath.join(home, target))
        there = path if path in OUTSIDE else path.removeprefix("docs/")
        if (path in OUTSIDE or path.startswith("docs/")) and files.get_file_from_path(there):
            return (
                f"{image}[{text}]({posixpath.relpath(there, posixpath.dirname(source) or '.')}{anchor or ''})"
            )
        if not (ROOT / path).exists():
            log.warning("%s: the link leads nowhere: %s", source, target)
        return f"`{path}`" if text.strip("`") in (target, path) else f"{text} (`{path}`)"

    return "".join(
        part if at % 2 else LINK.sub(moved, part)
        for at, part in enumerate(
            re.split(r"(^ *```.*?^ *```$|`[^`\n]+`(?!\]))", markdown, flags=re.MULTILINE | re.DOTALL)
        )
    )


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names in tables break after dots and underscores: else a narrow screen shows little more than names."""
    return NAME.sub(lambda cell: cell[0].replace(".", ".<wbr>").replace("_", "_<wbr>"), html)
