"""Turn documents into token ids, and mark which tokens the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echelon.errors import ConfigError
from echelon.training.data.sources import RawDocument, Turn

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_BATCH = 64


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    pad_token_id: Any
    eos_token: Any
    eos_token_id: Any
    chat_template: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool, **options: Any) -> Any:
        """Token ids of each text under the key `input_ids`."""
        ...

    def apply_chat_template(self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool) -> Any:
        """The conversation as text."""
        ...


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids int32[n] of one document; `counted` bool[n] marks the targets that the loss counts.

    `label` is the number of its class, for a classifier, whose loss counts documents and not tokens.
    """

    id: str
    domain: str
    tokens: Tokens
    counted: Mask
    label: int | None = None

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.tokens.size


def encode(documents: Sequence[RawDocument], tokenizer: Tokenizer) -> list[Document]:
    """The documents as token ids, in the same order; those that become no token at all are left out.

    Every token of a text is counted; of a conversation only what the assistant answers, end mark included.
    Raises `ConfigError` for a chat template that cannot be taken apart.
    """
    encoded = []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        segments = [list(_segments(document, tokenizer)) for document in batch]
        texts = [text for parts in segments for text, _ in parts]
        ids = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"])
        for document, parts in zip(batch, segments, strict=True):
            pieces = [(np.asarray(next(ids), dtype=np.int32), counted) for _, counted in parts]
            tokens = np.concatenate([piece for piece, _ in pieces])
            mask = np.concatenate([np.full(piece.size, counted) for piece, counted in pieces])
            if mask.any():
                encoded.append(Document(document.id, document.domain, tokens, mask))
    return encoded


def encode_rows(
    documents: Sequence[RawDocument], tokenizer: Tokenizer, labels: Sequence[str], length: int
) -> list[Document]:
    """Texts with a class each, as the tokenizer's own sequences of at most `length` tokens, special ones included.

    The class is the place of the label in `labels`; texts that become no token are left out. Raises `ConfigError` for a
    label that is not among them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    encoded = []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        texts = [_classified(document, numbers) for document in batch]
        found = tokenizer(texts, add_special_tokens=True, verbose=False, truncation=True, max_length=length)
        for document, ids in zip(batch, found["input_ids"], strict=True):
            tokens = np.asarray(ids, dtype=np.int32)
            if tokens.size:
                counted, number = np.ones(tokens.size, np.bool_), numbers[str(document.label)]
                encoded.append(Document(document.id, document.domain, tokens, counted, number))
    return encoded


def _classified(document: RawDocument, numbers: Mapping[str, int]) -> str:
    if document.label not in numbers:
        shown = ", ".join(list(numbers)[:10]) + (", …" if len(numbers) > 10 else "")
        raise ConfigError(
            f"{document.id}: label {document.label!r} is not one of model.labels ({shown}): correct the row, or add it"
        )
    if not isinstance(document.content, str):
        raise ConfigError(f"{document.id}: a conversation has no class; use rows of text and label")
    return document.content


def _segments(document: RawDocument, tokenizer: Tokenizer) -> Iterator[tuple[str, bool]]:
    """The document's text in pieces, each with whether the loss counts it."""
    if isinstance(document.content, str):
        yield document.content, True
        return
    done = ""
    for index, turn in enumerate(document.content):
        if turn.role == "assistant":
            before = _render(document.content[:index], tokenizer, prompt=True)
            after = _render(document.content[: index + 1], tokenizer, prompt=False)
            if not before.startswith(done) or not after.startswith(before):
                raise ConfigError(
                    f"{document.id}: the tokenizer's chat template rewrites earlier messages when one is "
                    "added, so answers cannot be told from the rest; keep one answer per conversation"
                )
            yield before[len(done) :], False
            yield after[len(before) :], True
            done = after


def _render(turns: Sequence[Turn], tokenizer: Tokenizer, *, prompt: bool) -> str:
    """The conversation as text; `prompt` adds the header of the answer that comes next."""
    if tokenizer.chat_template is None:
        end = tokenizer.eos_token
        parts = [f"### {t.role}\n{t.content}{end if t.role == 'assistant' else ''}\n\n" for t in turns]
        return "".join(parts) + ("### assistant\n" if prompt else "")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt)
    except Exception as error:  # a template is a program and may raise anything, for example on a role
        raise ConfigError(f"the tokenizer's chat template refused a conversation: {error}") from error
    return str(text)
