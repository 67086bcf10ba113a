from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echelon.secagg import recovery
from echelon.secagg.entropy import Entropy
from echelon.secagg.recovery import Recovery
from echelon.secagg.shamir import deal


def shares_of(secret: bytes, n: int, t: int) -> dict[str, tuple[int, bytes]]:
    points = list(range(1, n + 1))
    dealt = deal(secret, points, t, Entropy.seeded(secret + b"r"))
    return {f"d{point:02d}": (point, share) for point, share in zip(points, dealt, strict=True)}


@settings(deadline=None, max_examples=40)
@given(data=st.data(), n=st.integers(3, 9))
def test_bad_shares_up_to_n_minus_t_are_survived_and_named(data: st.DataObject, n: int) -> None:
    t = data.draw(st.integers(2, n - 1))
    secret = b"\x05" * 32
    shares = shares_of(secret, n, t)
    wrong = data.draw(st.lists(st.sampled_from(sorted(shares)), max_size=n - t, unique=True))
    for device in wrong:
        shares[device] = (shares[device][0], b"\x00" + hashlib.sha256(device.encode()).digest())
    found = Recovery(t)
    assert found.secret(shares, secret.__eq__) == secret
    assert found.suspects <= set(wrong)
    if set(wrong) & set(sorted(shares)[:t]):
        assert found.suspects == set(wrong)


def test_too_few_or_too_many_bad_shares_give_nothing() -> None:
    secret = b"\x05" * 32
    shares = shares_of(secret, 5, 3)
    assert Recovery(3).secret(dict(list(shares.items())[:2]), secret.__eq__) is None
    for device in ("d01", "d02", "d04"):
        shares[device] = (shares[device][0], bytes(33))
    assert Recovery(3).secret(shares, secret.__eq__) is None


def test_the_effort_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "EFFORT", 50)
    tried = []

    def never(secret: bytes) -> bool:
        tried.append(secret)
        return False

    found = Recovery(6)
    shares = shares_of(b"\x05" * 32, 12, 6)
    assert found.secret(shares, never) is None
    assert found.secret(shares, never) is None
    assert len(tried) == 52  # one honest try for each secret, and the budget once


def test_a_device_that_lied_once_costs_no_further_effort() -> None:
    found = Recovery(3)
    for number in range(3):
        secret = bytes([number]) * 32
        shares = shares_of(secret, 5, 3) | {"d01": (1, bytes(33))}
        tries: list[bytes] = []
        assert found.secret(shares, lambda s, t=tries, w=secret: t.append(s) or s == w) == secret
        assert (len(tries) == 1) == (number > 0)


def test_every_subset_is_tried_once() -> None:
    tried = []
    found = Recovery(3)
    shares = {name: (at, bytes(33)) for at, name in enumerate("abcdef", 1)}
    list(itertools.starmap(tried.append, ((s,) for s in found._subsets(sorted(shares)))))
    assert len(tried) == len(set(tried)) == 20
    assert tried[0] == ("a", "b", "c")
