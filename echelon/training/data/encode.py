"""Turn documents into token ids, and mark which tokens the loss counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from echelon.errors import ConfigError
from echelon.training.data.conversations import Completion, Conversation
from echelon.training.data.rendering import Rendering, completed, has_marks, render
from echelon.training.data.sources import LeftOut, RawDocument

Tokens = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

_BATCH = 64
NO_TOKEN = "no token that counts"


class Tokenizer(Protocol):
    """What is used of a transformers tokenizer."""

    pad_token_id: Any
    eos_token: Any
    eos_token_id: Any
    chat_template: Any
    all_special_tokens: Any
    is_fast: Any

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool, **options: Any) -> Any:
        """Token ids of each text under the key `input_ids`."""
        ...

    def apply_chat_template(
        self, conversation: Any, *, tokenize: bool, add_generation_prompt: bool, **options: Any
    ) -> Any:
        """The conversation as text, or as tokens.

        Args:
            conversation: messages, each with `role` and `content`.
            tokenize: give token ids in place of text.
            add_generation_prompt: end with what opens the assistant's next turn.
            **options: what the template of this tokenizer takes besides.
        """
        ...


@dataclass(frozen=True, slots=True)
class Document:
    """Token ids int32[n] of one document; `counted` bool[n] marks the targets that the loss counts.

    `label` is the number of its class, for a classifier, whose loss counts documents and not tokens. `open_ended` says
    whether the end-of-sequence token behind the document counts: it is what ends a text, and an answer without a mark.
    """

    id: str
    domain: str
    tokens: Tokens
    counted: Mask
    label: int | None = None
    open_ended: bool = False

    @property
    def size(self) -> int:
        """Number of tokens."""
        return self.tokens.size


def encode(
    documents: Sequence[RawDocument], tokenizer: Tokenizer, left_out: LeftOut | None = None
) -> list[Document]:
    """The documents as token ids, in the same order; those without a token that counts are left out.

    Every token of a text is counted; of a conversation only what the assistant answers, end mark included, and of a
    prompt with its completion the latter: unless the data's settings let everything count. A conversation is rendered
    and tokenized as one text (`echelon.training.data.rendering`).

    Args:
        documents: texts and conversations.
        tokenizer: of the model.
        left_out: takes how many were left out.

    Raises:
        ConfigError: the chat template cannot render a conversation, or answers cannot be told from the rest.
    """
    encoded = []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        for document, pieces in zip(batch, _encoded(batch, tokenizer), strict=True):
            tokens, counted, open_ended = pieces
            if counted.any():
                encoded.append(
                    Document(
                        document.key or document.id, document.domain, tokens, counted, open_ended=open_ended
                    )
                )
            elif left_out is not None:
                left_out.rows[NO_TOKEN] += 1
    return encoded


def _encoded(documents: Sequence[RawDocument], tokenizer: Tokenizer) -> Iterator[tuple[Tokens, Mask, bool]]:
    """Of each document its tokens, which of them count, and whether the end mark behind it counts, too."""
    plain = [document.content for document in documents if isinstance(document.content, str)]
    ids = iter(tokenizer(plain, add_special_tokens=False, verbose=False)["input_ids"] if plain else ())
    for document in documents:
        if isinstance(document.content, str):
            tokens = np.asarray(next(ids), dtype=np.int32)
            yield tokens, np.ones(tokens.size, np.bool_), True
            continue
        content = document.content
        if isinstance(content, Completion):
            yield _spanned(completed(content), tokenizer)
            continue
        conversation = content if isinstance(content, Conversation) else Conversation(content)
        if has_marks(tokenizer.chat_template) and not (conversation.skips_answers or conversation.whole):
            yield *_marked(conversation, tokenizer, document.id), False
        else:
            yield _spanned(render(conversation, tokenizer, document.id), tokenizer)


def _marked(conversation: Conversation, tokenizer: Tokenizer, where: str) -> tuple[Tokens, Mask]:
    """By a template that marks answers itself."""
    try:
        encoded = tokenizer.apply_chat_template(
            [turn.message() for turn in conversation.answered().turns],
            tools=conversation.tools,
            tokenize=True,
            add_generation_prompt=False,
            return_dict=True,
            return_assistant_tokens_mask=True,
            **conversation.variables,
        )
    except Exception as error:  # a template is a program and may raise anything, for example on a role
        raise ConfigError(
            f"{where}: the tokenizer's chat template refused the conversation: {error}"
        ) from error
    return np.asarray(encoded["input_ids"], np.int32), np.asarray(encoded["assistant_masks"], np.bool_)


def _spanned(rendering: Rendering, tokenizer: Tokenizer) -> tuple[Tokens, Mask, bool]:
    """The whole text as tokens; those count that have a character of an answer."""
    if not tokenizer.is_fast:
        raise ConfigError(
            "the model's tokenizer does not say where in the text its tokens are, so answers cannot be told from the "
            "rest: use the model's fast tokenizer (tokenizer.json)"
        )
    encoded = tokenizer(
        [rendering.text], add_special_tokens=False, verbose=False, return_offsets_mapping=True
    )
    offsets = np.asarray(encoded["offset_mapping"][0], dtype=np.int64).reshape(-1, 2)
    counted = np.zeros(len(offsets), np.bool_)
    for start, end in rendering.spans:
        counted |= (offsets[:, 1] > start) & (offsets[:, 0] < end) & (offsets[:, 0] < offsets[:, 1])
    return np.asarray(encoded["input_ids"][0], dtype=np.int32), counted, rendering.open_ended


def encode_rows(
    documents: Sequence[RawDocument],
    tokenizer: Tokenizer,
    labels: Sequence[str],
    length: int,
    *,
    left_out: LeftOut | None = None,
) -> list[Document]:
    """Texts with a class each, as the tokenizer's own sequences of at most `length` tokens, special ones included.

    The class is the place of the label in `labels`; texts that become no token are left out.

    Args:
        documents: texts with labels.
        tokenizer: of the model.
        labels: names of the run's classes.
        length: most tokens of a row.
        left_out: takes how many were left out.

    Raises:
        ConfigError: a label is not among them.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    encoded = []
    for start in range(0, len(documents), _BATCH):
        batch = documents[start : start + _BATCH]
        texts = [_classified(document, numbers) for document in batch]
        encoding = tokenizer(
            texts, add_special_tokens=True, verbose=False, truncation=True, max_length=length
        )
        for document, ids in zip(batch, encoding["input_ids"], strict=True):
            tokens = np.asarray(ids, dtype=np.int32)
            if tokens.size:
                counted, number = np.ones(tokens.size, np.bool_), numbers[str(document.label)]
                encoded.append(
                    Document(document.key or document.id, document.domain, tokens, counted, number)
                )
            elif left_out is not None:
                left_out.rows[NO_TOKEN] += 1
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
