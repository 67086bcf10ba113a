"""The validation split of a boundary: whole documents, chosen by hash, the same whatever the devices."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from echelon.errors import ConfigError
from echelon.training.data.encode import Document


def rank(seed: int, purpose: str, name: str) -> bytes:
    """A pseudo-random sort key of `name`, 32 bytes, that does not depend on what else there is."""
    return hashlib.sha256(f"{seed}\0{purpose}\0{name}".encode()).digest()


def split(
    documents: Sequence[Document], fraction: float, cap: int, seed: int, *, whole: bool = False
) -> tuple[list[Document], list[Document]]:
    """(training, validation): disjoint, both non-empty, each in order of id.

    Validation takes documents in hash order while they fit into `fraction` of all tokens. If that is more
    than `cap` tokens, each is shortened in proportion; what is cut off is not trained on either. `whole`: rather than
    that, documents are left out, the last ones in hash order.
    Raises `ConfigError` for fewer than two documents.
    """
    if len(documents) < 2:
        raise ConfigError(
            f"{len(documents)} document(s) cannot be split into training and validation; give at least two "
            "files, or rows of jsonl or parquet, since a document is never cut in two"
        )
    room = fraction * sum(document.size for document in documents)
    order = sorted(documents, key=lambda document: rank(seed, "split", document.id))
    held: list[Document] = []
    for document in order:
        if document.size <= room and len(held) < len(documents) - 1:
            held.append(document)
            room -= document.size
    if not held:
        held = [min(order, key=lambda document: document.size)]
    ids = {document.id for document in held}
    training = sorted((d for d in documents if d.id not in ids), key=lambda d: d.id)
    if whole:
        held = _fewer(held, cap)
    return training, _shorten(sorted(held, key=lambda d: d.id), cap)


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
        short = Document(document.id, document.domain, document.tokens[:size], document.counted[:size])
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
