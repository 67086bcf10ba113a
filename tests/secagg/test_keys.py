from __future__ import annotations

import pytest

from echelon.messages.handshake import (
    SEALED_BYTES,
)
from echelon.secagg import keys


def test_derived_keys_are_separate_by_purpose_binding_and_order() -> None:
    secret = b"s" * 32
    found = [
        keys.derive(secret, b"a", b"", 16),
        keys.derive(secret, b"b", b"", 16),
        keys.derive(secret, b"a", b"x", 16),
        keys.derive(secret, b"ax", b"", 16),
        keys.derive(b"t" * 32, b"a", b"", 16),
        keys.self_mask_key(secret, b"bound", "d1"),
        keys.self_mask_key(secret, b"bound", "d2"),
        keys.self_mask_key(secret, b"other", "d1"),
        keys.pair_mask_key(secret, b"bound", "d1", "d2"),
        keys.pair_mask_key(secret, b"other", "d1", "d2"),
        keys.pair_mask_key(secret, b"bound", "d1", "d3"),
    ]
    assert len(set(found)) == len(found)
    assert keys.pair_mask_key(secret, b"bound", "d2", "d1") == found[8]


def test_both_ends_agree_and_low_order_points_are_refused() -> None:
    a, b = keys.AgreementKey(b"a" * 32), keys.AgreementKey(b"b" * 32)
    assert a.agree(b.public) == b.agree(a.public)
    assert keys.usable(a.public)
    for low in (
        bytes(32),
        b"\x01" + bytes(31),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ):
        assert not keys.usable(low)
        with pytest.raises(ValueError, match="shared key"):
            a.agree(low)


def test_sealed_shares_open_for_one_recipient_in_one_direction() -> None:
    shares = b"s" * 66
    sealed = keys.seal_shares(b"k" * 32, b"bound", "d1", "d2", shares)
    assert len(sealed) == SEALED_BYTES
    assert keys.open_shares(b"k" * 32, b"bound", "d1", "d2", sealed) == shares
    assert keys.open_shares(b"k" * 32, b"bound", "d2", "d1", sealed) is None
    assert keys.open_shares(b"k" * 32, b"other", "d1", "d2", sealed) is None
    assert keys.open_shares(b"j" * 32, b"bound", "d1", "d2", sealed) is None
    assert keys.open_shares(b"k" * 32, b"bound", "d1", "d2", sealed[:-1] + bytes([sealed[-1] ^ 1])) is None


def test_seed_commitments_bind_seed_context_and_device() -> None:
    found = {
        keys.commit_seed(s, c, d) for s in (b"1" * 32, b"2" * 32) for c in (b"c", b"d") for d in ("x", "y")
    }
    assert len(found) == 8
