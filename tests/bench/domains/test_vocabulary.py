"""A smaller vocabulary loses nothing of any text, and keeps what is used most."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bench.domains.vocabulary import SPECIAL, Vocabulary, prune, token_bytes
from echelon.errors import ConfigError

BASE = Path(__file__).resolve().parents[3] / "echelon/assets/base"
TEXTS = [
    "for name in names:\n    print(name)\n" * 20,
    "return the value of the name, or 0\n" * 20,
    "while not done: send(words)\n",
]
SIZE = 300


@cache
def large() -> Any:
    return AutoTokenizer.from_pretrained(BASE)


@cache
def small() -> Vocabulary:
    return prune(large(), TEXTS, SIZE)


def ids(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer.encode(text, add_special_tokens=False)
    return found


def test_it_has_every_byte_and_the_most_used_tokens() -> None:
    tokenizer = small().tokenizer
    vocabulary = tokenizer.get_vocab()
    assert len(vocabulary) == SIZE == len(small().rows)
    assert [vocabulary[mark] for mark in SPECIAL] == [0, 1, 2]
    assert all(sign in vocabulary for sign in token_bytes())
    assert len(ids(tokenizer, TEXTS[0])) < len(TEXTS[0]) / 2


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_every_text_comes_back(text: str) -> None:
    assert small().tokenizer.decode(ids(small().tokenizer, text)) == text


@given(st.binary())
@settings(max_examples=100, deadline=None)
def test_every_byte_comes_back(raw: bytes) -> None:
    text = raw.decode("utf-8", errors="replace")
    assert small().tokenizer.decode(ids(small().tokenizer, text)) == text


def test_bytes_that_the_large_vocabulary_lacks_are_added_without_a_row() -> None:
    description = json.loads(large().backend_tokenizer.to_str())
    lacking = set(token_bytes()[:5])
    vocabulary = {t: n for t, n in description["model"]["vocab"].items() if not lacking & set(t)}
    description["model"]["vocab"] = vocabulary
    description["model"]["merges"] = [
        pair for pair in description["model"]["merges"] if not lacking & set("".join(pair))
    ]
    poor = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
    found = prune(poor, ["plain names\n"], SIZE)
    names = {number: token for token, number in found.tokenizer.get_vocab().items()}
    assert {names[at] for at, row in enumerate(found.rows) if row < 0} >= lacking
    everything = "".join(map(chr, range(0x250)))
    assert found.tokenizer.decode(ids(found.tokenizer, everything)) == everything


def test_a_row_is_that_of_the_same_token() -> None:
    known, names = large().get_vocab(), {n: t for t, n in small().tokenizer.get_vocab().items()}
    for at, row in enumerate(small().rows):
        assert row == known.get(names[at], -1)


def test_with_all_tokens_a_text_is_cut_as_the_large_one_cuts_it() -> None:
    text = Path(__file__).read_text() + BASE.joinpath("config.json").read_text()
    all_of_it = prune(large(), [text], 4000)
    names = {n: t for t, n in large().get_vocab().items()}
    mine = {n: t for t, n in all_of_it.tokenizer.get_vocab().items()}
    assert [mine[one] for one in ids(all_of_it.tokenizer, text)] == [names[one] for one in ids(large(), text)]


def test_it_is_saved_and_loaded(tmp_path: Path) -> None:
    small().tokenizer.save_pretrained(tmp_path)
    again: Any = AutoTokenizer.from_pretrained(tmp_path)
    text = "for name in names: \x00 ü 😀\r\n"
    assert ids(again, text) == ids(small().tokenizer, text)
    assert again.decode(ids(again, text)) == text
    assert (again.eos_token_id, again.pad_token_id, again.bos_token_id) == (0, 0, 1)


def test_another_kind_of_tokenizer_and_too_small_a_size_are_refused() -> None:
    with pytest.raises(ConfigError, match="258 tokens have no room for 256 bytes and 3 marks"):
        prune(large(), TEXTS, 258)
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(ConfigError, match="only a byte-level BPE without a normalizer can be pruned"):
        prune(PreTrainedTokenizerFast(tokenizer_object=words), TEXTS)
