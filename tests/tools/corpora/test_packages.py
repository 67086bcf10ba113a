"""Packages of three clients are taken only when they are the very files that are listed."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from echelon.errors import ConfigError
from tools.corpora.packages import ARCHIVES, Archive, fetch, unpack


def tar(name: str, text: str, mode: str = "w:gz") -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode=mode) as packed:  # type: ignore[call-overload]
        member = tarfile.TarInfo(name)
        member.size = len(text)
        packed.addfile(member, io.BytesIO(text.encode()))
    return raw.getvalue()


def member(name: str, content: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode()
    return header + content + b"\n" * (len(content) % 2)


def debian(text: str) -> bytes:
    data = tar("./usr/share/words", text, "w:xz")
    return (
        b"!<arch>\n"
        + member("debian-binary", b"2.0\n")
        + member("control.tar.xz", b"odd")
        + member("data.tar.xz", data)
    )


def client(folder: Path, name: str, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of that name which comes before every other one."""
    folder.mkdir(exist_ok=True)
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def listed(kind: str, raw: bytes) -> Archive:
    return replace(
        next(one for one in ARCHIVES.values() if one.client == kind),
        name="words",
        version="1.0",
        sha256=hashlib.sha256(raw).hexdigest(),
    )


def test_every_package_says_its_version_digest_and_licence() -> None:
    for name, archive in ARCHIVES.items():
        assert archive.name == name
        assert len(bytes.fromhex(archive.sha256)) == 32
        assert archive.version
        assert archive.licence


def test_a_zip_a_tar_and_a_debian_package_are_unpacked(tmp_path: Path) -> None:
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("words.txt", "of pip")
    unpack(wheel.getvalue(), tmp_path)
    assert (tmp_path / "words.txt").read_text() == "of pip"
    unpack(tar("package/words.txt", "of npm"), tmp_path)
    assert (tmp_path / "package/words.txt").read_text() == "of npm"
    unpack(debian("of Debian"), tmp_path)
    assert (tmp_path / "usr/share/words").read_text() == "of Debian"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"nothing of the kind", "neither zip nor tar nor Debian's"),
        (b"!<arch>\n" + member("debian-binary", b"2.0\n"), "has no data"),
        (b"!<arch>\n" + b"x" * 60, "a member without a size"),
        (tar("../outside", "x"), "neither zip nor tar nor Debian's"),
    ],
    ids=["bytes", "no data", "no size", "out of the folder"],
)
def test_what_is_no_package_is_refused(raw: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=why):
        unpack(raw, tmp_path)
    assert not list(tmp_path.parent.glob("outside"))


@pytest.mark.parametrize(
    ("kind", "program", "file"), [("npm", "npm", "words-1.0.tgz"), ("apt", "apt-get", "words_1.0_all.deb")]
)
def test_a_listed_package_is_fetched_by_its_client(
    kind: str, program: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = tar("package/words.txt", "of npm") if kind == "npm" else debian("of Debian")
    (tmp_path / "served").write_bytes(raw)
    client(
        tmp_path / "bin", program, f'echo "$@" > {tmp_path}/asked; cp {tmp_path}/served {file}', monkeypatch
    )
    archive = listed(kind, raw)
    fetch(archive, tmp_path / "out")
    assert any((tmp_path / "out").rglob("words*"))
    assert (tmp_path / "asked").read_text().strip().endswith("words@1.0" if kind == "npm" else "words=1.0")

    with pytest.raises(ConfigError, match=r"words 1\.0: the file has the digest .* do not use it"):
        fetch(replace(archive, sha256="0" * 64), tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo E: no such thing >&2; exit 100", r"apt could not fetch words 1\.0: E: no such thing"),
        ("exit 1", r"apt could not fetch words 1\.0: no reason given"),
        (
            "echo E: Hash Sum mismatch >&2; exit 100",
            r"words 1\.0: the file has another digest.* do not use it",
        ),
        ("exit 0", "apt left nothing for words, and not one file"),
        ("touch a b", "apt left a, b for words, and not one file"),
    ],
    ids=["not there", "no reason", "mismatch", "nothing", "two"],
)
def test_what_a_client_says_is_passed_on(
    script: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client(tmp_path / "bin", "apt-get", script, monkeypatch)
    with pytest.raises(ConfigError, match=why):
        fetch(listed("apt", b""), tmp_path / "out")


def test_a_client_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="words is fetched by npm, which is not installed"):
        fetch(listed("npm", b""), tmp_path / "out")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """A wheel that pip finds in a folder."""
    path = tmp_path / "index" / "words-1.0-py3-none-any.whl"
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("words/words.txt", "of pip")
        packed.writestr("words-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: words\nVersion: 1.0\n")
        packed.writestr(
            "words-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        packed.writestr("words-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return listed("pip", path.read_bytes())


@pytest.mark.slow
def test_pip_takes_the_listed_file_and_refuses_another_before_looking_into_it(
    wheel: Archive, tmp_path: Path
) -> None:
    fetch(wheel, tmp_path / "out")
    assert (tmp_path / "out/words/words.txt").read_text() == "of pip"
    with pytest.raises(ConfigError, match=r"words 1\.0: the file has another digest.* do not use it"):
        fetch(replace(wheel, sha256="0" * 64), tmp_path / "other")
