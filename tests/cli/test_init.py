"""`echelon init`: a run file for data of every kind, which a check finds good."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from echelon.config.run import load

Cli = Callable[..., Result]
TEXTS = [
    f"The pump of hall {number} was oiled, and its bearing {number * 7} was changed." for number in range(24)
]


def rows(path: Path, *made: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


def table(path: Path, *made: dict[str, Any]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(made[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(made)
    return path


def text_folder(folder: Path) -> Path:
    place = folder / "notes"
    place.mkdir()
    for number, text in enumerate(TEXTS):
        (place / f"{number}.txt").write_text(text)
    return place


def unlike(folder: Path) -> Path:
    """A folder of two kinds."""
    rows(text_folder(folder) / "rows.jsonl", *({"text": text * 3} for text in TEXTS))
    return folder / "notes"


def packed(folder: Path) -> Path:
    path = folder / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()))
    return path


def parquet(folder: Path) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    path = folder / "rows.parquet"
    write_table(pa.table({"id": list(range(24)), "article": TEXTS, "meta": [{"x": 1}] * 24}), path)
    return path


def chats(field: str, who: str, what: str, one: str, two: str) -> list[dict[str, Any]]:
    return [{field: [{who: one, what: "What was done?"}, {who: two, what: text}]} for text in TEXTS]


MADE: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "text folder": (text_folder, {"kind": "text"}),
    "pattern": (lambda folder: text_folder(folder) / "*.txt", {"kind": "text"}),
    "brackets": (lambda folder: text_folder(folder).rename(folder / "a [1]"), {"kind": "text"}),
    "folder of two kinds": (unlike, {"kind": "jsonl", "text_field": "text"}),
    "rows": (lambda folder: rows(folder / "x.jsonl", *({"text": t} for t in TEXTS)), {"text_field": "text"}),
    "rows of no suffix": (
        lambda folder: rows(folder / "x", *({"text": t} for t in TEXTS)),
        {"kind": "jsonl"},
    ),
    "packed": (packed, {"kind": "jsonl", "text_field": "text"}),
    "another name": (
        lambda folder: rows(folder / "x.jsonl", *({"id": "a" * 9, "note": t} for t in TEXTS)),
        {"text_field": "note"},
    ),
    "chat": (
        lambda folder: rows(folder / "x.jsonl", *chats("messages", "role", "content", "user", "assistant")),
        {"messages_field": "messages"},
    ),
    "chat of another name": (
        lambda folder: rows(folder / "x.jsonl", *chats("dialog: #1", "role", "content", "user", "assistant")),
        {"messages_field": "dialog: #1"},
    ),
    "sharegpt": (
        lambda folder: rows(folder / "x.jsonl", *chats("conversations", "from", "value", "human", "gpt")),
        {"messages_field": "conversations"},
    ),
    "alpaca": (
        lambda folder: rows(
            folder / "x.jsonl", *({"instruction": "Say", "input": "", "output": t} for t in TEXTS)
        ),
        {"messages_field": None, "prompt_field": None, "text_field": "text"},
    ),
    "questions": (
        lambda folder: rows(folder / "x.jsonl", *({"question": "What?", "answer": t} for t in TEXTS)),
        {"prompt_field": "question", "answer_field": "answer"},
    ),
    "csv": (
        lambda folder: table(folder / "x.csv", *({"n": n, "body": t} for n, t in enumerate(TEXTS))),
        {"kind": "csv", "text_field": "body"},
    ),
    "tsv": (
        lambda folder: table(folder / "x.tsv", *({"n": n, "body": t} for n, t in enumerate(TEXTS))),
        {"kind": "csv", "text_field": "body"},
    ),
    "parquet": (parquet, {"kind": "parquet", "text_field": "article"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MADE)
def test_data_of_every_kind_gets_a_run_file_that_a_check_finds_good(
    kind: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made, expected = MADE[kind]
    found = cli("init", made(tmp_path), "--out", "my run.yaml")
    assert found.exit_code == 0, found.output
    assert "good: nothing that a check can see is wrong" in found.stdout
    (boundary,) = load(tmp_path / "my run.yaml").boundaries
    assert {name: getattr(boundary.data, name) for name in expected} == expected
    assert cli("check", "my run.yaml").exit_code == 0
    if kind == "folder of two kinds":
        assert "not read: 24 of kind text" in found.stdout
        assert "not read: 24 of kind text" in (tmp_path / "my run.yaml").read_text()


def test_each_place_is_a_boundary_with_a_name_of_its_own(cli: Cli, tmp_path: Path) -> None:
    folders = [tmp_path / one for one in ("a", "b", "exchange", "c")]
    for folder in folders:
        folder.mkdir()
    places = [rows(folder / "Zürich ward.jsonl", *({"text": t} for t in TEXTS)) for folder in folders]
    out = tmp_path / "run.yaml"
    assert cli("init", *places, "--out", out, "--name", "wards").exit_code == 0
    settings = load(out)
    assert settings.name == "wards"
    names = [boundary.name for boundary in settings.boundaries]
    assert names[0] == "z-rich-ward"
    assert len(set(names)) == 4


@pytest.mark.slow
def test_classes_are_shown_and_training_them_is_two_comments_away(cli: Cli, tmp_path: Path) -> None:
    place = rows(tmp_path / "x.jsonl", *({"text": t, "label": "ab"[n % 2]} for n, t in enumerate(TEXTS)))
    out = tmp_path / "run.yaml"
    assert cli("init", place, "--out", out).exit_code == 0
    text = out.read_text()
    for comment in ("  # task: classify", "  # labels: [a, b]", "      # label_field: label"):
        assert comment in text
        text = text.replace(comment, comment.replace("# ", ""))
    out.write_text(text)
    assert load(out).model.labels == ("a", "b")
    assert cli("check", out).exit_code == 0


@pytest.mark.slow
def test_without_data_it_is_a_demo(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("init").exit_code == 0
    assert [boundary.data.kind for boundary in load(Path("run.yaml")).boundaries] == ["stdlib", "stdlib"]


def test_nothing_is_overwritten(cli: Cli, tmp_path: Path) -> None:
    out = tmp_path / "run.yaml"
    out.write_text("mine")
    found = cli("init", "--out", out)
    assert (found.exit_code, out.read_text()) == (2, "mine")
    assert "is there already" in found.output
    out.unlink()
    out.symlink_to(tmp_path / "elsewhere")
    assert cli("init", "--out", out).exit_code == 2
    assert not (tmp_path / "elsewhere").exists()


def empty(path: Path) -> Path:
    path.write_text("")
    return path


def binary(path: Path) -> Path:
    path.write_bytes(b"\x89PNG\0\0\1")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda folder: folder / "nowhere.txt", "matches no file"),
        (lambda folder: empty(folder / "x.jsonl"), "has no rows"),
        (lambda folder: binary(folder / "x.bin"), "is no text, JSON, CSV or Parquet"),
        (lambda folder: folder, "has no file that ends with"),
        (lambda folder: rows(folder / "x.jsonl", {"a": 1}, {"a": 2}), "no field of its rows is text"),
        (lambda folder: rows(folder / "x.jsonl", {"text": "a"}), "nothing was written"),
        (lambda folder: rows(folder / "x.jsonl", *({"text": t} for t in TEXTS), {"text": 3}), "x.jsonl:25"),
        (lambda folder: text_folder(folder) / "0.txt", "nothing was written"),
    ],
)
def test_data_that_will_not_do_is_named_and_nothing_is_written(
    made: Callable[[Path], Path], said: str, cli: Cli, tmp_path: Path
) -> None:
    out = tmp_path / "out.yaml"
    found = cli("init", made(tmp_path), "--out", out)
    assert found.exit_code == 2
    assert said in found.output.replace("\n", " ")
    assert not out.exists()
