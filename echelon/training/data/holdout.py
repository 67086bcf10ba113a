"""The validation split of a boundary: whole documents, chosen by hash, the same whatever the devices."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from echelon.errors import ConfigError
from echelon.training.data.encode import Document


def rank(seed: int, purpose: str, name: str) -> bytes:
    """A pseudo-random sort key of `name`, 32 bytes, that does not depend on what else there is.

    Args:
        seed: of the run's data settings.
        purpose: what is sorted, so that two uses of a seed are independent.
        name: id of the document or file.
    """
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


SKEWED = 4
"""Held-out documents whose typical size differs by this factor from that of all are not a sample of them."""


SHORTEST = 8
"""Tokens that a held-out document keeps on average: where the cap leaves less, fewer documents are read."""


def split(
    documents: Sequence[Document], fraction: float, cap: int, seed: int, *, whole: bool = False
) -> tuple[list[Document], list[Document]]:
    """(training, validation): disjoint, both non-empty, each in order of id.

    Validation takes documents in hash order while they fit into `fraction` of all tokens. Where that would hold out
    small documents alone, every class of size gives its own share; a class whose documents are all too large for it
    gives the end of one of them. If that is more than `cap` tokens, each is shortened in proportion; what is cut off
    is not trained on either. Where less than `SHORTEST` tokens of each would be left, some are left out instead.

    Args:
        documents: of one boundary.
        fraction: of all tokens that is held out.
        cap: most tokens that validation reads.
        seed: of the hash order.
        whole: rather than shortening documents, leave some out, the last ones in hash order; none is cut in two.

    Raises:
        ConfigError: fewer than two documents, or nothing that counts is left of the held-out ones.
    """
    if len(documents) < 2:
        raise ConfigError(
            f"{len(documents)} document(s) cannot be split into training and validation; give at least two "
            "files, or rows of jsonl or parquet, since a document is never cut in two"
        )
    order = sorted(documents, key=lambda document: rank(seed, "split", document.id))
    held = _fitting(order, fraction * sum(document.size for document in documents), len(documents) - 1)
    ends: list[tuple[Document, Document]] = []
    if held and not whole and _typical_size(documents) > SKEWED * _typical_size(held):
        held, ends = _stratified(order, fraction)
    if not held and not ends:
        held = [min(order, key=lambda document: document.size)]
    ids = {document.id for document in held} | {rest.id for rest, _ in ends}
    training = [document for document in documents if document.id not in ids] + [rest for rest, _ in ends]
    held = held + [end for _, end in ends]
    if whole:
        held = _fewer(held, cap)
    elif cap < SHORTEST * len(held):
        # So many that nothing would be left of each: fewer of them, the first in hash order.
        held = sorted(held, key=lambda document: rank(seed, "cap", document.id))[: max(1, cap // SHORTEST)]
    return sorted(training, key=lambda d: d.id), _shorten(sorted(held, key=lambda d: d.id), cap)


def _fitting(order: Sequence[Document], room: float, most: int) -> list[Document]:
    """Documents in the order given while they fit into so many tokens, at most so many of them."""
    held: list[Document] = []
    for document in order:
        if document.size <= room and len(held) < most:
            held.append(document)
            room -= document.size
    return held


def _typical_size(documents: Sequence[Document]) -> float:
    """The size of the document that a token drawn at random stands in, on average."""
    return sum(document.size**2 for document in documents) / max(
        1, sum(document.size for document in documents)
    )


def _stratified(
    order: Sequence[Document], fraction: float
) -> tuple[list[Document], list[tuple[Document, Document]]]:
    """A share of every class of size (a factor of four each): whole documents, or the end of one where none fits.

    Returns:
        Documents that are held out whole; and of those that give their end what is trained, and what is held out.
    """
    classes: dict[int, list[Document]] = {}
    for document in order:
        classes.setdefault(document.size.bit_length() // 2, []).append(document)
    held: list[Document] = []
    ends: list[tuple[Document, Document]] = []
    for members in classes.values():
        share = fraction * sum(document.size for document in members)
        fitting = _fitting(members, share, len(members) - 1)
        held += fitting
        if not fitting and (cut := _end_of(members[0], min(int(share), members[0].size // 2))):
            ends.append(cut)
    return held, ends


def _end_of(document: Document, size: int) -> tuple[Document, Document] | None:
    """A document without its last tokens, and those; None if one of the two would have nothing that counts."""
    at = document.size - size
    rest = replace(document, tokens=document.tokens[:at], counted=document.counted[:at])
    end = replace(
        document, id=f"{document.id}#end", tokens=document.tokens[at:], counted=document.counted[at:]
    )
    return (rest, end) if size > 0 and rest.counted.any() and end.counted.any() else None


def _fewer(documents: list[Document], cap: int) -> list[Document]:
    """The documents that fit into `cap` tokens, in the order given."""
    kept = []
    for document in documents:
        if document.size <= cap:
            kept.append(document)
            cap -= document.size
    if not kept:
        raise ConfigError(
            f"max_validation_tokens = {cap} is less than each of {len(documents)} validation rows; raise it"
        )
    return kept


def _shorten(documents: list[Document], cap: int) -> list[Document]:
    total = sum(document.size for document in documents)
    if total <= cap:
        return documents
    kept = []
    for document in documents:
        size = document.size * cap // total
        # A text keeps its begin. Of a conversation the answers count: a prompt is cut before they are.
        last = document.size if document.counted.all() else int(np.flatnonzero(document.counted)[-1]) + 1
        part = slice(0, size) if document.counted.all() else slice(max(0, last - size), last)
        short = replace(document, tokens=document.tokens[part], counted=document.counted[part])
        if short.counted.any():
            kept.append(short)
    if not kept:
        raise ConfigError(
            f"max_validation_tokens = {cap} leaves nothing of {len(documents)} validation documents with "
            f"{total} tokens; raise it or lower validation_fraction"
        )
    return kept


def split_digest(validation: Sequence[Document]) -> bytes:
    """SHA-256 over the documents in order: number of tokens u32, ids u32, one byte per token if counted.

    With a label, u32, after each document that has one.
    """
    digest = hashlib.sha256()
    for document in validation:
        digest.update(struct.pack("<I", document.size))
        digest.update(document.tokens.astype("<u4").tobytes())
        digest.update(document.counted.tobytes())
        if document.label is not None:
            digest.update(struct.pack("<I", document.label))
    return digest.digest()
