"""A check of data: the counts of a run, every fault with its line, and memory that does not grow with the file."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from echelon.config.training import DataSettings, ModelSettings
from echelon.preflight import data as module
from echelon.preflight.data import ALIKE, Tally, check_source
from echelon.preflight.findings import MAX_FAULTS, RunFault, SourceFacts
from echelon.training.data.boundary import load_boundary, load_rows
from echelon.training.learner import BoundarySpec
from echelon.training.model import load_tokenizer

TOKENIZER = load_tokenizer(ModelSettings(model="echelon:micro"))
DEVICES = ("a-0", "a-1", "a-2")


def spec(source: str, **fields: Any) -> BoundarySpec:
    return BoundarySpec(name="a", devices=DEVICES, data=DataSettings(source=source, **fields))


def checked(
    of: BoundarySpec, labels: tuple[str, ...] = ()
) -> tuple[SourceFacts | None, list[RunFault], Tally]:
    faults: list[RunFault] = []
    tally = Tally("boundary a", faults, lambda _read: None)
    return check_source(of, TOKENIZER, labels, 64, tally), faults, tally


def rows(path: Path, count: int, words: int = 30) -> Path:
    with path.open("w") as file:
        for number in range(count):
            text = " ".join(f"word{number * 7 % 100} pump {index}" for index in range(words))
            file.write(json.dumps({"text": text, "kind": "a" if number % 2 else "b"}) + "\n")
    return path


def test_counts_are_those_of_a_run(tmp_path: Path) -> None:
    of = spec(
        f"jsonl:{rows(tmp_path / 'x.jsonl', 200)}", max_validation_tokens=300, partition="dirichlet(0.3)"
    )
    found, faults, tally = checked(of)
    assert faults == []
    assert found is not None
    assert found.exact
    assert found.facts == load_boundary(of.data, DEVICES, TOKENIZER, 64).facts
    assert tally.read_bytes == (tmp_path / "x.jsonl").stat().st_size


def test_counts_of_rows_with_classes_too(tmp_path: Path) -> None:
    of = spec(f"jsonl:{rows(tmp_path / 'x.jsonl', 100)}", label_field="kind", max_validation_tokens=300)
    found, _, _ = checked(of, ("a", "b"))
    assert found is not None
    assert found.facts == load_rows(of.data, DEVICES, TOKENIZER, 64, ("a", "b")).facts
    _, faults, _ = checked(of, ("a", "c"))
    assert len(faults) == ALIKE
    assert "x.jsonl:1: label 'b' is not one of model.labels" in str(faults[0])


@pytest.mark.slow
def test_a_sample_of_a_large_source_is_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = spec(f"jsonl:{rows(tmp_path / 'x.jsonl', 7000)}", max_validation_tokens=1000)
    exact, _, _ = checked(of)
    monkeypatch.setattr(module, "EXACT", 1000)
    about, faults, _ = checked(of)
    assert faults == []
    assert exact is not None
    assert about is not None
    assert (exact.exact, about.exact) == (True, False)
    assert about.facts.documents == exact.facts.documents == 7000
    assert about.facts.tokens == pytest.approx(exact.facts.tokens, rel=0.05)
    assert about.facts.training_tokens == pytest.approx(exact.facts.training_tokens, rel=0.05)
    assert about.facts.validation_tokens == 1000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 1000)
    peaks = []
    for count in (4000, 4000, 16_000):  # more than a buffer each; the first fills what is kept
        of = spec(f"jsonl:{rows(tmp_path / 'x.jsonl', count, words=20)}")
        tracemalloc.start()
        found, _, _ = checked(of)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found is not None
        assert found.facts.documents == count
    _, small, large = peaks
    size = (tmp_path / "x.jsonl").stat().st_size
    assert size > 4_000_000
    assert large < small + size / 16


def test_a_document_too_few_is_said_of_a_large_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EXACT", 10)
    _, faults, _ = checked(spec(f"jsonl:{rows(tmp_path / 'x.jsonl', 3)}"))
    assert "3 documents cannot be dealt to 3 devices" in str(faults[0])


def test_every_row_that_cannot_be_read_is_listed(tmp_path: Path) -> None:
    lines = ['{"text": "good text"}', "{", '{"text": 5}', '{"body": "x"}', "[]", '{"text": "more text"}']
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    (tmp_path / "y.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "\xff"}\n')
    (tmp_path / "z.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n' * 999)[:-9])
    found, faults, tally = checked(spec(f"jsonl:{tmp_path}"))
    assert found is None
    said = [fault.message for fault in faults]
    assert len(said) == tally.count == 6
    for part, where in zip(
        said, ("x.jsonl:2", "x.jsonl:3", "x.jsonl:4", "x.jsonl:5", "y.jsonl:2", "z.jsonl.gz"), strict=True
    ):
        assert where in part


def test_rows_of_tables_are_listed_too(tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    (tmp_path / "x.csv").write_text("text,n\nfirst text,1\nsecond\nthird text,3\n")
    _, faults, _ = checked(spec(f"csv:{tmp_path / 'x.csv'}"))
    assert ["x.csv:3" in str(fault) for fault in faults] == [True]
    parquet.write_table(Table.from_pylist([{"text": "a"}, {"text": None}]), tmp_path / "x.parquet")
    (tmp_path / "y.parquet").write_bytes(b"PAR1 is not enough")
    _, faults, _ = checked(spec(f"parquet:{tmp_path / '*.parquet'}"))
    assert ["x.parquet:2" in str(faults[0]), "y.parquet" in str(faults[1])] == [True, True]


def test_one_fault_of_many_rows_is_said_in_few_lines(tmp_path: Path) -> None:
    lines = [*['{"txt": "a"}'] * 60, '{"text": 3}', *['{"txt": "b"}'] * 39, *['{"other": 1}'] * ALIKE]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    _, faults, tally = checked(spec(f"jsonl:{tmp_path / 'x.jsonl'}"))
    said = [fault.message.removeprefix(f"{tmp_path}/") for fault in faults]
    places = [message.partition(" ")[0] for message in said]
    assert places == [
        "x.jsonl:1",
        "x.jsonl:2",
        "x.jsonl:3",
        "x.jsonl:61:",
        *(f"x.jsonl:{n}" for n in (101, 102, 103)),
    ]
    assert said[2].endswith(" (and 96 more rows of this file)")
    assert [message.endswith("of this file)") for message in said].count(True) == 1
    assert (tally.count, tally.others) == (103, 0)


def test_only_so_many_are_described(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("".join(f'{{"field{n}": 1}}\n' for n in range(100)))
    _, faults, tally = checked(spec(f"jsonl:{tmp_path / 'x.jsonl'}"))
    assert (len(faults), tally.count, tally.others) == (MAX_FAULTS, 100, 80)


def test_conversations_that_a_template_refuses_are_listed_by_row(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(ModelSettings(model="echelon:micro"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('no bad words') }}{% endif %}"
        "{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    talks = [
        [{"role": "user", "content": "ask"}, {"role": "assistant", "content": text}]
        for text in ("good answer", "bad answer", "fine answer", "a bad one")
    ]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    faults: list[RunFault] = []
    tally = Tally("boundary a", faults, lambda _read: None)
    assert check_source(spec(f"jsonl:{tmp_path / 'x.jsonl'}"), tokenizer, (), 64, tally) is None
    assert ["x.jsonl:2" in str(faults[0]), "x.jsonl:4" in str(faults[1])] == [True, True]
    assert len(faults) == 2


def test_without_a_tokenizer_the_rows_are_read_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text("no\n" + '{"text": "good"}\n' * 9)
    faults: list[RunFault] = []
    tally = Tally("boundary a", faults, lambda _read: None)
    assert check_source(spec(f"jsonl:{tmp_path / 'x.jsonl'}"), None, (), 64, tally) is None
    assert len(faults) == 1
