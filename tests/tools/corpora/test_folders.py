"""A folder is made whole or not at all, and altered files are named."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tools.corpora.folders import altered, made_whole


def test_a_folder_is_there_when_it_is_whole_and_its_scratch_is_gone(tmp_path: Path) -> None:
    def make(scratch: Path) -> int:
        (scratch / "out").mkdir(parents=True)
        (scratch / "out" / "file").write_text("text")
        (scratch / "package").mkdir()
        return 7

    assert made_whole(tmp_path / "new" / "folder", make) == 7
    assert (tmp_path / "new" / "folder" / "file").read_text() == "text"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_of_a_folder_that_could_not_be_made_nothing_is_left(tmp_path: Path) -> None:
    def make(scratch: Path) -> None:
        (scratch / "out").mkdir(parents=True)
        raise ValueError("no package")

    with pytest.raises(ValueError, match="no package"):
        made_whole(tmp_path / "folder", make)
    assert list(tmp_path.iterdir()) == []


def test_files_that_changed_or_are_missing_are_named_in_order(tmp_path: Path) -> None:
    digests = {}
    for name in ("b/one", "a/two", "a/three"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        digests[name] = hashlib.sha256(name.encode()).hexdigest()
    assert altered(tmp_path, digests) == []
    (tmp_path / "b/one").write_text("other")
    (tmp_path / "a/three").unlink()
    assert altered(tmp_path, digests) == ["b/one", "a/three"]
