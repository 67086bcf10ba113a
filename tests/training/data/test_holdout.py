"""The held-out documents are a sample of all, whatever their sizes; answers are kept when something must be cut."""

from __future__ import annotations

import numpy as np
import pytest

from echelon.training.data.encode import Document
from echelon.training.data.holdout import split


def text(name: str, size: int) -> Document:
    tokens = np.arange(size, dtype=np.int32)
    return Document(name, "d", tokens, np.ones(size, np.bool_), open_ended=True)


def talk(name: str, prompt: int, answer: int) -> Document:
    counted = np.arange(prompt + answer) >= prompt
    return Document(name, "d", np.arange(prompt + answer, dtype=np.int32), counted)


@pytest.mark.parametrize(
    ("books", "book", "notes", "note"), [(3, 9000, 200, 30), (1, 50_000, 40, 25), (12, 800, 900, 5)]
)
def test_large_and_small_documents_stand_on_both_sides(books: int, book: int, notes: int, note: int) -> None:
    documents = [text(f"book-{k}", book) for k in range(books)] + [
        text(f"note-{k}", note) for k in range(notes)
    ]
    training, held = split(documents, 0.1, 10**9, 0)
    for kind, size in (("book", books * book), ("note", notes * note)):
        share = sum(one.size for one in held if one.id.startswith(kind)) / size
        assert 0.02 < share < 0.15, f"{kind}: {share:.3f} of the tokens are held out"
        assert any(one.id.startswith(kind) for one in training)
    assert sum(one.size for one in (*training, *held)) == sum(one.size for one in documents)


def test_what_is_trained_of_a_document_and_what_is_held_out_of_it_do_not_overlap() -> None:
    training, held = split([text("book", 1000), *(text(f"note-{k}", 10) for k in range(20))], 0.1, 10**9, 0)
    rest = next(one for one in training if one.id == "book")
    end = next(one for one in held if one.id.startswith("book"))
    assert np.concatenate([rest.tokens, end.tokens]).tolist() == list(range(1000))


def test_documents_of_one_kind_are_split_as_ever() -> None:
    documents = [text(f"d{k}", 50 + k) for k in range(60)]
    training, held = split(documents, 0.1, 10**9, 0)
    assert not any("#" in one.id for one in held)
    assert {one.id for one in training} | {one.id for one in held} == {one.id for one in documents}


def test_a_prompt_is_cut_before_its_answer_is() -> None:
    documents = [talk(f"d{k:03d}", 300, 8) for k in range(400)]
    _, held = split(documents, 0.1, 512, 0)
    assert sum(one.size for one in held) <= 512
    assert len(held) > 10
    for one in held:
        assert one.counted.sum() == min(8, one.size)
        assert one.tokens[-1] == 307
    _, whole = split(documents, 0.1, 10**9, 0)
    assert all(one.counted.sum() == 8 for one in whole)


def test_rows_with_a_class_are_never_cut_in_two() -> None:
    documents = [text("long", 1000), *(text(f"d{k}", 10) for k in range(30))]
    training, held = split(documents, 0.1, 10**9, 0, whole=True)
    assert sorted(one.size for one in (*training, *held)) == sorted(one.size for one in documents)
