"""Two classification tasks from the sources of the standard library, split by file, and dealt to devices.

*package*: which of twenty packages (or groups of modules) some lines are from. *kind*: whether they are code, a comment
or a docstring, told without the signs and quotes that mark those. Files are those that neither base was trained on
(`RESERVED` of scripts/make_base.py). No file is in both training and test, and what repeats an earlier snippet is left
out.
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import platform
import sysconfig
import textwrap
import tokenize
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bench.contest.data import File
from bench.contest.dedupe import near_duplicates
from echelon.errors import ConfigError

Part = Literal["train", "test"]
LabelFault = Literal["random-labels", "shuffled-labels", "same-wrong-label"]
"""What an unreliable device's labels are."""
Measure = Callable[[Sequence[str]], list[int]]
"""Tokens of each text."""

PACKAGES: Mapping[str, str] = {
    "archives": "zipfile tarfile zipimport",
    "asyncio": "asyncio",
    "concurrent": "concurrent",
    "debugging": "pdb bdb doctest",
    "email": "email",
    "files": "shutil pathlib tempfile os posixpath ntpath genericpath glob",
    "html": "html",
    "http": "http",
    "idlelib": "idlelib",
    "importlib": "importlib",
    "json": "json",
    "logging": "logging",
    "mail": "mailbox imaplib smtplib ftplib poplib nntplib telnetlib smtpd",
    "multiprocessing": "multiprocessing",
    "sockets": "socket ssl socketserver asyncore asynchat selectors",
    "tkinter": "tkinter",
    "turtle": "turtle turtledemo",
    "unittest": "unittest",
    "urllib": "urllib",
    "xml": "xml xmlrpc wsgiref",
}
"""Classes of the task `package`, and the modules of each."""
KINDS = ("code", "comment", "docstring")
"""Classes of the task `kind`."""
TASKS: Mapping[str, tuple[str, ...]] = {"kind": KINDS, "package": tuple(PACKAGES)}
HELD_OUT = 0.35
"""Share of a package's characters that is for tests, in whole files."""
MOST = {"kind": {"train": 2400, "test": 1760}, "package": {"train": 400, "test": 290}}
"""Most snippets of one class."""
LONGEST = 44
"""Tokens of one snippet, about; with what a tokenizer puts around them they fit into 48."""
LEAST = {"kind": 10, "package": 20}
"""Tokens of the shortest snippet of a task."""
SKIPPED = frozenset({"test", "tests", "idle_test", "__pycache__"})


@dataclass(frozen=True)
class Snippet:
    """Some lines of one file, and their class; `domain` is the kind of text, where a task has several."""

    text: str
    label: str
    path: str
    line: int
    domain: str = ""


@dataclass(frozen=True)
class Task:
    """One task: its classes, its snippets by part, and the files that they are from."""

    name: str
    labels: tuple[str, ...]
    snippets: Mapping[Part, tuple[Snippet, ...]]
    files: Mapping[Part, tuple[File, ...]]
    repeated: int
    """Snippets that were left out because they repeat another."""

    @property
    def digest(self) -> str:
        """SHA-256 over every snippet with its part and class, in hex."""
        digest = hashlib.sha256()
        for part in ("train", "test"):
            for one in self.snippets[part]:  # type: ignore[index]
                digest.update(f"{part}\0{one.label}\0{one.path}\0{one.line}\0{one.text}\0".encode())
        return digest.hexdigest()

    @property
    def manifest(self) -> dict[str, Any]:
        """Files by part with their SHA-256, and how many snippets each class has; JSON."""
        return {
            "python": platform.python_version(),
            "digest": self.digest,
            "repeated": self.repeated,
            "snippets": {
                part: {"all": len(members), **sorted_counts(one.label for one in members)}
                for part, members in self.snippets.items()
            },
            "files": {
                part: {file.path: file.sha256 for file in members} for part, members in self.files.items()
            },
        }


def sorted_counts(labels: Iterator[str]) -> dict[str, int]:
    """How often each stands there, in order of name."""
    return dict(sorted(Counter(labels).items()))


def rank(*parts: object) -> bytes:
    """A pseudo-random sort key that does not depend on what else there is."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


# ---- files ---------------------------------------------------------------------------------------------------


def read_files(stdlib: Path | None = None) -> list[File]:
    """Every file of the packages, without tests, in order of path; `domain` is the package.

    Raises:
        ConfigError: a package has no file here.
    """
    root = stdlib or Path(sysconfig.get_paths()["stdlib"])
    files = []
    for package, modules in PACKAGES.items():
        kept = []
        for module in modules.split():
            folder = root / module
            paths = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
            for path in paths:
                relative = path.relative_to(root)
                if path.is_file() and not SKIPPED & set(relative.parts):
                    raw = path.read_bytes()
                    text = raw.decode("utf-8", errors="replace")
                    if text.strip():
                        digest = hashlib.sha256(raw).hexdigest()
                        kept.append(File(relative.as_posix(), package, text, digest))
        if not kept:
            raise ConfigError(
                f"this Python has no sources of {package!r} below {root}: install the full standard library"
            )
        files += kept
    return sorted(files, key=lambda file: file.path)


def split_files(files: Sequence[File]) -> dict[Part, tuple[File, ...]]:
    """Whole files to training and test, package by package, in an order that is a hash of the path."""
    parts: dict[Part, list[File]] = {"train": [], "test": []}
    for package in PACKAGES:
        mine = sorted((f for f in files if f.domain == package), key=lambda f: rank("elsa split", f.path))
        total = sum(len(file.text) for file in mine)
        taken = 0
        for file in mine:
            held = taken + len(file.text) <= HELD_OUT * total
            taken += len(file.text) if held else 0
            parts["test" if held else "train"].append(file)
    return {part: tuple(sorted(found, key=lambda f: f.path)) for part, found in parts.items()}


# ---- snippets ------------------------------------------------------------------------------------------------


def runs(lines: Sequence[tuple[int, str, int]], least: int) -> Iterator[tuple[str, int]]:
    """Lines (number, text, tokens) in runs of `least` to `LONGEST` tokens: the text, dedented, and the first number.

    A run ends at a gap in the numbers, too; blank lines at its ends are left out.
    """
    run: list[tuple[int, str, int]] = []
    for number, text, count in [*lines, (-1, "", 0)]:
        gap = bool(run) and number != run[-1][0] + 1
        if gap or sum(size for _, _, size in run) + count > LONGEST:
            while run and not run[-1][1].strip():
                run.pop()
            if run and sum(size for _, _, size in run) >= least:
                yield textwrap.dedent("\n".join(line for _, line, _ in run)), run[0][0]
            run = []
        if (run or text.strip()) and count <= LONGEST:
            run.append((number, text, count))


def pieces(file: File, tokens: Sequence[int]) -> Iterator[Snippet]:
    """The whole file in runs of lines, of the class of its package; given the tokens of each line."""
    lines = enumerate(file.text.splitlines(), 1)
    numbered = [(number, line, count) for (number, line), count in zip(lines, tokens, strict=True)]
    for text, number in runs(numbered, LEAST["package"]):
        yield Snippet(text, file.domain, file.path, number)


def kinds(file: File, tokens: Sequence[int]) -> Iterator[Snippet]:
    """Runs of lines that are nothing but code, comments or docstrings; given the tokens of each line.

    Lines with code and a comment in them are left out.
    """
    lines = file.text.splitlines()
    by_kind: dict[str, dict[int, str]] = {kind: {} for kind in KINDS}
    mixed: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(file.text).readline):
        if token.type == tokenize.COMMENT:
            number = token.start[0]
            if token.line[: token.start[1]].strip():
                mixed.add(number)
            else:
                by_kind["comment"][number] = token.string.lstrip("#!:")
    for node in ast.walk(ast.parse(file.text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is None:
                continue
            text = node.body[0]
            for number in range(text.lineno, (text.end_lineno or text.lineno) + 1):
                line = lines[number - 1].strip()
                if number == text.lineno:
                    line = line.lstrip("rRuU").lstrip("\"'")
                by_kind["docstring"][number] = line.rstrip("\"'") if number == text.end_lineno else line
    other = by_kind["comment"].keys() | by_kind["docstring"].keys() | mixed
    by_kind["code"] = {number: line for number, line in enumerate(lines, 1) if number not in other}
    for kind, members in by_kind.items():
        numbered = [(number, line, tokens[number - 1]) for number, line in sorted(members.items())]
        for text_, number in runs(numbered, LEAST["kind"]):
            yield Snippet(text_, kind, file.path, number)


def chosen(snippets: Sequence[Snippet], task: str, most: int) -> list[Snippet]:
    """At most so many of each class, by hash."""
    taken: Counter[str] = Counter()
    kept = []
    for one in sorted(snippets, key=lambda s: rank("elsa", task, s.path, s.line)):
        if taken[one.label] < most:
            taken[one.label] += 1
            kept.append(one)
    # In another order: where a class is at its limit, this one has too few of it at the end.
    return sorted(kept, key=lambda s: rank("elsa order", s.path, s.line))


def make_task(name: str, measure: Measure, stdlib: Path | None = None, most: int | None = None) -> Task:
    """All snippets of a task. Deterministic from the files and the tokenizer.

    Args:
        name: of the task.
        measure: counts tokens.
        stdlib: the library's folder; None: the running Python's.
        most: snippets of one class and part; None: `MOST`.

    Raises:
        ConfigError: there is no such task, or a package is missing.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r}; there are {', '.join(TASKS)}")
    files = read_files(stdlib)
    parts = split_files(files)
    make = pieces if name == "package" else kinds
    by_part: dict[Part, list[Snippet]] = {"train": [], "test": []}
    for part, members in parts.items():
        cut: list[Snippet] = []
        for file in members:
            counts = measure([f"{line}\n" for line in file.text.splitlines()])
            seen: set[str] = set()
            for one in make(file, counts):
                if one.text not in seen:
                    seen.add(one.text)
                    cut.append(one)
        by_part[part] = chosen(cut, name, most or MOST[name][part])
    # Training first: what is left out of the test is what repeats something that may be trained on.
    everything = [(part, place, one) for part in ("train", "test") for place, one in enumerate(by_part[part])]  # type: ignore[index]
    repeated = near_duplicates([(f"{part} {place}", one.text) for part, place, one in everything])
    kept: dict[Part, tuple[Snippet, ...]] = {
        part: tuple(one for place, one in enumerate(by_part[part]) if f"{part} {place}" not in repeated)
        for part in by_part
    }
    return Task(name, TASKS[name], kept, parts, len(repeated))


# ---- who gets what -------------------------------------------------------------------------------------------


def deal(
    snippets: Sequence[Snippet], labels: Sequence[str], *, devices: int, alpha: float, least: int, seed: int
) -> list[list[Snippet]]:
    """The training snippets of each device: every class's shares are a draw from Dirichlet(alpha, …) over devices.

    Hsu, Qi and Brown 2019 (arXiv 1909.06335), section 3. A draw that leaves a device fewer than `least` snippets is
    drawn again.

    Raises:
        ConfigError: no draw leaves every device enough.
    """
    by_label = {
        label: sorted((s for s in snippets if s.label == label), key=lambda s: rank(seed, s.path, s.line))
        for label in labels
    }
    for attempt in range(10_000):
        entropy = int.from_bytes(rank("elsa deal", seed, attempt), "little")
        shares = np.random.Generator(np.random.PCG64(entropy)).dirichlet(np.full(devices, alpha), len(labels))
        hands: list[list[Snippet]] = [[] for _ in range(devices)]
        for share, members in zip(shares, by_label.values(), strict=True):
            ends = np.round(np.cumsum(share) * len(members)).astype(int)
            for device, (start, end) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
                hands[device] += members[start:end]
        if min(map(len, hands)) >= least:
            return hands
    raise ConfigError(f"no draw of Dirichlet({alpha}) leaves each of {devices} devices {least} snippets")


def deal_domains(snippets: Sequence[Snippet], *, devices: int, seed: int) -> list[list[Snippet]]:
    """The training snippets of each device when each has one domain: domains take turns, and share out their snippets.

    Raises:
        ConfigError: there are more domains than devices, so that some text would belong to nobody.
    """
    domains = sorted({one.domain for one in snippets})
    if len(domains) > devices:
        raise ConfigError(f"{len(domains)} domains cannot be dealt to {devices} devices: take more devices")
    order = sorted(range(devices), key=lambda device: rank("elsa domains", seed, device))
    hands: list[list[Snippet]] = [[] for _ in range(devices)]
    for number, domain in enumerate(domains):
        mine = order[number :: len(domains)]
        members = sorted(
            (s for s in snippets if s.domain == domain), key=lambda s: rank(seed, s.path, s.line)
        )
        for place, device in enumerate(mine):
            hands[device] = members[place :: len(mine)]
    return hands


def unreliable(devices: int, count: int, seed: int) -> tuple[int, ...]:
    """Which devices have labels that say nothing."""
    return tuple(
        sorted(sorted(range(devices), key=lambda device: rank("elsa unreliable", seed, device))[:count])
    )


def mislabelled(hand: Sequence[Snippet], labels: Sequence[str], seed: int, device: int) -> list[Snippet]:
    """The same snippets, each with a label drawn uniformly from all classes."""
    entropy = int.from_bytes(rank("elsa labels", seed, device), "little")
    drawn = np.random.Generator(np.random.PCG64(entropy)).integers(len(labels), size=len(hand))
    return [replace(s, label=labels[k]) for s, k in zip(hand, drawn.tolist(), strict=True)]


def spoilt(
    hand: Sequence[Snippet], fault: LabelFault, labels: Sequence[str], *, seed: int, device: int
) -> list[Snippet]:
    """The same snippets with the labels of an unreliable device.

    Args:
        hand: its snippets.
        fault: `random-labels` as `mislabelled`; `shuffled-labels`: its own labels in another order, which are mostly
            the right ones where it has hardly any class but one; `same-wrong-label`: one class, the same for all
            unreliable devices of a seed.
        labels: the task's classes.
        seed: of the run.
        device: its number.
    """
    if fault == "random-labels":
        return mislabelled(hand, labels, seed, device)
    if fault == "same-wrong-label":
        wrong = labels[int.from_bytes(rank("elsa wrong", seed), "little") % len(labels)]
        return [replace(s, label=wrong) for s in hand]
    entropy = int.from_bytes(rank("elsa order of labels", seed, device), "little")
    order = np.random.Generator(np.random.PCG64(entropy)).permutation(len(hand))
    return [replace(s, label=hand[k].label) for s, k in zip(hand, order.tolist(), strict=True)]


def write_rows(rows: Sequence[tuple[Snippet, str]], path: Path) -> None:
    """Snippets with the name of whom they are for, as rows {text, label, device}; equal rows give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"text": one.text, "label": one.label, "device": device}) + "\n" for one, device in rows
    ]
    temporary = path.with_suffix(f".{rank(path, len(rows)).hex()[:8]}.part")
    temporary.write_text("".join(lines), encoding="utf-8")
    temporary.replace(path)
