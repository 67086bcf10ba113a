"""Rows with a class each, in batches: padded together, and no wider than their longest needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from echelon.errors import ConfigError
from echelon.training.data.encode import Document, Mask, Tokenizer, Tokens

MULTIPLE = 8
"""Widths of batches are multiples of this, up to the longest sequence: few shapes, and ones that accelerators like."""

Ids = npt.NDArray[np.int64]
Indices = npt.NDArray[np.intp]


def padding_of(tokenizer: Tokenizer) -> int:
    """The token that rows are padded with: the tokenizer's own, or its end-of-sequence token if it has none.

    Raises `ConfigError` for a tokenizer that has neither.
    """
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(token, int):
            return token
    raise ConfigError(
        "the model's tokenizer has no padding and no end-of-sequence token; set one in its files"
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """`tokens` int32[n, w], padded at the end; `lengths` int32[n] without padding; classes `labels` int64[n].

    `most` is the longest sequence that there may be; w is at most that.
    """

    tokens: Tokens
    lengths: npt.NDArray[np.int32]
    labels: Ids
    most: int

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, which: Indices) -> tuple[Ids, Ids, Mask]:
        """Tokens int64[b, l], classes int64[b], and which positions are not padding, bool[b, l].

        l is the longest of these rows, rounded up to `MULTIPLE` but at most `most`.
        """
        lengths = self.lengths[which]
        width = _width(int(lengths.max()), self.most)
        mask = np.arange(width) < lengths[:, None]
        return self.tokens[which, :width].astype(np.int64), self.labels[which], mask

    def every(self, stride: int) -> Rows:
        """Every so many-th row."""
        return Rows(self.tokens[::stride], self.lengths[::stride], self.labels[::stride], self.most)

    def at_most(self, tokens: int) -> Rows:
        """Every k-th row, about so many tokens in all: the same ones each time, of every length."""
        return self.every(max(1, -(-int(self.lengths.sum()) // tokens)))


def _width(longest: int, most: int) -> int:
    return min(-(-longest // MULTIPLE) * MULTIPLE, most)


def pad_rows(documents: Sequence[Document], length: int, pad: int) -> Rows:
    """The documents as rows in the order given; `length` is the longest that they may be.

    Args:
        documents: encoded texts with their labels.
        length: most tokens of a row. The width of the rows never exceeds it.
        pad: the token that fills a row behind its text.
    """
    lengths = np.array([document.size for document in documents], dtype=np.int32)
    tokens = np.full((len(documents), _width(int(lengths.max(initial=0)), length)), pad, dtype=np.int32)
    for row, document in zip(tokens, documents, strict=True):
        row[: document.size] = document.tokens
    labels = np.array([document.label for document in documents], dtype=np.int64)
    return Rows(tokens, lengths, labels, length)


def longest_first(documents: Sequence[Document]) -> list[Document]:
    """The order in which an evaluation reads rows: those of one batch are about equally long."""
    return sorted(documents, key=lambda document: -document.size)
