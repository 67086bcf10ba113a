"""A payload that comes in chunks: a digest that was begun serves only if it is of these very chunks."""

from __future__ import annotations

import hashlib

import pytest

from echelon.audit.transfer import BegunChunk, BegunPayload, OpenTransfer

PARTS = [b"one", b"", b"three" * 1000]
WHOLE = b"".join(PARTS)
UNUSED = hashlib.sha256()
"""Stands for the digest of a chunk's record, which a transfer does not look at."""


def begun_of(*parts: bytes) -> BegunPayload:
    return BegunPayload(hashlib.sha256(b"".join(parts)), len(parts))


def transfer_of(*chunks: BegunChunk | None) -> OpenTransfer:
    transfer = OpenTransfer(len(WHOLE), len(PARTS), 5)
    for part, begun in zip(PARTS, chunks, strict=True):
        transfer.add(part, begun)
    return transfer


def test_without_anything_begun_the_chunks_are_hashed() -> None:
    transfer = transfer_of(None, None, None)
    assert (transfer.payload(), transfer.size, transfer.digest()) == (WHOLE, len(WHOLE), None)
    assert transfer.sha256() == hashlib.sha256(WHOLE).digest()


def test_a_digest_that_was_begun_of_all_chunks_is_taken() -> None:
    payload = begun_of(*PARTS)
    transfer = transfer_of(*(BegunChunk(UNUSED, payload, place) for place in range(3)))
    assert transfer.digest() is payload.digest
    assert transfer.sha256() == hashlib.sha256(WHOLE).digest()


@pytest.mark.parametrize("wrong", range(3))
@pytest.mark.parametrize(
    "how", ["none", "other payload", "other place", "another chunk in it", "one too few"]
)
def test_what_was_begun_of_something_else_is_not_taken(how: str, wrong: int) -> None:
    """Each of these payloads has another digest than the chunks, so that taking it would show."""
    forged = begun_of(b"other", b"chunks", b"altogether")
    if how == "another chunk in it":
        forged.count += 1
    if how == "one too few":
        forged.count -= 1
    chunks: list[BegunChunk | None] = [BegunChunk(UNUSED, forged, place) for place in range(3)]
    if how == "none":
        chunks[wrong] = None
    if how == "other payload":
        chunks[wrong] = BegunChunk(UNUSED, begun_of(*PARTS, b"more"), wrong)
    if how == "other place":
        chunks[wrong] = BegunChunk(UNUSED, forged, wrong + 1)
    transfer = transfer_of(*chunks)
    assert transfer.digest() is None
    assert transfer.sha256() == hashlib.sha256(WHOLE).digest()
