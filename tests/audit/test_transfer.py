"""A payload that comes in chunks: its bytes and its digest, whether that is computed while they come or not."""

from __future__ import annotations

import hashlib

import pytest

from echelon.audit.transfer import OpenTransfer

PARTS = [[], [b""], [b"one"], [b"one", b"", b"three" * 1000]]


@pytest.mark.parametrize("parts", PARTS, ids=len)
@pytest.mark.parametrize("begun", [False, True])
def test_the_digest_is_that_of_the_whole(parts: list[bytes], begun: bool) -> None:
    transfer = OpenTransfer(8, 2, 5, hashlib.sha256() if begun else None)
    for part in parts:
        transfer.add(part)
    whole = b"".join(parts)
    assert (transfer.payload(), transfer.size) == (whole, len(whole))
    assert transfer.sha256() == hashlib.sha256(whole).digest()
    assert transfer.sha256() == transfer.sha256()
