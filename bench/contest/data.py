"""The contest's data: four domains of the standard library, split by file, dealt to boundaries.

The shipped models were not trained on these packages (`RESERVED` of scripts/make_base.py). The library differs a
little from one Python to the next, so a manifest with the SHA-256 of every file stands beside the results, and
whoever runs the contest is told when theirs differs.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.contest.dedupe import near_duplicates
from echelon.errors import ConfigError

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
HELD_OUT = {"dev": 0.12, "test": 0.12}
"""Share of a domain's characters that each of these splits takes, in whole files."""
LARGEST = 64_000
"""Characters of one file that are used: no single file may be a tenth of a domain."""
LEAST_SHARE = 0.1
"""Least share of all characters that a Dirichlet draw may leave a boundary; a draw with less is drawn again."""

DOMAINS: Mapping[str, str] = {
    "web": "email http urllib html xml xmlrpc wsgiref mailbox imaplib smtplib ftplib poplib nntplib telnetlib smtpd "
    "json plistlib ipaddress cgi netrc mimetypes webbrowser",
    "concurrency": "asyncio multiprocessing concurrent threading subprocess queue selectors sched signal socketserver "
    "socket ssl asyncore asynchat",
    "tooling": "unittest logging importlib doctest pdb bdb zipfile tarfile shutil pathlib tempfile os posixpath ntpath "
    "glob contextlib zipimport",
    "desktop": "tkinter idlelib turtle turtledemo",
}


@dataclass(frozen=True)
class File:
    """One file of a domain: its path below the standard library, its text, the SHA-256 of its bytes."""

    path: str
    domain: str
    text: str
    sha256: str


@dataclass(frozen=True)
class Corpus:
    """Every file that is used, by split, and what was left out as a near-duplicate of what."""

    files: Mapping[Split, tuple[File, ...]]
    dropped: Mapping[str, str]

    @property
    def manifest(self) -> dict[str, Any]:
        """Which files with which contents are in which split; JSON."""
        return {
            "python": platform.python_version(),
            "digest": self.digest,
            "splits": {
                split: {
                    domain: {file.path: file.sha256 for file in files if file.domain == domain}
                    for domain in domains_of(files)
                }
                for split, files in self.files.items()
            },
            "near_duplicates": dict(sorted(self.dropped.items())),
        }

    @property
    def digest(self) -> str:
        """SHA-256 over (split, path, contents) of every file, in hex."""
        lines = [
            f"{split}\0{file.domain}\0{file.path}\0{file.sha256}\n"
            for split in SPLITS
            for file in self.files[split]
        ]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def domains_of(files: Iterable[File]) -> tuple[str, ...]:
    """The domains of files: those of `DOMAINS` in its order, then others in the order in which they come."""
    found = dict.fromkeys(file.domain for file in files)
    return (*(name for name in DOMAINS if name in found), *(name for name in found if name not in DOMAINS))


def _rank(*parts: object) -> bytes:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def read_domains(stdlib: Path | None = None) -> list[File]:
    """Every file of the domains, without tests, in order of path.

    Raises:
        ConfigError: a domain has no file here at all.
    """
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    files = []
    for domain, packages in DOMAINS.items():
        kept = []
        for name in packages.split():
            folder = root / name
            paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
            for path in paths:
                relative = path.relative_to(root)
                if path.is_file() and not {"test", "tests", "idle_test", "__pycache__"} & set(relative.parts):
                    raw = path.read_bytes()
                    text = raw.decode("utf-8", errors="replace")
                    if text.strip():
                        digest = hashlib.sha256(raw).hexdigest()
                        kept.append(File(relative.as_posix(), domain, text[:LARGEST], digest))
        if not kept:
            raise ConfigError(
                f"this Python has no sources of the domain {domain!r} below {root}: install the full standard library"
            )
        files += kept
    return sorted(files, key=lambda file: file.path)


def make_corpus(stdlib: Path | None = None) -> Corpus:
    """Read, leave near-duplicates out, split every domain by file. Deterministic from the files.

    A file's place in the order in which splits are filled is a hash of its path, so that it does not move when other
    files come or go.
    """
    files = read_domains(stdlib)
    dropped = near_duplicates([(file.path, file.text) for file in files])
    kept = [file for file in files if file.path not in dropped]
    splits: dict[Split, list[File]] = {split: [] for split in SPLITS}
    for domain in DOMAINS:
        mine = sorted(
            (file for file in kept if file.domain == domain), key=lambda f: _rank("contest split", f.path)
        )
        total = sum(len(file.text) for file in mine)
        taken = {"dev": 0, "test": 0}
        for file in mine:
            for split in ("dev", "test"):
                if taken[split] + len(file.text) <= HELD_OUT[split] * total:
                    taken[split] += len(file.text)
                    splits[split].append(file)
                    break
            else:
                splits["train"].append(file)
    return Corpus(
        {split: tuple(sorted(chosen, key=lambda f: f.path)) for split, chosen in splits.items()}, dropped
    )


def differences(manifest: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Paths that are in one manifest only, or in both with other contents or in another split."""

    def flat(one: Mapping[str, Any]) -> set[tuple[str, str, str]]:
        return {
            (split, path, digest)
            for split, domains in one["splits"].items()
            for files in domains.values()
            for path, digest in files.items()
        }

    return sorted({path for _, path, _ in flat(manifest) ^ flat(other)})


# ---- who gets what ---------------------------------------------------------------------------------------


def boundary_names(count: int) -> tuple[str, ...]:
    """Names of the boundaries, in order."""
    return tuple(f"b{number}" for number in range(count))


def deal(files: Sequence[File], partition: str, count: int, seed: int) -> list[list[File]]:
    """One list of files per boundary; every file is on exactly one.

    Args:
        files: what is dealt.
        partition: `iid`; `dirichlet(ALPHA)`: each domain's shares are a draw from Dirichlet(ALPHA, …) (Hsu, Qi and
            Brown 2019, section 3, with domains for classes); `by-domain`: no domain is on two boundaries.
        count: boundaries.
        seed: of the draw and of the order.

    Raises:
        ConfigError: an unknown partition, or a number of boundaries that does not divide the domains for `by-domain`.
    """
    sizes = {
        domain: sum(len(file.text) for file in files if file.domain == domain) for domain in domains_of(files)
    }
    shares = _shares(sizes, partition, count, seed)
    hands: list[list[File]] = [[] for _ in range(count)]
    for domain, share in shares.items():
        missing = share * sizes[domain]
        mine = [file for file in files if file.domain == domain]
        # Larger files first keeps hands even; within a factor of two the order is the seed's.
        for file in sorted(mine, key=lambda f: (-len(f.text).bit_length(), _rank(seed, "deal", f.path))):
            place = int(np.argmax(np.where(share > 0, missing, -np.inf)))
            missing[place] -= len(file.text)
            hands[place].append(file)
    return [sorted(hand, key=lambda file: file.path) for hand in hands]


def _shares(
    sizes: Mapping[str, int], partition: str, count: int, seed: int
) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    if partition == "iid":
        return {domain: np.full(count, 1 / count) for domain in sizes}
    if partition == "by-domain":
        if len(sizes) % count:
            raise ConfigError(
                f"there are {len(sizes)} domains; by-domain deals as many to each boundary, not to {count} boundaries"
            )
        share = len(sizes) // count
        return {domain: np.eye(count)[place // share] for place, domain in enumerate(sizes)}
    if not partition.startswith("dirichlet("):
        raise ConfigError(f"partition {partition!r} is not known: iid, dirichlet(ALPHA) or by-domain")
    alpha = float(partition[len("dirichlet(") : -1])
    total = sum(sizes.values())
    for attempt in range(10_000):
        entropy = int.from_bytes(_rank(seed, "dirichlet", attempt), "little")
        draw = np.random.Generator(np.random.PCG64(entropy)).dirichlet(np.full(count, alpha), len(sizes))
        shares = {domain: draw[row] for row, domain in enumerate(sizes)}
        held = sum(shares[domain] * sizes[domain] for domain in sizes)
        if np.min(held) >= LEAST_SHARE * total:
            return shares
    raise ConfigError(
        f"no draw of {partition} leaves each of {count} boundaries {LEAST_SHARE:.0%} of the data"
    )


def trimmed(files: Sequence[File], characters: int | None) -> list[File]:
    """At most so many characters of every domain, whole files in hash order; None: all of them."""
    if characters is None:
        return list(files)
    kept: list[File] = []
    for domain in domains_of(files):
        room = characters
        for file in sorted((f for f in files if f.domain == domain), key=lambda f: _rank("trim", f.path)):
            if len(file.text) <= room:
                room -= len(file.text)
                kept.append(file)
    return sorted(kept, key=lambda file: file.path)


def write_jsonl(files: Sequence[File], path: Path) -> None:
    """The files as rows {text, domain} that a `jsonl:` source reads; the same files give the same bytes."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        json.dumps({"text": file.text, "domain": file.domain, "path": file.path}) + "\n" for file in files
    ]
    temporary = path.with_suffix(f".{_rank(path, len(rows)).hex()[:8]}.part")
    temporary.write_text("".join(rows), encoding="utf-8")
    temporary.replace(path)
