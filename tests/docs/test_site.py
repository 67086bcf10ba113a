"""The site of docs/: it builds without any network, no link leads nowhere, and nothing is loaded from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = """
import socket

def refuse(*_arguments, **_keywords):
    raise SystemExit("the build asks for the network")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
"""
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}


def build(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call `mkdocs build --strict` in a process that has no network."""
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": path, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


class Loaded(HTMLParser):
    """What a browser fetches for a page, and the classes of its elements."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields = dict(attrs)
        self.classes.update((fields.get("class") or "").split())
        if fields.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(fields.get(LOADS.get(tag, "")) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder, "--site-dir", str(folder / "site"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_builds_and_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text("utf-8"))
        assert len(loaded.found) > 5, page
        assert not [url for url in loaded.found if re.match(r"(\w+:)?//", url)], page
        assert "mermaid" not in loaded.classes, "the theme fetches the program that draws such a diagram"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text("utf-8")), style


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_has_what_programs_may_use_and_pages_from_outside_of_docs(site: Path) -> None:
    import echelon

    reference = (site / "reference.html").read_text("utf-8")
    missing = [name for name in echelon.__all__ if name != "__version__" and f".{name}" not in reference]
    assert missing == [], "docs/reference.md leaves them out"
    assert "Four walks" in (site / "ARCHITECTURE.html").read_text("utf-8")
    assert 'href="ARCHITECTURE.html' in (site / "index.html").read_text("utf-8")
    assert "<code>examples/notebook.ipynb</code>" in (site / "python.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("[x](nowhere.md)", "the link leads nowhere: nowhere.md"),
        ("[x](../nowhere.py)", "the link leads nowhere: ../nowhere.py"),
        ("[x](index.md#nowhere)", "contains a link 'index.md#nowhere', but there is no such anchor"),
        ("[x](../LICENSE)", ""),
    ],
)
def test_a_link_that_leads_nowhere_fails(tmp_path: Path, link: str, words: str) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text(f"# Page\n\n{link}\n")
    (tmp_path / "mkdocs.yml").write_text(
        "site_name: x\ndocs_dir: pages\nplugins: []\ntheme: {name: null, custom_dir: theme}\n"
        f"hooks: ['{ROOT}/scripts/site_hooks.py']\n"
        "validation: {links: {anchors: warn, not_found: warn, unrecognized_links: warn}}\n"
    )
    (tmp_path / "theme").mkdir()
    (tmp_path / "theme" / "main.html").write_text("{{ page.content }}")
    done = build(tmp_path, "--config-file", str(tmp_path / "mkdocs.yml"))
    assert done.returncode == (1 if words else 0), done.stderr
    assert words in done.stderr
