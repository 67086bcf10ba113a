"""A smaller vocabulary: the byte-level BPE of a model with its most used tokens, lossless for every text.

A token of a BPE is made of two others. A text that needs a token needs all that it is made of, so a token is counted
for every one that is made of it: the most counted ones are closed under making. Every byte has a token, also those
that the large vocabulary lacks.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from echelon.errors import ConfigError

SIZE = 8192
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The first tokens of the small vocabulary; the first ends a document."""


@dataclass(frozen=True)
class Vocabulary:
    """A smaller vocabulary.

    Attributes:
        tokenizer: lossless for every text.
        rows: for each of its tokens in order, the token's row in the large model; -1 where that has none.
    """

    tokenizer: PreTrainedTokenizerFast
    rows: tuple[int, ...]


def token_bytes() -> tuple[str, ...]:
    """The 256 signs that stand for bytes in a byte-level BPE, in a fixed order."""
    return tuple(sorted(pre_tokenizers.ByteLevel.alphabet()))


def pair_of(merge: Any) -> tuple[str, str]:
    """A merge of a tokenizer's JSON as a pair, in either of the two forms that there are."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def counted(ids: Iterable[int], model: Mapping[str, Any]) -> Counter[str]:
    """How often each token is needed: for itself, or as part of another.

    Args:
        ids: tokens of a text.
        model: the `model` of the tokenizer's JSON.
    """
    names = {number: token for token, number in model["vocab"].items()}
    needed: Counter[str] = Counter()
    for number, count in Counter(ids).items():
        needed[names[number]] += count
    for merge in reversed(model["merges"]):  # later tokens are made of earlier ones
        first, second = pair_of(merge)
        count = needed[first + second]
        needed[first] += count
        needed[second] += count
    return needed


def prune(large: PreTrainedTokenizerFast, texts: Sequence[str], size: int = SIZE) -> Vocabulary:
    """The vocabulary of so many tokens that the texts need most.

    Args:
        large: a tokenizer with a byte-level BPE and without a normalizer.
        texts: general text.
        size: tokens, with the special ones.

    Raises:
        ConfigError: it is another kind of tokenizer, or the size has no room for all bytes.
    """
    description = json.loads(large.backend_tokenizer.to_str())
    model, before = description["model"], description["pre_tokenizer"]
    if model["type"] != "BPE" or not before or before["type"] != "ByteLevel" or description["normalizer"]:
        raise ConfigError(
            "only a byte-level BPE without a normalizer can be pruned: this is another tokenizer"
        )
    alphabet = token_bytes()
    if size < len(SPECIAL) + len(alphabet):
        raise ConfigError(f"{size} tokens have no room for {len(alphabet)} bytes and {len(SPECIAL)} marks")
    ids = (number for text in texts for number in large.encode(text, add_special_tokens=False))
    needed = counted(ids, model)
    made: dict[str, tuple[str, str]] = {}
    for merge in model["merges"]:
        made.setdefault("".join(pair_of(merge)), pair_of(merge))
    place = {token: number for number, token in enumerate(made)}
    wanted = sorted((token for token in made if needed[token]), key=lambda t: (-needed[t], place[t]))
    kept = set(wanted[: size - len(SPECIAL) - len(alphabet)])
    tokens = [*SPECIAL, *alphabet, *sorted(kept, key=place.__getitem__)]
    merges = [pair_of(merge) for merge in model["merges"] if "".join(pair_of(merge)) in kept]
    description["added_tokens"] = [_mark(number, token) for number, token in enumerate(SPECIAL)]
    description["post_processor"] = None
    description["model"] = {
        **model, "vocab": {token: number for number, token in enumerate(tokens)}, "merges": merges, "unk_token": None,
    }  # fmt: skip
    small = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        clean_up_tokenization_spaces=False,
    )
    known = large.get_vocab()
    return Vocabulary(small, tuple(known.get(token, -1) for token in tokens))


def _mark(number: int, token: str) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": token, "special": True, **flags}
