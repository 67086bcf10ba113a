from __future__ import annotations

import functools

import pytest
from pydantic import ValidationError

from echelon.messages.handshake import (
    Included,
    KeyEntry,
    KeyList,
    Sealed,
    SealedShare,
    SharesList,
    Upload,
)
from echelon.messages.wire import MAX_CONTROL_BYTES, Reason, Refused


def test_lists_of_the_largest_cohort_and_longest_names_fit_into_a_record() -> None:
    devices = [f"{i:064d}" for i in range(200)]
    entry = functools.partial(KeyEntry, cipher_public=bytes(32), mask_public=bytes(32), seed_commitment=bytes(32),
                              evaluated=False, front=0, back=0, signature=bytes(64))  # fmt: skip
    largest = KeyList(window=2**63 - 1, entries=tuple(entry(device=d) for d in devices))
    assert len(largest.encode()) <= MAX_CONTROL_BYTES
    assert KeyList.decode(largest.encode()) == largest
    sealed = Sealed(window=1, entries=tuple(SealedShare(device=d, ciphertext=bytes(82)) for d in devices))
    assert len(sealed.encode()) <= MAX_CONTROL_BYTES


def test_lists_have_one_order() -> None:
    one, two = (Upload(device=d, upload_sha256=bytes(32)) for d in ("a", "b"))
    for entries in ((two, one), (one, one)):
        with pytest.raises(ValidationError, match="ascending"):
            Included(window=0, entries=entries)
        unsorted = Included.model_construct(window=0, entries=entries).encode()
        with pytest.raises(Refused) as refused:
            Included.decode(unsorted)
        assert refused.value.reason is Reason.BAD_FIELD
    with pytest.raises(ValidationError, match="ascending"):
        SharesList(window=0, devices=("b", "a"))
