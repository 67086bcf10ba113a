"""The contest's data: what the base has seen is not in it, no file is twice anywhere, and deals lose nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from bench.contest.data import (
    DOMAINS,
    LEAST_SHARE,
    SPLITS,
    Corpus,
    File,
    deal,
    differences,
    domains_of,
    make_corpus,
    trimmed,
    write_jsonl,
)
from bench.contest.dedupe import near_duplicates, shingles
from echelon.errors import ConfigError

ROOT = Path(__file__).resolve().parents[3]


@cache
def corpus() -> Corpus:
    return make_corpus()


def test_a_document_with_a_few_changed_words_is_a_near_duplicate_and_another_is_not() -> None:
    words = [f"word{number}" for number in range(400)]
    changed = [*words[:200], "other", *words[201:]]
    apart = [f"term{number}" for number in range(400)]
    dropped = near_duplicates([("a", " ".join(words)), ("b", " ".join(changed)), ("c", " ".join(apart))])
    assert dropped == {"b": "a"}


def test_a_document_that_stands_inside_a_longer_one_is_a_near_duplicate() -> None:
    words = [f"word{number}" for number in range(400)]
    assert near_duplicates([("long", " ".join(words)), ("part", " ".join(words[50:130]))]) == {"part": "long"}


def test_white_space_does_not_hide_a_duplicate_and_common_boilerplate_does_not_make_one() -> None:
    text = "\n".join(f"def f{number}(x): return x * {number}" for number in range(60))
    assert near_duplicates([("a", text), ("b", text.replace(" ", "   "))]) == {"b": "a"}
    head = " ".join(f"licence{number}" for number in range(30))
    bodies = [" ".join(f"{name}{number}" for number in range(300)) for name in "xy"]
    assert near_duplicates([("a", f"{head} {bodies[0]}"), ("b", f"{head} {bodies[1]}")]) == {}


def test_shingles_of_short_and_empty_texts() -> None:
    assert len(shingles("a b c")) == 1
    assert shingles("  \n") == frozenset()
    assert near_duplicates([("empty", " ")]) == {"empty": "empty"}


@pytest.mark.slow
def test_the_shipped_models_have_not_seen_the_domains() -> None:
    seen = json.loads((ROOT / "echelon/assets/base/corpus.json").read_text())
    names = {file.path for files in corpus().files.values() for file in files}
    assert not names & (seen["training"].keys() | seen["validation"].keys())
    reserved = set(seen["reserved"])
    assert all(package in reserved for packages in DOMAINS.values() for package in packages.split())


@pytest.mark.slow
def test_every_file_is_in_one_split_and_every_domain_in_all_of_them() -> None:
    found = [file.path for split in SPLITS for file in corpus().files[split]]
    assert len(found) == len(set(found))
    for split in SPLITS:
        assert {file.domain for file in corpus().files[split]} == set(DOMAINS)


@pytest.mark.nightly
def test_no_test_or_dev_file_is_a_near_duplicate_of_a_training_file() -> None:
    everything = [(file.path, file.text) for split in SPLITS for file in corpus().files[split]]
    assert near_duplicates(everything) == {}


@pytest.mark.slow
def test_the_committed_manifest_is_this_library_s_or_says_what_differs() -> None:
    known = json.loads((ROOT / "bench/results/contest/data.json").read_text())
    mine = corpus().manifest
    if known["digest"] == mine["digest"]:
        assert differences(known, mine) == []
    else:
        assert differences(known, mine) != []
        assert known["python"] != "{}.{}.{}".format(*sys.version_info[:3])


def test_a_changed_file_changes_the_digest_and_is_named(tmp_path: Path) -> None:
    for domain, packages in DOMAINS.items():
        for number, package in enumerate(packages.split()[:8]):
            text = "\n".join(f"{domain}_{package}_{line} = {line}" for line in range(50 + number))
            (tmp_path / f"{package}.py").write_text(text)
    before = make_corpus(tmp_path)
    changed = tmp_path / "email.py"
    changed.write_text(changed.read_text() + "\nmore = 1\n")
    after = make_corpus(tmp_path)
    assert before.digest != after.digest
    assert "email.py" in differences(before.manifest, after.manifest)


def test_a_python_without_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="install the full standard library"):
        make_corpus(tmp_path)


# ---- deals -----------------------------------------------------------------------------------------------


def sizes(hand: Sequence[File]) -> dict[str, int]:
    return {domain: sum(len(file.text) for file in hand if file.domain == domain) for domain in DOMAINS}


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("partition", ["iid", "dirichlet(0.1)", "by-domain"])
def test_a_deal_gives_every_file_to_one_boundary(partition: str, count: int) -> None:
    files = corpus().files["train"]
    hands = deal(files, partition, count, 3)
    assert sorted(file.path for hand in hands for file in hand) == [file.path for file in files]
    assert deal(files, partition, count, 3) == hands


def test_iid_is_even_and_by_domain_shares_none() -> None:
    files = corpus().files["train"]
    for hand in deal(files, "iid", 2, 0):
        for domain, size in sizes(hand).items():
            total = sum(len(file.text) for file in files if file.domain == domain)
            assert abs(size / total - 0.5) < 0.05
    hands = deal(files, "by-domain", 4, 0)
    assert [sum(size > 0 for size in sizes(hand).values()) for hand in hands] == [1, 1, 1, 1]
    pairs = [domains_of(hand) for hand in deal(files, "by-domain", 2, 0)]
    assert pairs == [("web", "concurrency"), ("tooling", "desktop")]


def test_a_dirichlet_deal_is_uneven_differs_by_seed_and_starves_nobody() -> None:
    files = corpus().files["train"]
    deals = [deal(files, "dirichlet(0.1)", 4, seed) for seed in range(1, 4)]
    total = sum(len(file.text) for file in files)
    largest = max(len(file.text) for file in files)
    for hands in deals:
        held = [sum(sizes(hand).values()) for hand in hands]
        assert min(held) >= LEAST_SHARE * total - 4 * largest
    assert len({tuple(file.path for file in hands[0]) for hands in deals}) == 3


def test_unknown_partitions_and_impossible_ones_are_refused() -> None:
    with pytest.raises(ConfigError, match="not known"):
        deal(corpus().files["train"], "random", 2, 0)
    with pytest.raises(ConfigError, match="there are 4 domains; by-domain deals as many to each"):
        deal(corpus().files["train"], "by-domain", 3, 0)


def test_trimming_keeps_whole_files_of_every_domain() -> None:
    kept = trimmed(corpus().files["train"], 100_000)
    for domain, size in sizes(kept).items():
        assert 0 < size <= 100_000, domain
    assert set(kept) <= set(corpus().files["train"])
    assert trimmed(corpus().files["train"], None) == list(corpus().files["train"])


def test_rows_are_what_a_run_reads(tmp_path: Path) -> None:
    files = corpus().files["dev"][:3]
    path = tmp_path / "a" / "rows.jsonl"
    write_jsonl(files, path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["text"], row["domain"]) for row in rows] == [(file.text, file.domain) for file in files]
