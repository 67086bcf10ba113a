"""Pack documents into sequences of one length, so that no step of training is spent on padding."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from echelon.training.data.encode import Document, Mask, Tokens


@dataclass(frozen=True, slots=True)
class Blocks:
    """Sequences of L + 1 tokens: positions 0..L-1 are input, 1..L are targets.

    `tokens` int32[n, L + 1], `counted` bool[n, L] marks the targets that the loss counts, `lengths` int32[n]
    is the number of targets that are not padding (only the last block of a stream has padding). `starts` bool[n, L]
    marks the inputs that begin a document, where blocks hold several; None: each block is of one document.
    """

    tokens: Tokens
    counted: Mask
    lengths: npt.NDArray[np.int32]
    starts: Mask | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def every(self, stride: int) -> Blocks:
        """Every so many-th block."""
        return _select(self, np.arange(0, len(self), stride))

    def positions(self, chosen: npt.NDArray[np.intp]) -> npt.NDArray[np.int64]:
        """int64[b, L]: of each input of these blocks, how far it is from the beginning of its document, or block."""
        places = np.arange(self.tokens.shape[1] - 1)
        if self.starts is None:
            return np.broadcast_to(places, (len(chosen), places.size))
        begin = np.maximum.accumulate(np.where(self.starts[chosen], places, 0), axis=1)
        return np.asarray(places - begin, dtype=np.int64)

    def at_most(self, tokens: int) -> Blocks:
        """Every k-th block, about so many counted tokens in all: the same ones each time, of every length."""
        return self.every(max(1, -(-int(np.count_nonzero(self.counted)) // tokens)))


def _cut(stream: Tokens, counted: Mask, length: int, eos: int) -> Blocks:
    """Blocks of a stream; consecutive blocks overlap by one token, so every token but the first is a
    target."""
    targets = stream.size - 1
    count = -(-targets // length)
    padded = np.full(count * length + 1, eos, dtype=np.int32)
    padded[: stream.size] = stream
    mask = np.zeros(count * length, dtype=np.bool_)
    mask[:targets] = counted[1:]
    tokens = np.lib.stride_tricks.sliding_window_view(padded, length + 1)[::length]
    lengths = np.full(count, length, dtype=np.int32)
    if count:
        lengths[-1] = targets - (count - 1) * length
    return Blocks(np.ascontiguousarray(tokens), mask.reshape(count, length), lengths)


def _select(blocks: Blocks, which: npt.NDArray[np.intp]) -> Blocks:
    starts = None if blocks.starts is None else blocks.starts[which]
    return Blocks(blocks.tokens[which], blocks.counted[which], blocks.lengths[which], starts)


def _stream(documents: Sequence[Document], eos: int) -> tuple[Tokens, Mask]:
    """EOS, then each document followed by EOS. The end of a text counts; most conversations have their own."""
    mark = np.array([eos], dtype=np.int32)
    tokens, counted = [mark], [np.array([False])]
    for document in documents:
        tokens += [document.tokens, mark]
        counted += [document.counted, np.array([document.open_ended])]
    return np.concatenate(tokens), np.concatenate(counted)


def pack_training(documents: Sequence[Document], length: int, eos: int) -> Blocks:
    """The documents as one stream with EOS between them; blocks without a counted target are dropped.

    Attention is not masked at document borders: a block may begin with the end of another document, as is
    usual in pre-training. Where documents begin is kept, for models that are to see their own document alone.

    Args:
        documents: encoded documents, in the order of the stream.
        length: targets of a block; a block has one token more.
        eos: the token before, between and behind documents; it fills the last block, too.
    """
    tokens, counted = _stream(documents, eos)
    blocks = _cut(tokens, counted, length, eos)
    starts = np.zeros(len(blocks) * length, np.bool_)
    # A document begins with the mark before it, which is what its first token is predicted from.
    starts[np.cumsum([0, *(document.size + 1 for document in documents)])[:-1]] = True
    blocks = replace(blocks, starts=starts.reshape(len(blocks), length))
    return _select(blocks, np.flatnonzero(blocks.counted.any(axis=1)))


def pack_validation(documents: Sequence[Document], length: int, eos: int) -> Blocks:
    """Each document in blocks of its own, longest blocks first.

    No block crosses a document, so the loss of a boundary is the sum over its devices, however the documents
    were dealt.

    Args:
        documents: encoded documents.
        length: targets of a block; a block has one token more.
        eos: the token before and behind each document; it fills its last block, too.
    """
    parts = [_cut(*_stream([document], eos), length, eos) for document in documents]
    if not parts:
        shape = (0, length)
        return Blocks(np.empty((0, length + 1), np.int32), np.empty(shape, np.bool_), np.empty(0, np.int32))
    blocks = Blocks(
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.counted for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )
    blocks = _select(blocks, np.flatnonzero(blocks.counted.any(axis=1)))
    return _select(blocks, np.argsort(-blocks.lengths, kind="stable"))


class Order:
    """The order in which one device reads its blocks: a fresh permutation per epoch, for ever.

    It depends on the seed, the device's name and the cursor (blocks read so far) alone.
    """

    def __init__(self, seed: int, device: str, count: int) -> None:
        self._key = int.from_bytes(hashlib.sha256(f"{seed}\0order\0{device}".encode()).digest(), "little")
        self._count = count
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.intp)

    def take(self, cursor: int, count: int) -> npt.NDArray[np.intp]:
        """Indices of the blocks `cursor`, ..., `cursor + count - 1`: intp[count]."""
        parts = []
        while count > 0:
            epoch, start = divmod(cursor, self._count)
            if epoch != self._epoch:
                generator = np.random.Generator(np.random.PCG64([self._key, epoch]))
                self._permutation, self._epoch = generator.permutation(self._count), epoch
            parts.append(self._permutation[start : start + count])
            cursor += parts[-1].size
            count -= parts[-1].size
        return np.concatenate(parts) if len(parts) > 1 else parts[0]
