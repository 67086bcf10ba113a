"""The notebook among the examples runs from top to bottom, and its file holds no outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
LIMIT = 300
"""Seconds for one cell, on a machine that does much else."""


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_file_holds_no_outputs(notebook: Any) -> None:
    assert not [cell for cell in notebook.cells if cell.get("outputs") or cell.get("execution_count")]


def texts(notebook: Any) -> str:
    """All that was printed or shown plainly."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_runs_from_top_to_bottom(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    NotebookClient(
        notebook, timeout=LIMIT, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = texts(notebook)
    assert "commit 3: 23040 tokens so far" in text
    assert "audit            verified" in text
    assert "largest weight" in text
    said = " ".join(
        text.split()
    )  # a cell's command has a terminal, on which sentences are broken between words
    assert "2 boundaries, 3 commits, closed (commits)" in said, "the command line verifies it"
    assert "is not the final adapter" in said
    html = [o["data"]["text/html"] for c in notebook.cells for o in c.get("outputs", ()) if "data" in o]
    assert any("<td>verified</td>" in one for one in html), "a result is a table"
    assert any("validation loss" in one for one in html), "rich shows the losses"
